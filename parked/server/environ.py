"""What the environ of a request begins with, copied in one go: the server's part and the request's fields.

A client repeats its fields, so the two are put together once per block of fields. PERF: to copy the result
costs half of what it costs to put it together, for a dictionary that grows is laid out anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from parked.server import disconnected
from parked.server.body import NO_BODY
from parked.server.defer import KEY
from parked.server.request import Fields

#: What each request sets, so that it is set in place; and what holds for those without content.
_PLACES: Final[dict[str, Any]] = {
    "REQUEST_METHOD": "",
    "SCRIPT_NAME": "",
    "PATH_INFO": "",
    "QUERY_STRING": "",
    "SERVER_PROTOCOL": "",
    "REMOTE_ADDR": "",
    "wsgi.input": NO_BODY,
    "wsgi.input_terminated": True,
    KEY: None,
    disconnected.KEY: None,
}
#: Entries that are added without the dictionary growing: REMOTE_PORT, and those of middleware.
ROOM: Final = 8


class BaseEnviron(dict[str, Any]):
    """`server.environ`: may be changed at any time, and `stamp` is another object then."""

    __slots__ = ("stamp",)

    def __init__(self, *arguments: Any, **items: Any) -> None:
        super().__init__(*arguments, **items)
        self.stamp = object()


def _changing(method: Callable[..., Any]) -> Callable[..., Any]:
    def change(self: BaseEnviron, *arguments: Any, **items: Any) -> Any:
        self.stamp = object()
        return method(self, *arguments, **items)

    return change


for _name in ("__delitem__", "__ior__", "__setitem__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(BaseEnviron, _name, _changing(getattr(dict, _name)))


def fill(environ: dict[str, Any], fields: Fields) -> dict[str, Any]:
    """Add to *environ* what *fields* say, and places for what only the request knows."""
    environ.update(_PLACES)
    environ.update(fields.environ)
    return environ


def begin(base: BaseEnviron, fields: Fields) -> dict[str, Any]:
    """A new environ, of which a copy is kept with *fields*, if those are, for the next request with them."""
    environ = fill(dict(base), fields)
    if fields.is_kept:
        fields.begun_for, fields.begun = base.stamp, _roomy(environ)
    return environ


def _roomy(environ: dict[str, Any]) -> dict[str, Any]:
    """A copy whose copies have room for `ROOM` more: the table of a dictionary is copied with its size."""
    copy = environ.copy()
    size = sys.getsizeof(copy)
    for number in range(ROOM):
        copy[f"room {number}"] = None
        if sys.getsizeof(copy) > size:  # by half at least
            for added in range(number + 1):
                del copy[f"room {added}"]
            return copy
    return environ.copy()
