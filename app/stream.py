"""Reading and writing one connection inside a request greenlet, waiting where the socket is not ready.

The waiting is gevent's own, with a watcher made for the occasion. That is slow and only for the rare case:
nearly all requests arrive in one piece and nearly all responses leave in one.
"""

from __future__ import annotations

from errno import ECONNRESET
from typing import Final

from gevent.socket import wait_read, wait_write

from app.idle import Connection

_RECV_BYTES: Final = 65536


class WriteTimeoutError(ConnectionResetError):
    """The client does not read its response; for pywsgi one of those who have left."""


class ClientTimeoutError(OSError):
    """The client kept us waiting for its content longer than it may; it gets a 408."""


def send_all(connection: Connection, data: bytes | bytearray | memoryview, timeout: float = 0) -> None:
    """Send *data*, waiting while the client does not read, *timeout* seconds a time (0: for ever).

    :raises OSError: the connection is lost; ECONNRESET also if the client has not read anything for
        *timeout*.
    """
    try:
        sent = connection.sock.send(data)
    except BlockingIOError:
        sent = 0
    if sent == len(data):
        return
    rest = memoryview(data)[sent:]
    too_slow = WriteTimeoutError(ECONNRESET, "the client does not read")
    while rest:
        wait_write(connection.sock.fileno(), timeout or None, too_slow)
        try:
            rest = rest[connection.sock.send(rest) :]
        except BlockingIOError:
            pass


class ConnectionReader:
    """What pywsgi calls *rfile*: first the bytes received with the request head, then the socket.

    :param timeout: seconds to wait for the next bytes, 0 for ever; then reading raises `ClientTimeoutError`.
    """

    __slots__ = ("closed", "connection", "timeout")

    def __init__(self, connection: Connection, timeout: float = 0) -> None:
        self.connection = connection
        self.timeout = timeout
        self.closed = False

    def _receive(self) -> bytes:
        sock = self.connection.sock
        while True:
            try:
                data = sock.recv(_RECV_BYTES)
            except BlockingIOError:
                wait_read(
                    sock.fileno(),
                    self.timeout or None,
                    ClientTimeoutError("the request content did not come"),
                )
                continue
            if len(data) == _RECV_BYTES:
                self.connection.pending = True  # the edge is used up, though more may be waiting
            return data

    def read(self, size: int | None = -1) -> bytes:
        """*size* bytes, fewer only at the end of the input; all of it if negative."""
        connection = self.connection
        parts = [connection.buffer]
        if size is None or size < 0:
            connection.buffer = b""
            while data := self._receive():
                parts.append(data)
            return b"".join(parts)
        missing = size - len(connection.buffer)
        connection.buffer = b""
        while missing > 0 and (data := self._receive()):
            parts.append(data)
            missing -= len(data)
        content = b"".join(parts)
        connection.buffer = content[size:]
        return content[:size] if missing < 0 else content

    def readline(self, size: int | None = -1) -> bytes:
        """One line with its LF, at most *size* bytes of it unless that is negative."""
        connection = self.connection
        limit = size if size is not None and size >= 0 else None
        searched = 0
        while True:
            held = connection.buffer
            end = held.find(b"\n", searched, limit) + 1
            if not end and limit is not None and len(held) >= limit:
                end = limit
            if end or limit == 0:
                connection.buffer = held[end:]
                return held[:end]
            searched = len(held)
            data = self._receive()
            if not data:
                connection.buffer = b""
                return held
            connection.buffer = held + data

    def close(self) -> None:
        self.closed = True
