"""Reading and writing one connection inside a request greenlet, waiting where the socket is not ready.

The waiting is gevent's own, with a watcher made for the occasion. That is slow and only for the rare case:
nearly all requests arrive in one piece and nearly all responses leave in one.
"""

from __future__ import annotations

import _socket
import os
import struct
import sys
from errno import ECONNRESET, EINVAL
from io import BytesIO
from typing import Any, Final

from gevent.socket import socket, wait_read, wait_write

from parked.server.connection import EDGE, HUNG_UP, Connection
from parked.server.tls import TLSSocket
from parked.server.turns import Turns, of_hub

#: Bytes that the kernel is given at once, in about 0.3 ms: it would take any number from us, or from a file,
#: as long as the client reads as fast.
MAX_SENT_BYTES: Final = 1 << 20
#: Bytes received or encrypted at once. The longest piece of work between two looks at the clock is to decode
#: so many.
RECV_BYTES: Final = 65536


class WriteTimeoutError(ConnectionResetError):
    """The client does not read its response; for pywsgi one of those who have left."""


class ClientTimeoutError(OSError):
    """The client kept us waiting for its content longer than it may; it gets a 408."""


def send_all(connection: Connection, data: bytes | bytearray | memoryview, timeout: float = 0) -> None:
    """Send *data*, waiting while the client does not read, *timeout* seconds a time (0: for ever).

    :raises OSError: the connection is lost; ECONNRESET also if the client has not read anything for
        *timeout*.
    """
    rest = memoryview(data)
    in_time = True
    while True:
        piece = rest[:MAX_SENT_BYTES]
        try:
            sent = connection.sock.send(piece)
        except BlockingIOError:
            sent = 0
        if not (sent or in_time):
            raise _too_slow()
        rest = rest[sent:]
        if not rest:
            return
        in_time = sent == len(piece) or _has_room(connection, timeout)
        of_hub().share()


def send_file(
    connection: Connection, turns: Turns, fd: int, offset: int, count: int, timeout: float = 0
) -> int:
    """Send *count* bytes of the file *fd* from *offset*, waiting as `send_all` does.

    Without a copy through this process (sendfile(2)), unless it is to be encrypted here. Returns the bytes
    sent, fewer only if the file ended before.

    :raises OSError: as `send_all`.
    """
    plain = isinstance(connection.sock, _socket.socket)
    left = count
    in_time = True
    while left:
        try:
            if plain:
                sent = os.sendfile(connection.sock.fileno(), fd, offset, min(left, MAX_SENT_BYTES))
            else:
                data = os.pread(fd, min(left, RECV_BYTES), offset)
                send_all(connection, data, timeout)
                sent = len(data)
        except BlockingIOError:
            if not in_time:
                raise _too_slow() from None
            in_time = _has_room(connection, timeout)
            continue
        except OSError as error:
            if error.errno != EINVAL or not plain:
                raise
            plain = False  # a file system whose files cannot be sent in that way
            continue
        if not sent:
            break
        in_time = True
        offset += sent
        left -= sent
        if left:
            turns.share()
    return count - left


def _has_room(connection: Connection, timeout: float) -> bool:
    """Wait for room. False if it is not reported in time, which the kernel does when a third of its buffer is
    free, or more: a megabyte. Who reads that slowly has made some all the same."""
    try:
        wait_write(connection.sock.fileno(), timeout or None, _too_slow())
    except WriteTimeoutError:
        return False
    return True


def _too_slow() -> WriteTimeoutError:
    return WriteTimeoutError(ECONNRESET, "the client does not read")


def reset_on_close(connection: Connection) -> None:
    """Have the client see that what it got is not all, where only the end of the connection would tell."""
    option = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: on, no time
    connection.sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, option)
    connection.reported |= HUNG_UP  # as good as: nothing is to be waited for
    connection.buffer = b""


