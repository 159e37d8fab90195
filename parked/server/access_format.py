"""The access log in a form of the user's own, by gunicorn's atoms: %(h)s, %({x-request-id}i)s and so on."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any, Final

#: What would end a quoted part of a line, or do something to who reads it; as nginx has it.
ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(32), *b'"\\', *range(127, 256))}

_ATOM: Final = re.compile(r"%(?:\((?:\{([^}]+)\}([ioe])|(\w))\)s|(%)|)")

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
    status = handler._orig_status or str(handler.code or "")
    fields = handler.response_headers or ()
    head = len(f"HTTP/1.1 {status}\r\n\r\n") + sum(len(name) + len(value) + 4 for name, value in fields)
    sent: int = handler.response_length
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


class AccessFormat:
    """Lines of one form.

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
        if kind == "i":
            self._atoms.append(_environ("HTTP_" + name.upper().replace("-", "_")))
        elif kind == "e":
            self._atoms.append(_environ(name))
        elif kind == "o":
            self._atoms.append(_response_field(name))
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
