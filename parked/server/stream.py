"""Reading and writing one connection inside a request greenlet, waiting where the socket is not ready.

The waiting is gevent's own, with a watcher made for the occasion. That is slow and only for the rare case:
nearly all requests arrive in one piece and nearly all responses leave in one.
"""

from __future__ import annotations

import _socket
import os
import sys
from errno import ECONNRESET, EINVAL
from typing import Final

import gevent
from gevent.socket import wait_read, wait_write

from parked.server.connection import Connection

#: Bytes of one request or response that pass before others get their turn: a client with a fast network
#: never makes us wait, and so would keep the process for itself.
BYTES_A_TURN: Final = 1 << 20
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
    while rest:
        _wait_until_writable(connection, timeout)
        try:
            rest = rest[connection.sock.send(rest) :]
        except BlockingIOError:
            pass


def send_file(connection: Connection, fd: int, offset: int, count: int, timeout: float = 0) -> int:
    """Send *count* bytes of the file *fd* from *offset*, waiting as `send_all` does.

    Without a copy through this process (sendfile(2)), unless it is to be encrypted here. Returns the bytes
    sent, fewer only if the file ended before.

    :raises OSError: as `send_all`.
    """
    plain = isinstance(connection.sock, _socket.socket)
    left = count
    while left:
        try:
            if plain:
                sent = os.sendfile(connection.sock.fileno(), fd, offset, min(left, BYTES_A_TURN))
            else:
                data = os.pread(fd, min(left, _RECV_BYTES), offset)
                send_all(connection, data, timeout)
                sent = len(data)
        except BlockingIOError:
            _wait_until_writable(connection, timeout)
            continue
        except OSError as error:
            if error.errno != EINVAL or not plain:
                raise
            plain = False  # a file system whose files cannot be sent in that way
            continue
        if not sent:
            break
        offset += sent
        left -= sent
        if left:
            gevent.sleep(0)
    return count - left


def _wait_until_writable(connection: Connection, timeout: float) -> None:
    too_slow = WriteTimeoutError(ECONNRESET, "the client does not read")
    wait_write(connection.sock.fileno(), timeout or None, too_slow)


class ConnectionReader:
    """What pywsgi calls *rfile*: first the bytes received with the request head, then the socket.

    :param timeout: seconds to wait for the next bytes, 0 for ever; then reading raises `ClientTimeoutError`.
    """

    __slots__ = ("_unshared", "closed", "connection", "timeout", "used")

    def __init__(self, connection: Connection, timeout: float = 0) -> None:
        self.connection = connection
        self.timeout = timeout
        self.closed = False
        #: Somebody has read from it.
        self.used = False
        self._unshared = 0  # bytes received since others had their turn

    def _receive(self) -> bytes:
        if self._unshared >= BYTES_A_TURN:
            self._unshared = 0
            gevent.sleep(0)
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
                self._unshared = 0
                continue
            self._unshared += len(data)
            if len(data) == _RECV_BYTES:
                self.connection.pending = True  # the edge is used up, though more may be waiting
            return data

    def read(self, size: int | None = -1) -> bytes:
        """*size* bytes, fewer only at the end of the input; all of it if negative."""
        self.used = True
        connection = self.connection
        held = connection.buffer
        limit = size if size is not None and size >= 0 else None
        if limit is not None and len(held) >= limit:
            connection.buffer = held[limit:]
            return held[:limit]
        parts = [held]
        connection.buffer = b""
        missing = -1 if limit is None else limit - len(held)
        while missing and (data := self._receive()):
            if 0 <= missing < len(data):
                connection.buffer = data[missing:]
                data = data[:missing]
            parts.append(data)
            if missing > 0:
                missing -= len(data)
        return b"".join(parts)

    def readline(self, size: int | None = -1) -> bytes:
        """One line with its LF, at most *size* bytes of it unless that is negative."""
        self.used = True
        connection = self.connection
        left = size if size is not None and size >= 0 else sys.maxsize
        parts: list[bytes] = []
        data = connection.buffer
        while True:
            end = data.find(b"\n", 0, left) + 1 or min(left, len(data))
            parts.append(data[:end])
            connection.buffer = data[end:]
            left -= end
            if not left or connection.buffer or data[:end].endswith(b"\n"):
                break
            data = self._receive()
            if not data:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        self.closed = True
