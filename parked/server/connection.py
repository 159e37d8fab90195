"""One client connection: a socket, and what is known of it between two requests.

The socket is one of C's: gevent's wrapper costs 1.5 KB and two watchers per connection.
"""

from __future__ import annotations

import sys
from array import array
from typing import Any, Final, Protocol

#: What epoll has reported of a connection that nobody has looked into since.
EDGE: Final = 1
#: The client has shut its side: after what it sent comes the end.
HUNG_UP: Final = 2

#: The clients' ports by descriptor: 2 bytes each, where an `int` and the reference to it are 40.
_ports = array("H")


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

    # Six of them, and what the interpreter adds, fill a block of its allocator: one more costs 16 bytes.
    __slots__ = ("_peer", "buffer", "busy", "reported", "since", "sock")

    def __init__(self, sock: ClientSocket, address: Any) -> None:
        self.sock = sock
        #: A host whose port is in `_ports`, or all of the address in a tuple.
        self._peer: str | tuple[Any, ...] = address if type(address) is tuple else (address,)
        if len(self._peer) == 2 and type(address[0]) is str:
            self._peer = address[0]
            _keep_port(sock.fileno(), address[1])
        #: Received and not yet used: half a request head, or pipelined requests.
        self.buffer = b""
        #: Tick at which the connection was parked last.
        self.since = 0
        #: Not parked: it is served (True), or somebody holds it, who is told of its events.
        self.busy: bool | Holder = False
        #: `EDGE`, `HUNG_UP`: look at the socket again before parking.
        self.reported = 0

    @property
    def address(self) -> Any:
        """The peer, as accept() gives it; without its port once the connection is closed."""
        peer = self._peer
        if type(peer) is str:
            fd = self.sock.fileno()
            return (peer, _ports[fd] if fd >= 0 else 0)
        return peer if len(peer) > 1 else peer[0]

    @property
    def hung_up(self) -> bool:
        """Whether the client has shut its side, or is as good as gone."""
        return bool(self.reported & HUNG_UP)


def _keep_port(fd: int, port: int) -> None:
    if fd >= len(_ports):
        _ports.extend([0] * (fd + 1 - len(_ports)))
    _ports[fd] = port


def shared_address(address: Any) -> Any:
    """*address* with its host string shared by all connections from there: 60 bytes less each."""
    if isinstance(address, tuple):
        return (sys.intern(address[0]), *address[1:])
    return address
