"""One client connection: a socket, and what is known of it between two requests.

The socket is one of C's: gevent's wrapper costs 1.5 KB and two watchers per connection.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol


class ClientSocket(Protocol):
    """What is asked of a client's socket; a non-blocking `_socket.socket` or a `TLSSocket`."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes | bytearray | memoryview, /) -> int: ...
    def fileno(self) -> int: ...
    def getpeername(self) -> Any: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...
    def detach(self) -> int: ...
    def setsockopt(self, level: int, option: int, value: Any, /) -> None: ...


class Holder(Protocol):
    """What keeps a connection busy without a greenlet."""

    def begin(self) -> None:
        """The request greenlet lets go of the connection."""

    def on_events(self, events: int) -> None:
        """In the hub: epoll has reported these."""


class Connection:
    """One client connection. Slots, because there are many."""

    __slots__ = ("_host", "_port", "buffer", "busy", "hung_up", "lingering", "pending", "since", "sock")

    def __init__(self, sock: ClientSocket, address: Any) -> None:
        self.sock = sock
        # In two parts: a tuple would be 80 bytes more.
        self._host: Any = address
        self._port: int | None = None
        if type(address) is tuple and len(address) == 2:
            self._host, self._port = address
        #: Received and not yet used: half a request head, or pipelined requests.
        self.buffer = b""
        #: Tick at which the connection was parked last.
        self.since = 0
        #: Not parked: it is served (True), or somebody holds it, who is told of its events.
        self.busy: bool | Holder = False
        #: An edge came while busy: look at the socket again before parking.
        self.pending = False
        #: The client has shut its side: after what it sent comes the end.
        self.hung_up = False
        #: Not 0: the last answer is out; so many bytes and one have lately been thrown away.
        self.lingering = 0

    @property
    def address(self) -> Any:
        """The peer, as accept() gives it."""
        return self._host if self._port is None else (self._host, self._port)


def shared_address(address: Any) -> Any:
    """*address* with its host string shared by all connections from there: 60 bytes less each."""
    if isinstance(address, tuple):
        return (sys.intern(address[0]), *address[1:])
    return address
