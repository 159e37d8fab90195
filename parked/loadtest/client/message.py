"""A request as the bytes that are sent, and its body as bytes that can be sent again."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlencode

import requests

if TYPE_CHECKING:
    from parked.loadtest.client.origin import Origin


Fields = tuple[tuple[str, str], ...]


class Body(NamedTuple):
    """:ivar fields: header fields that go with it, unless the request or the user has them already."""

    content: bytes
    fields: Fields


#: Methods that are about their content: they say its length even if there is none (RFC 9110, 8.6).
WITH_CONTENT = frozenset(("POST", "PUT", "PATCH", "post", "put", "patch"))
NONE = Body(b"", ())
FORM: Fields = (("Content-Type", "application/x-www-form-urlencoded"),)
JSON: Fields = (("Content-Type", "application/json"), ("Accept", "application/json"))
TEXT: Fields = (("Content-Type", "text/plain; charset=utf-8"),)
BYTES: Fields = (("Content-Type", "application/octet-stream"),)

_as_json = jsonlib.JSONEncoder().encode


def encoded(data: Any, json: Any, files: Any) -> Body:
    """The body for what `request()` was given, read once: a redirection may ask for it again.

    :param data: text, bytes, a file, an iterable of either; a mapping or list of pairs becomes a form.
    """
    if files:
        form = requests.Request("POST", "http://form", data=data, files=files).prepare()
        return Body(cast(bytes, form.body), (("Content-Type", str(form.headers["Content-Type"])),))
    if not data and json is not None:
        return Body(_as_json(json).encode(), JSON)
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
    """
    content = body.content
    has_length = content or method in WITH_CONTENT
    first = f"{method.upper()} {path}".encode()
    if not fields and not bare:
        if has_length:
            return b"%b%b%d\r\n\r\n%b" % (first, origin.tail_to_length(body.fields), len(content), content)
        return b"%b%b\r\n" % (first, origin.tail)
    lines = {name: value for name, value in fields.items() if value is not None}
    given = {name.lower() for name in fields}
    lines |= {
        name: value
        for name, value in body.fields
        if not ((lower := name.lower()) in given or (lower in origin.named and not bare))
    }
    if has_length:
        lines = merged(lines, {"Content-Length": len(content)})
    own = "".join([f"{name}: {value}\r\n" for name, value in lines.items()])
    if own.count("\r") != len(lines) or own.count("\n") != len(lines):
        raise ValueError(f"line break in the header fields {list(fields)}")
    tail = origin.tail_beside((*fields, *lines), bare)
    return b"%b%b%b\r\n%b" % (first, tail, own.encode("latin-1"), content)
