"""The access log in a form of the user's own: by gunicorn's atoms, or as JSON.

A form is a text with atoms, such as %(h)s or %({x-trace}i)s; or `json`, for objects of the usual fields; or
`json:` and the names of fields, with commas between them, of which {x-trace}i may be one too.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from parked.server import request_id

#: What would end a quoted part of a line, or do something to who reads it; as nginx has it.
ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(32), *b'"\\', *range(127, 256))}

#: Of JSON, unless others are chosen.
USUAL_FIELDS: Final = ("time", "client", "method", "target", "version", "status", "bytes", "seconds")
#: What a form begins with, if it is of JSON.
JSON: Final = "json"

_ATOM: Final = re.compile(r"%(?:\((?:\{([^}]+)\}([ioe])|(\w))\)s|(%)|)")
_NAMED: Final = re.compile(r"\{([^{},]+)\}([ioe])")

Atom = Callable[[Any], object]


def _environ(name: str) -> Atom:
    return lambda handler: (handler.environ or {}).get(name)


def _microseconds(handler: Any) -> int:
    seconds: float = handler.time_finish - handler.time_start
    return round(seconds * 1e6)


def _host(handler: Any) -> object:
    address = handler.client_address
    return address[0] if isinstance(address, tuple) else address


def _path(handler: Any) -> str:
    return str(handler.path or "").partition("?")[0]


def _status(handler: Any) -> str:
    return str(handler._orig_status or handler.code or "").partition(" ")[0]


def content_bytes(handler: Any) -> int:
    """What was sent of the content: the response less its head; what frames chunks counts."""
    sent: int = handler.response_length
    known: int | None = getattr(handler, "head_bytes", None)
    if known is not None:
        return max(0, sent - known)
    status = handler._orig_status or str(handler.code or "")
    fields = handler.response_headers or ()
    head = len(f"HTTP/1.1 {status}\r\n\r\n") + sum(len(name) + len(value) + 4 for name, value in fields)
    return max(0, sent - head)


_ATOMS: Final[dict[str, Atom]] = {
    "h": _host,
    "l": lambda _: None,
    "u": _environ("REMOTE_USER"),
    "t": lambda handler: time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(handler.time_finish)),
    "r": lambda handler: handler.requestline,
    "m": lambda handler: handler.command,
    "U": _path,
    "q": lambda handler: str(handler.path or "").partition("?")[2],
    "H": lambda handler: handler.request_version,
    "s": _status,
    "b": lambda handler: content_bytes(handler) or None,
    "B": content_bytes,
    "f": _environ("HTTP_REFERER"),
    "a": _environ("HTTP_USER_AGENT"),
    "T": lambda handler: _microseconds(handler) // 1_000_000,
    "M": lambda handler: _microseconds(handler) // 1000,
    "D": _microseconds,
    "L": lambda handler: f"{_microseconds(handler) / 1e6:.6f}",
    "p": lambda _: f"<{os.getpid()}>",
}


#: Fields of JSON: a string, a number, or null for what is not known.
_FIELDS: Final[dict[str, Atom]] = {
    "time": lambda handler: datetime.fromtimestamp(handler.time_finish, UTC).isoformat(
        timespec="milliseconds"
    ),
    "client": lambda handler: handler.client_address[0] if isinstance(handler.client_address, tuple) else "",
    "user": _environ("REMOTE_USER"),
    "method": lambda handler: handler.command,
    "scheme": _environ("wsgi.url_scheme"),
    "host": _environ("HTTP_HOST"),
    "target": lambda handler: handler.path,
    "path": _path,
    "query": lambda handler: str(handler.path or "").partition("?")[2],
    "version": lambda handler: handler.request_version,
    "status": lambda handler: abs(handler.code or 0),
    "bytes": lambda handler: handler.response_length,
    "content_bytes": content_bytes,
    "seconds": lambda handler: round(handler.time_finish - handler.time_start, 6),
    "referer": _environ("HTTP_REFERER"),
    "agent": _environ("HTTP_USER_AGENT"),
    "process": lambda _: os.getpid(),
    "request_id": _environ(request_id.KEY),
}


class LineFormat(Protocol):
    """How a line of the access log is made."""

    def line(self, handler: Any) -> str:
        """That of the request that *handler* has served."""


def line_format(text: str, has_ids: bool = False) -> LineFormat | None:
    """The form by its text; None for pywsgi's own, which is `common` or empty.

    :param has_ids: requests have ids, and so have the usual fields.
    :raises ValueError: there is no such form; in words that follow the text itself.
    """
    name, colon, fields = text.partition(":")
    if name == JSON:
        usual = (*USUAL_FIELDS, "request_id") if has_ids else USUAL_FIELDS
        return JSONFormat(fields.split(",") if colon else usual)
    if text in ("", "common"):
        return None
    if "%" not in text:
        raise ValueError("needs common, json, json:FIELD,... or a form with atoms, such as %(h)s")
    return AccessFormat(text)


class JSONFormat:
    """Lines that are JSON objects, in ASCII.

    :param names: of fields, in their order.
    :raises ValueError: one is unknown.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._fields = [_field(name.strip()) for name in names]

    def line(self, handler: Any) -> str:
        return json.dumps({name: value(handler) for name, value in self._fields}, default=str)


def _field(name: str) -> tuple[str, Atom]:
    if name in _FIELDS:
        return name, _FIELDS[name]
    named = _NAMED.fullmatch(name)
    if named is None:
        raise ValueError(f"unknown field {name!r}; there are {', '.join(_FIELDS)} and {{name}}i, o and e")
    return named[1], _of(named[1], named[2])


def _of(name: str, kind: str) -> Atom:
    """By its name: a field of the request (i) or of the response (o), or what environ has (e)."""
    if kind == "i":
        return _environ("HTTP_" + name.upper().replace("-", "_"))
    return _environ(name) if kind == "e" else _response_field(name)


class AccessFormat:
    """Lines with atoms.

    :param text: with atoms; %% is a per cent sign.
    :raises ValueError: an atom is unknown; in words that follow the text itself.
    """

    def __init__(self, text: str) -> None:
        self._atoms: list[Atom] = []
        self._form = _ATOM.sub(self._take, text)

    def line(self, handler: Any) -> str:
        """That of the request that *handler* has served."""
        return self._form % tuple(_shown(atom(handler)) for atom in self._atoms)

    def _take(self, match: re.Match[str]) -> str:
        name, kind, letter, percent = match.groups()
        if percent:
            return "%%"
        if kind:
            self._atoms.append(_of(name, kind))
        elif letter in _ATOMS:
            self._atoms.append(_ATOMS[letter])
        else:
            raise ValueError(f"unknown atom {match.string[match.start() : match.start() + 6]!r}")
        return "%s"


def _response_field(name: str) -> Atom:
    wanted = name.lower().encode("latin-1")

    def find(handler: Any) -> str | None:
        for key, value in handler.response_headers or ():
            if bytes(key, "latin-1").lower() == wanted if isinstance(key, str) else key.lower() == wanted:
                return value if isinstance(value, str) else value.decode("latin-1")
        return None

    return find


def _shown(value: object) -> str:
    return "-" if value is None or value == "" else str(value).translate(ESCAPES)
