"""The listening sockets: made by the supervisor, one a worker, and kept by it.

A worker inherits its socket. When it dies, the connections that the kernel has completed meanwhile wait in
that socket's queue, which still exists, for the worker's successor.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from app.settings import Address

_SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")


class ListenError(OSError):
    """An address that cannot be listened on, with the reason in words."""


def default_backlog() -> int:
    """The longest queue that the kernel allows (Documentation/admin-guide/sysctl/net.rst)."""
    try:
        return int(_SOMAXCONN.read_text("ascii"))
    except OSError:
        return socket.SOMAXCONN


def listen(address: Address, count: int, backlog: int) -> list[socket.socket]:
    """Make *count* sockets that share *address*; the kernel spreads new connections over them.

    :raises ListenError: e.g. the address is in use.
    """
    try:
        family, resolved = _resolve(address)
        # SO_REUSEPORT would let us in beside another server of the same user, which then gets half of our
        # clients. A socket without it finds out whether the address is free.
        with _bound(family, resolved, reuse_port=False) as probe:
            if not address.port:
                resolved = (resolved[0], probe.getsockname()[1], *resolved[2:])
        sockets = [_bound(family, resolved, reuse_port=count > 1) for _ in range(count)]
        for sock in sockets:
            sock.listen(backlog or default_backlog())
            sock.setblocking(False)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error
    return sockets


def _resolve(address: Address) -> tuple[int, tuple[str, int] | tuple[str, int, int, int]]:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    family, _, _, _, resolved = found[0]
    return family, resolved  # type: ignore[return-value]


def _bound(
    family: int, resolved: tuple[str, int] | tuple[str, int, int, int], reuse_port: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or TIME-WAIT keeps us from restarting
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(resolved)
    except OSError:
        sock.close()
        raise
    return sock
