"""A request as the bytes that are sent, and its body as bytes that can be sent again."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlencode

import requests
from requests.utils import requote_uri

from parked.loadtest.client.origin import field_lines, is_token, last_of_each

if TYPE_CHECKING:
    from parked.loadtest.client.origin import Origin


Fields = tuple[tuple[str, str], ...]


class Rank(IntEnum):
    """Whose place the header fields of a body take, as FastHttpUser has it."""

    NOBODY = 0
    #: That of the user's `default_headers`.
    USER = 1
    #: That of the request's own, too: no other boundary would do.
    REQUEST = 2


class Body(NamedTuple):
    """:ivar fields: header fields that go with it, by their rank before those of the user and the request."""

    content: bytes
    fields: Fields
    rank: Rank = Rank.NOBODY


#: Finds what must not stand in a request line as it is (RFC 3986, 2), and what is encoded or not sent.
find_unsafe = re.compile(r"[^!$&-;=?-\[\]_a-z~]").search
LINE_END = "\r\n"
#: Methods that are about their content: they say its length even if there is none (RFC 9110, 8.6).
WITH_CONTENT = frozenset(("POST", "PUT", "PATCH", "post", "put", "patch"))
NONE = Body(b"", ())
FORM: Fields = (("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),)
JSON: Fields = (("Content-Type", "application/json"), ("Accept", "application/json"))
TEXT: Fields = (("Content-Type", "text/plain; charset=utf-8"),)
BYTES: Fields = (("Content-Type", "application/octet-stream"),)

#: Arguments of FastHttpSession that are none of a request, and have no meaning here.
ABSENT = frozenset(("max_retries", "to_string", "debug_stream", "response_codes"))

_as_json = jsonlib.JSONEncoder().encode


def fit(path: str) -> str:
    """A path with its query as it may stand in a request line.

    Without its fragment, which is not sent, and without the line's end that it has if it comes from a file.
    """
    return requote_uri(path.partition("#")[0].rstrip(LINE_END))


def with_query(path: str, added: str) -> str:
    """A path with more parameters, which come before its fragment."""
    path = path.partition("#")[0].rstrip(LINE_END).removesuffix("?")
    return f"{path}{'&' if '?' in path else '?'}{added}"


def taken_in(method: str, data: Any, json: Any, params: Any, more: dict[str, Any]) -> tuple[Any, Any]:
    """Data and parameters with what else a request was given: fields of a POST's form, otherwise parameters.

    So has FastHttpSession it, a `verify=False` among it. Raises TypeError for what has no meaning here.
    """
    if absent := ABSENT & more.keys():
        raise TypeError(f"a KeepAliveUser has no {', '.join(sorted(absent))}")
    if method.upper() != "POST":
        if params is None or isinstance(params, dict):
            params = (params or {}) | more
    elif isinstance(data, dict) or (data is None and json is None):
        data = (data or {}) | more
    return data, params


def encoded(data: Any, json: Any, files: Any) -> Body:
    """The body for what `request()` was given, read once: a redirection may ask for it again.

    :param data: text, bytes, a file, an iterable of either; a mapping or list of pairs becomes a form.
    """
    if files:
        form = requests.Request("POST", "http://form", data=data, files=files).prepare()
        kind = ("Content-Type", str(form.headers["Content-Type"]))
        return Body(cast(bytes, form.body), (kind,), Rank.REQUEST)
    if not data and json is not None:
        return Body(_as_json(json).encode(), JSON, Rank.USER)
    if not data:
        return NONE
    if hasattr(data, "read"):
        data = data.read()
    if isinstance(data, str):
        return Body(data.encode(), TEXT)
    if isinstance(data, bytes | bytearray | memoryview):
        return Body(bytes(data), BYTES)
    if isinstance(data, Mapping | list | tuple):
        return Body(urlencode(data, doseq=True).encode(), FORM)
    if isinstance(data, Iterable):
        parts = [part.encode() if isinstance(part, str) else bytes(part) for part in data]
        return Body(b"".join(parts), BYTES)
    raise TypeError(f"data is {type(data).__name__}: needed is text, bytes, a file, an iterable or a mapping")


def query(params: Any) -> str:
    """What follows the question mark; a mapping's None leaves its name out."""
    made = requests.models.RequestEncodingMixin._encode_params(params)
    return made.decode() if isinstance(made, bytes) else str(made)


def merged(fields: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, the second before the first where they name the same field."""
    named = {name.lower() for name in over}
    return {name: value for name, value in fields.items() if name.lower() not in named} | dict(over)


def message(
    origin: Origin, method: str, path: str, body: Body, fields: Mapping[str, Any], bare: bool
) -> bytes:
    """A request's bytes.

    :param fields: the request's own, in place of those of the origin; None as a value leaves one out.
    :param bare: with nothing that the user would send to its own server.
    :raises ValueError: for what would be no message of HTTP/1.1.
    """
    if not (method.isalpha() and method.isascii()) and not is_token(method):
        raise ValueError(f"no method of HTTP: {method!r}")
    content = body.content
    has_length = content or method in WITH_CONTENT
    first = f"{method.upper()} {path}".encode()
    if not fields and not bare:
        if has_length:
            tail = origin.tail_to_length(body.fields, body.rank > Rank.NOBODY)
            return b"%b%b%d\r\n\r\n%b" % (first, tail, len(content), content)
        return b"%b%b\r\n" % (first, origin.tail)
    given = {name.lower() for name in fields}
    if len(given) < len(fields):
        fields = last_of_each(fields)
    lines = {name: value for name, value in fields.items() if value is not None}
    if body.rank == Rank.REQUEST:
        lines = merged(lines, dict(body.fields))
    else:
        kept = () if bare or body.rank == Rank.USER else origin.named
        lines |= {
            name: value
            for name, value in body.fields
            if not ((lower := name.lower()) in given or lower in kept)
        }
    if has_length:
        lines = merged(lines, {"Content-Length": len(content)})
    own = field_lines(lines)
    tail = origin.tail_beside((*fields, *lines), bare)
    return b"%b%b%b\r\n%b" % (first, tail, own, content)
