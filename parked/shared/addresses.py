"""Addresses as users write them: HOST:PORT, [IPV6]:PORT, :PORT or unix:PATH."""

from __future__ import annotations

from typing import Final, NamedTuple

#: unix(7): sun_path has 108 bytes with its NUL.
_MAX_PATH_BYTES: Final = 107


class Address(NamedTuple):
    """A TCP host and port, or the path of a unix socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """HOST:PORT, [IPV6]:PORT, :PORT (all IPv4 addresses) or unix:PATH.

    :raises ValueError: in words that follow the text itself.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or len(path.encode()) > _MAX_PATH_BYTES:
            raise ValueError(f"a unix socket needs a path of 1 to {_MAX_PATH_BYTES} bytes")
        return Address("", 0, path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address needs brackets: [::1]:8000")
    if not colon or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError("needs HOST:PORT with a port from 0 to 65535")
    return Address(host or "0.0.0.0", int(port))
