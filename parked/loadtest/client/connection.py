"""One TCP (or TLS) connection of a user.

A raw non-blocking `_socket.socket`: gevent's socket object with its two watchers costs several times the
memory, and its waiting starts and stops a watcher a request. Waiting is
:mod:`parked.loadtest.client.readiness`'s.
"""

from __future__ import annotations

import errno
import os
import ssl
import time
from _socket import (
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_TCP,
    MSG_PEEK,
    SO_ERROR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    socket,
)
from typing import TYPE_CHECKING, Any

from parked.loadtest.client.errors import (
    BadResponse,
    ClosedByPeer,
    ConnectFailed,
    CutOff,
    ReceiveFailed,
    Refused,
    SendFailed,
    TimedOut,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from parked.loadtest.client.readiness import Readiness
    from parked.loadtest.client.source_address import SourceAddresses

#: linux/in.h; not in Python's socket module before 3.12. Leaves the choice of the port to connect(), which
#: knows the destination and so can use a port again that is taken towards another one. ip(7), Linux 4.2.
IP_BIND_ADDRESS_NO_PORT = 24

#: Bytes asked for in one receive. A short read means that the socket is drained for now.
RECEIVE_BYTES = 65536
#: Bytes looked at for the status of an answer that comes before its request is sent.
PEEK_BYTES = 4096
#: Seconds that a server may take to read on of a request that it has begun to answer.
READS_ON_S = 1.0
#: For a time without a bound.
FAR = float("inf")


class AnsweredEarly(Exception):
    """The response began before the request was sent to its end."""


class Connection:
    """An open connection. Create with :meth:`open`.

    :ivar hung_up: the peer has closed its sending side; what is buffered can still be read, nothing more will
    come.
    """

    __slots__ = ("_on_lost", "_readiness", "_sock", "fd", "hung_up", "ready", "tls", "waiter")

    def __init__(self, sock: socket, readiness: Readiness, on_lost: Callable[[Connection], None]) -> None:
        self._sock = sock
        self._readiness = readiness
        self._on_lost = on_lost
        self.fd = sock.fileno()
        self.waiter: Any = None
        self.ready = False
        self.hung_up = False
        self.tls: TlsLayer | None = None

    @classmethod
    def open(
        cls,
        family: int,
        address: tuple[Any, ...],
        *,
        readiness: Readiness,
        sources: SourceAddresses | None,
        timeout_s: float,
        on_lost: Callable[[Connection], None],
        tls_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> Connection:
        """Connect, and shake hands if a TLS context is given.

        `on_lost` is called, in the hub, when the peer closes the connection while nobody waits on it.
        Raises :class:`ConnectFailed` or :class:`TimedOut`.
        """
        try:
            sock = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        except OSError as error:
            raise ConnectFailed(f"socket: {os.strerror(error.errno or 0)}") from None
        connection = None
        try:
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            if sources is not None:
                sock.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((sources.next(), 0))
            error_number = sock.connect_ex(address)
            if error_number == errno.EINPROGRESS:
                # On loopback the kernel has shaken hands with itself by now, and says so if asked: no wait.
                error_number = sock.connect_ex(address)
            if error_number not in (0, errno.EALREADY):
                raise _not_connected(error_number)
            connection = cls(sock, readiness, on_lost)
            readiness.register(connection)
            if error_number == errno.EALREADY:
                readiness.wait(connection, timeout_s)
                if error_number := sock.getsockopt(SOL_SOCKET, SO_ERROR):
                    raise _not_connected(error_number)
                connection.ready = True  # the event may have told of a first byte too
            if tls_context is not None:
                connection.tls = TlsLayer(tls_context, server_hostname)
                connection.tls.handshake(connection, timeout_s)
        except BaseException as error:
            if connection is None:
                sock.close()
            else:
                connection.close()
            if isinstance(error, ssl.SSLError):
                raise ConnectFailed(f"TLS: {error.reason or error}") from None
            if isinstance(error, TimedOut):
                raise TimedOut("connecting took too long") from None
            if isinstance(error, OSError) and not isinstance(error, ConnectFailed):
                raise ConnectFailed(str(error.strerror or error)) from None
            raise
        return connection

    @property
    def source(self) -> str:
        """The local address, for reports."""
        host = self._sock.getsockname()[0]
        return f"[{host}]" if self._sock.family == AF_INET6 else str(host)

    def close(self) -> None:
        """Close; the peer sees an orderly end. Idempotent."""
        if self.fd >= 0:
            self._readiness.unregister(self)
            self.fd = -1
            if self.tls is not None:
                try:
                    self._sock.send(self.tls.farewell())
                except OSError:
                    pass  # it has left, or does not read
            self._sock.close()

    def close_lost(self) -> None:
        """The peer closed while nobody waited: free the descriptor now, tell the owner."""
        self.close()
        self._on_lost(self)

    @property
    def closed(self) -> bool:
        return self.fd < 0

    def send(self, data: bytes, timeout_s: float, deadline: float = FAR) -> None:
        """Hand all of `data` to the kernel.

        :param timeout_s: seconds in which the server has to take some of it.
        :param deadline: when all of it has to be sent, on the `time.perf_counter` scale.
        :raises RequestFailure: :class:`SendFailed`, :class:`CutOff` or :class:`TimedOut`.
        :raises AnsweredEarly: a response came before the end was sent, and the server reads no further.
        """
        if self.tls is not None:
            data = self.tls.encrypt(data)
        self.send_raw(data, timeout_s, deadline)

    def receive(self, timeout_s: float) -> bytes:
        """Some bytes, at least one. Raises :class:`ClosedByPeer`, :class:`ReceiveFailed` or
        :class:`TimedOut`."""
        if self.tls is not None:
            return self.tls.receive(self, timeout_s)
        return self.receive_raw(timeout_s)

    def send_raw(self, data: bytes, timeout_s: float, deadline: float = FAR) -> None:
        try:
            sent = self._sock.send(data)
            if sent == len(data):
                return
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise _broken(error, SendFailed) from None
        view = memoryview(data)
        answered = False
        while sent < len(data):
            try:
                self._readiness.wait(self, min(timeout_s, READS_ON_S) if answered else timeout_s)
            except TimedOut:
                if not answered:
                    raise
                self.ready = True
                raise AnsweredEarly from None
            if time.perf_counter() > deadline:
                raise TimedOut("sending the request took too long")
            try:
                sent += self._sock.send(view[sent:])
            except BlockingIOError:
                pass
            except OSError as error:
                raise _broken(error, SendFailed) from None
            # Each time: one event may tell of room and of an answer, and will not come again.
            answered = answered or self._answer_has_begun()
        # The response may have come meanwhile, and its event have ended one of these waits.
        self.ready = True

    def _answer_has_begun(self) -> bool:
        """Whether a final response is there, while its request is not sent to the end.

        Raises :class:`AnsweredEarly` for one that refuses (RFC 9112, 9.5). Others may come from a server that
        reads on.
        """
        try:
            came = (
                self._sock.recv(PEEK_BYTES, MSG_PEEK) if self.tls is None else self.tls.look_ahead(self._sock)
            )
        except OSError:  # nothing there, or an end of which the next send tells
            return False
        while came.startswith(b"HTTP/1.1 1"):  # interim: the request goes on (RFC 9110, 15.2)
            came = came.partition(b"\r\n\r\n")[2]
        if came[9:10] >= b"3":
            self.ready = True
            raise AnsweredEarly
        return bool(came)

    def check_quiet(self) -> None:
        """Between two requests: see whether bytes have come that none has asked for.

        They would pass for the next response. Raises :class:`BadResponse` for such bytes,
        :class:`ClosedByPeer` or :class:`ReceiveFailed`.
        """
        data = b""
        if self.ready:
            self.ready = False
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:  # an event whose bytes the last receive had taken, or room for sending
                pass
            except OSError as error:
                raise _broken(error, ReceiveFailed) from None
            else:
                if not data:
                    raise ClosedByPeer("closed by the server")
        if self.tls is not None:
            data = self.tls.unasked(self, data)
        if data:
            raise BadResponse("bytes that no request has asked for")

    def receive_raw(self, timeout_s: float) -> bytes:
        # The answer to a request that was just sent is never there yet: wait first, and save the receive that
        # would say so. Nothing is missed, since an event that came before is kept in `ready`.
        while True:
            if not self.hung_up:
                self._readiness.wait(self, timeout_s)
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                if self.hung_up:
                    raise ClosedByPeer("closed by the server") from None
                continue
            except OSError as error:
                raise _broken(error, ReceiveFailed) from None
            if not data:
                raise ClosedByPeer("closed by the server")
            if len(data) == RECEIVE_BYTES:
                self.ready = True  # not drained, and no further event will say so
            return data


def in_use() -> RuntimeError:
    return RuntimeError(
        "another greenlet is in the middle of a request of this user: a KeepAliveUser is one connection, "
        "and HTTP/1.1 answers one request at a time"
    )


def _not_connected(number: int) -> ConnectFailed:
    return (Refused if number == errno.ECONNREFUSED else ConnectFailed)(os.strerror(number))


def _broken(error: OSError, failure: type[ReceiveFailed | SendFailed]) -> Exception:
    if error.errno in (errno.ECONNRESET, errno.EPIPE):
        return CutOff("reset by the server")
    return failure(os.strerror(error.errno or 0))


class TlsLayer:
    """TLS over memory buffers, so that the socket beneath stays the same raw one.

    A TLS record may hold more than was asked for: what is left stays in `_incoming` and is handed out first.
    """

    __slots__ = ("_ahead", "_incoming", "_object", "_outgoing")

    def __init__(self, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        #: Read, but not handed out.
        self._ahead = b""
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)

    def handshake(self, connection: Connection, timeout_s: float) -> None:
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._flush(connection, timeout_s)
                self._incoming.write(connection.receive_raw(timeout_s))
            else:
                self._flush(connection, timeout_s)
                return

    def _flush(self, connection: Connection, timeout_s: float) -> None:
        if self._outgoing.pending:
            connection.send_raw(self._outgoing.read(), timeout_s)

    def encrypt(self, data: bytes) -> bytes:
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            raise SendFailed(f"TLS: {error.reason or error}") from None
        return self._outgoing.read()

    def farewell(self) -> bytes:
        """The record that says our end (close_notify; RFC 8446, 6.1). The peer's own is not waited for."""
        try:
            self._object.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # ours is written, the peer's still to come; or there was no handshake
        return self._outgoing.read()

    def look_ahead(self, sock: socket) -> bytes:
        """What has come and is not handed out; takes in what is there, without waiting."""
        self._incoming.write(sock.recv(RECEIVE_BYTES))
        self._ahead = self._read() or b""
        return self._ahead

    def unasked(self, connection: Connection, data: bytes) -> bytes:
        """What is in the records of `data` and in those that were left, without waiting."""
        self._incoming.write(data)
        data = self._read() or b""
        if self._outgoing.pending:
            connection.send_raw(self._outgoing.read(), 0.0)
        return data

    def receive(self, connection: Connection, timeout_s: float) -> bytes:
        while (data := self._read()) is None:
            # A key update or session ticket may ask for an answer; it leaves before the wait.
            self._flush(connection, timeout_s)
            try:
                self._incoming.write(connection.receive_raw(timeout_s))
            except ClosedByPeer as end:
                # Without a close_notify anybody may have ended it (RFC 9112, 9.8).
                raise CutOff(str(end)) from None
        return data

    def _read(self) -> bytes | None:
        """Some bytes; None if more records are needed for that."""
        ahead, self._ahead = self._ahead, b""
        if ahead:
            return ahead
        try:
            data = self._object.read(RECEIVE_BYTES)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            data = b""
        except ssl.SSLError as error:
            raise ReceiveFailed(f"TLS: {error.reason or error}") from None
        if not data:
            raise ClosedByPeer("closed by the server")
        return data