class Whole:
    """What is read in pieces and wanted in one, put together as it comes.

    To join 64 MB at the end takes 75 ms, most of them the kernel's, for fresh pages.
    """

    __slots__ = ("_before", "_last")

    def __init__(self) -> None:
        self._before: BytesIO | None = None
        self._last = b""

    def add(self, piece: bytes) -> None:
        if self._last:
            if self._before is None:
                self._before = BytesIO()
            self._before.write(self._last)
        self._last = piece

    def taken(self) -> bytes:
        """All of it; once."""
        if self._before is None:
            return self._last
        self._before.write(self._last)
        return self._before.getvalue()  # no copy


class SharingSocket(socket):  # type: ignore[misc] # gevent has no type hints
    """A cooperative socket for one who talks another protocol on it.

    gevent's own comes back at once while there are bytes, and so its reader keeps the process for as long as
    the client sends faster than it reads.
    """

    __slots__ = ("_turns",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._turns = of_hub()

    def recv(self, *args: Any) -> bytes:
        self._turns.share()
        data: bytes = super().recv(*args)
        return data

    def recv_into(self, *args: Any) -> int:
        self._turns.share()
        size: int = super().recv_into(*args)
        return size

    def send(self, *args: Any, **timeout: Any) -> int:
        self._turns.share()
        size: int = super().send(*args, **timeout)
        return size


class ConnectionReader:
    """What pywsgi calls *rfile*: first the bytes received with the request head, then the socket.

    What is read stays in the connection's buffer until `settle`, so that a short read copies only itself.

    :param timeout: seconds to wait for the next bytes, 0 for ever; then reading raises `ClientTimeoutError`.
    """

    __slots__ = ("at", "closed", "connection", "failure", "timeout", "turns", "used")

    def __init__(self, connection: Connection, turns: Turns, timeout: float = 0) -> None:
        self.connection = connection
        self.timeout = timeout
        self.closed = False
        #: What was raised here because the client has left.
        self.failure: OSError | None = None
        #: Somebody has read from it.
        self.used = False
        #: Bytes of the connection's buffer that have been read.
        self.at = 0
        self.turns = turns

    @property
    def held(self) -> int:
        """Bytes received and not read."""
        return len(self.connection.buffer) - self.at

    def settle(self) -> None:
        """Leave the connection with what was not read."""
        self.connection.buffer = self.connection.buffer[self.at :]
        self.at = 0

    def more(self) -> bool:
        """Receive into the buffer, waiting for it; false at the end of the input."""
        connection = self.connection
        self.turns.share()
        while True:
            try:
                data = connection.sock.recv(RECV_BYTES)
                break
            except BlockingIOError:
                too_late = ClientTimeoutError("the request content did not come")
                wait_read(connection.sock.fileno(), self.timeout or None, too_late)
                self.turns.share()  # others may have come with the same poll
            except OSError as error:
                self.failure = error
                raise
        if len(data) == RECV_BYTES or (type(connection.sock) is TLSSocket and connection.sock.is_behind):
            connection.reported |= EDGE  # the edge is used up, though more may be waiting
        connection.buffer = connection.buffer[self.at :] + data
        self.at = 0
        return bool(data)

    def take(self, limit: int) -> bytes:
        """What is there, *limit* bytes at most; waits if there is nothing. Empty only at the end."""
        if self.held:
            self.turns.share()
        elif not self.more():
            return b""
        at = self.at
        self.at = min(at + limit, len(self.connection.buffer))
        return self.connection.buffer[at : self.at]

    def read(self, size: int | None = -1) -> bytes:
        """*size* bytes, fewer only at the end of the input; all of it if negative."""
        self.used = True
        missing = size if size is not None and size >= 0 else sys.maxsize
        whole = Whole()
        while missing and (data := self.take(missing)):
            whole.add(data)
            missing -= len(data)
        return whole.taken()

    def readline(self, size: int | None = -1) -> bytes:
        """One line with its LF, at most *size* bytes of it unless that is negative."""
        self.used = True
        missing = size if size is not None and size >= 0 else sys.maxsize
        whole = Whole()
        while missing and (self.held or self.more()):
            end = self.connection.buffer.find(b"\n", self.at, self.at + missing) + 1
            data = self.take(end - self.at if end else missing)
            whole.add(data)
            if end:
                break
            missing -= len(data)
        return whole.taken()

    def close(self) -> None:
        self.closed = True
