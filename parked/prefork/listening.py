"""The listening sockets: made by the supervisor, one a worker, and kept by it.

A worker inherits its socket. When it dies, the connections that the kernel has completed meanwhile wait in
that socket's queue, which still exists, for the worker's successor.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gevent import monkey

from parked.prefork.handover import HandoverError, adopt
from parked.shared.addresses import Address

#: sd_listen_fds(3): SD_LISTEN_FDS_START.
_FIRST_LISTEN_FD: Final = 3
#: As it is before gevent patches it: its own would give the supervisor an event loop.
_Socket: Any = monkey.get_original("socket", "socket")
_SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")


class ListenError(OSError):
    """An address that cannot be listened on, with the reason in words."""


def default_backlog() -> int:
    """The longest queue that the kernel allows (Documentation/admin-guide/sysctl/net.rst)."""
    try:
        return int(_SOMAXCONN.read_text("ascii"))
    except OSError:
        return socket.SOMAXCONN


def is_activated(environment: Mapping[str, str]) -> bool:
    """Whether a service manager has started us with sockets of its own, or may have (sd_listen_fds(3))."""
    return environment.get("LISTEN_PID") == str(os.getpid())


def inherited(environment: Mapping[str, str]) -> list[socket.socket]:
    """The sockets that a service manager made for us (sd_listen_fds(3)); none if it did not.

    :raises ListenError: the variables are nonsense, or not of sockets that listen.
    """
    if not is_activated(environment):
        return []
    text = environment.get("LISTEN_FDS", "0")
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise ListenError(f"LISTEN_FDS={text[:40]!r} is not a number of sockets")
    sockets = []
    for fd in range(_FIRST_LISTEN_FD, _FIRST_LISTEN_FD + int(text)):
        try:
            sockets.append(adopt(fd))
        except HandoverError as error:
            raise ListenError(f"LISTEN_FDS={text}: {error}") from error
    return sockets


def listen(address: Address, count: int, backlog: int, mode: int | None = None) -> list[socket.socket]:
    """Make *count* TCP sockets that share *address*, or one unix socket, which all share.

    The kernel spreads new connections over the TCP sockets.

    :param mode: permissions of a unix socket, whoever may write may connect; None: as the umask has it.

    :raises ListenError: e.g. the address is in use.
    """
    try:
        if address.path:
            sockets = [_bound_unix(address.path, mode)]
        else:
            family, resolved = _resolve(address)
            # SO_REUSEPORT would let us in beside another server of the same user, which then gets half of our
            # clients. A socket without it finds out whether the address is free.
            with _bound(family, resolved, reuse_port=False) as probe:
                if not address.port:
                    resolved = (resolved[0], probe.getsockname()[1], *resolved[2:])
            sockets = [_bound(family, resolved, reuse_port=True) for _ in range(count)]
        for sock in sockets:
            sock.listen(backlog or default_backlog())
            sock.setblocking(False)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error
    return sockets


def another(like: socket.socket, backlog: int) -> socket.socket:
    """One more socket of the group that *like* belongs to."""
    sock = _bound(like.family, like.getsockname(), reuse_port=True)
    sock.listen(backlog or default_backlog())
    sock.setblocking(False)
    return sock


def by_address(sockets: Iterable[socket.socket]) -> list[list[socket.socket]]:
    """Those of one address together, in their order."""
    groups: dict[Any, list[socket.socket]] = {}
    for sock in sockets:
        groups.setdefault(sock.getsockname(), []).append(sock)
    return [*groups.values()]


def can_multiply(sock: socket.socket) -> bool:
    """Whether each worker can have a socket of its own at this address."""
    is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
    return is_tcp and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def place(sock: socket.socket, secure: bool) -> str:
    """Where a socket listens, as users write it."""
    name = sock.getsockname()
    if not isinstance(name, tuple):
        return f"https://unix:{name}" if secure else f"unix:{name}"
    return f"http{'s' * secure}://{Address(name[0], name[1])}"


def _bound_unix(path: str, mode: int | None) -> socket.socket:
    """A unix socket at *path*; one that a dead server has left there is replaced."""
    try:
        if stat.S_ISSOCK(Path(path).stat().st_mode):
            with _Socket(socket.AF_UNIX) as probe:
                probe.setblocking(False)
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    Path(path).unlink()
                except BlockingIOError:
                    pass  # its queue is full: it lives
    except FileNotFoundError:
        pass
    sock: socket.socket = _Socket(socket.AF_UNIX)
    # Made with its permissions: by its name they would go to another file that has taken its place.
    before = None if mode is None else os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    finally:
        if before is not None:
            os.umask(before)
    return sock


def _resolve(address: Address) -> tuple[int, tuple[str, int] | tuple[str, int, int, int]]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except UnicodeError:  # an empty or too long part of it
        raise socket.gaierror(socket.EAI_NONAME, "this is no name of a host") from None
    family, _, _, _, resolved = found[0]
    return family, resolved  # type: ignore[return-value]


def _bound(
    family: int, resolved: tuple[str, int] | tuple[str, int, int, int], reuse_port: bool
) -> socket.socket:
    sock: socket.socket = _Socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or TIME-WAIT keeps us from restarting
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(resolved)
    except OSError:
        sock.close()
        raise
    return sock
