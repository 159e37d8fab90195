"""One TCP (or TLS) connection of a user.

A raw non-blocking descriptor: gevent's socket object with its two watchers costs several times the memory,
and its waiting starts and stops a watcher per request. Even `_socket.socket` would be 48 bytes for each, so
there is one only where more than reading and writing is asked for. Waiting is
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
from contextlib import contextmanager
from posix import close, read, write  # not those of `os`: gevent's close asks the loop for watchers first
from typing import TYPE_CHECKING, Any, Protocol

from parked.loadtest.client.errors import (
    BadResponse,
    ClosedByPeer,
    ConnectFailed,
    CutOff,
    ReceiveFailed,
    Refused,
    SendFailed,
    TimedOut,
    TlsFailed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parked.loadtest.client.readiness import Readiness
    from parked.loadtest.client.source_address import SourceAddresses

#: linux/in.h; not in Python's socket module before 3.12. Leaves the choice of the port to connect(), which
#: knows the destination and so can use a port again that is taken towards another one. ip(7), Linux 4.2.
IP_BIND_ADDRESS_NO_PORT = 24

#: Bytes asked for in one receive. A short read means that the socket is drained for now.
RECEIVE_BYTES = 65536
#: Bytes asked for first where small pieces come: Python allocates what is asked for.
SMALL_BYTES = 4096
#: Bytes looked at for the status of an answer that comes before its request is sent.
PEEK_BYTES = 4096
#: Seconds that a server may take to read on of a request that it has begun to answer.
READS_ON_S = 1.0
#: For a time without a bound.
FAR = float("inf")


class AnsweredEarly(Exception):
    """The response began before the request was sent to its end."""


class Owner(Protocol):
    """Whose connection it is."""

    def lost(self, connection: Connection) -> None:
        """The peer has closed it while nobody waited on it. Called in the hub."""


class Connection:
    """An open connection. Create with :meth:`open`.

    :ivar hung_up: the peer has closed its sending side; what is buffered can still be read, nothing more will
        come.
    :cvar chats: something may come that is no part of an answer, so that an event says nothing about one.
    """

    __slots__ = ("_owner", "_readiness", "fd", "hung_up", "ready", "waiter")

    chats = False

    def __init__(self, fd: int, readiness: Readiness, owner: Owner) -> None:
        self._readiness = readiness
        self._owner = owner
        self.fd = fd
        self.waiter: Any = None
        self.ready = False
        self.hung_up = False

    @classmethod
    def open(
        cls,
        family: int,
        address: tuple[Any, ...],
        *,
        readiness: Readiness,
        sources: SourceAddresses | None,
        timeout_s: float,
        owner: Owner,
        tls_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> Connection:
        """Connect, and shake hands if a TLS context is given.

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
            if tls_context is None:
                connection = Connection(sock.fileno(), readiness, owner)
            else:
                connection = TlsConnection(sock.fileno(), readiness, owner, tls_context, server_hostname)
            readiness.register(connection, room=error_number == errno.EALREADY)
            if error_number == errno.EALREADY:
                readiness.wait(connection, timeout_s)
                if error_number := sock.getsockopt(SOL_SOCKET, SO_ERROR):
                    raise _not_connected(error_number)
                connection.ready = True  # the event may have told of a first byte too
            if isinstance(connection, TlsConnection):
                connection.shake_hands(timeout_s)
        except BaseException as error:
            if connection is not None:
                connection.close()
            else:
                sock.close()
            if isinstance(error, ssl.SSLError):
                raise TlsFailed(f"TLS: {error.reason or error}") from None
            if isinstance(error, TimedOut):
                raise TimedOut("connecting took too long") from None
            if isinstance(error, OSError) and not isinstance(error, ConnectFailed):
                raise ConnectFailed(str(error.strerror or error)) from None
            raise
        finally:
            if connection is not None:
                sock.detach()
        return connection

    @contextmanager
    def as_socket(self) -> Iterator[socket]:
        """It as a socket object, for what a descriptor can't do."""
        sock = socket(fileno=self.fd)
        try:
            yield sock
        finally:
            sock.detach()

    @property
    def source(self) -> str:
        """The local address, for reports."""
        with self.as_socket() as sock:
            host = sock.getsockname()[0]
            return f"[{host}]" if sock.family == AF_INET6 else str(host)

    def close(self) -> None:
        """Close; the peer sees an orderly end. Idempotent."""
        if self.fd >= 0:
            self._readiness.unregister(self)
            close(self.fd)
            self.fd = -1

    def close_lost(self) -> None:
        """The peer closed while nobody waited: free the descriptor now, tell the owner."""
        self.close()
        self._owner.lost(self)

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
        try:
            sent = write(self.fd, data)
            if sent == len(data):
                return
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise _broken(error, SendFailed) from None
        self._send_rest(memoryview(data)[sent:], timeout_s, deadline)

    def _send_rest(self, view: memoryview, timeout_s: float, deadline: float) -> None:
        answered = False
        self._readiness.watch_room(self)
        while view:
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
                view = view[write(self.fd, view) :]
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
            came = self._look_ahead()
        except OSError:  # nothing there, or an end of which the next send tells
            return False
        while came.startswith(b"HTTP/1.1 1"):  # interim: the request goes on (RFC 9110, 15.2)
            came = came.partition(b"\r\n\r\n")[2]
        if came[9:10] >= b"3":
            self.ready = True
            raise AnsweredEarly
        return bool(came)

    def _look_ahead(self) -> bytes:
        """What has come, without taking it. Raises OSError."""
        with self.as_socket() as sock:
            return sock.recv(PEEK_BYTES, MSG_PEEK)

    def check_quiet(self) -> None:
        """Between two requests: see whether bytes have come that none has asked for.

        They would pass for the next response. Raises :class:`BadResponse` for such bytes,
        :class:`ClosedByPeer` or :class:`ReceiveFailed`.
        """
        if self.ready and self._unasked():
            raise BadResponse("bytes that no request has asked for")

    def _unasked(self) -> bytes:
        self.ready = False
        try:
            data = read(self.fd, RECEIVE_BYTES)
        except BlockingIOError:  # an event whose bytes the last receive had taken, or room for sending
            return b""
        except OSError as error:
            raise _broken(error, ReceiveFailed) from None
        if not data:
            raise ClosedByPeer("closed by the server")
        return data

    def receive(self, timeout_s: float, _deadline: float = FAR) -> bytes:
        """Some bytes, at least one. Raises :class:`ClosedByPeer`, :class:`ReceiveFailed` or
        :class:`TimedOut`.

        :param _deadline: here it takes one wait, after which the caller may look at the clock.
        """
        # The answer to a request that was just sent is never there yet: wait first, and save the receive that
        # would say so. Nothing is missed, since an event that came before is kept in `ready`.
        while True:
            if not self.hung_up:
                self._readiness.wait(self, timeout_s)
            try:
                data = read(self.fd, RECEIVE_BYTES)
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

    def receive_now(self) -> bytes:
        """What has come, for who listens without a greenlet; nothing if nothing has. Raises as `receive`.

        `ready` says that there is more: no further event will.
        """
        self.ready = False
        try:
            data = read(self.fd, SMALL_BYTES)
        except BlockingIOError:
            if self.hung_up:
                raise ClosedByPeer("closed by the server") from None
            return b""
        except OSError as error:
            raise _broken(error, ReceiveFailed) from None
        if not data:
            raise ClosedByPeer("closed by the server")
        if self.hung_up:
            self.ready = True
        elif len(data) == SMALL_BYTES:
            self.ready = True
            try:
                data += read(self.fd, RECEIVE_BYTES)
            except OSError:
                pass  # what is wrong will be so the next time
        return data


class InUse(RuntimeError):
    """A second request at the same time."""


class TlsConnection(Connection):
    """TLS over memory buffers, so that the descriptor beneath stays the same raw one.

    A TLS record may hold more than was asked for: what is left stays in `_incoming` and is handed out first.
    """

    __slots__ = ("_ahead", "_incoming", "_object", "_outgoing")

    #: Session tickets come after the handshake, unasked.
    chats = True

    def __init__(
        self,
        fd: int,
        readiness: Readiness,
        owner: Owner,
        context: ssl.SSLContext,
        server_hostname: str | None,
    ) -> None:
        super().__init__(fd, readiness, owner)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        #: Read, but not handed out.
        self._ahead = b""
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)

    def shake_hands(self, timeout_s: float) -> None:
        deadline = time.perf_counter() + timeout_s
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._more(timeout_s, deadline)
            else:
                self._flush(timeout_s, deadline)
                return

    def _flush(self, timeout_s: float, deadline: float = FAR) -> None:
        if self._outgoing.pending:
            super().send(self._outgoing.read(), timeout_s, deadline)

    def _more(self, timeout_s: float, deadline: float) -> None:
        """Bytes of a record: a server may take any number of waits for one, or send such as say nothing."""
        self._flush(timeout_s, deadline)  # a handshake or key update may ask for an answer
        self._incoming.write(super().receive(timeout_s))
        if time.perf_counter() > deadline:
            raise TimedOut("the whole response took too long")

    def close(self) -> None:
        """With the record that says our end (close_notify; RFC 8446, 6.1). The peer's is not waited for."""
        if self.fd >= 0:
            try:
                self._object.unwrap()
            except (ssl.SSLError, ValueError):
                pass  # ours is written, the peer's still to come; or there was no handshake
            try:
                write(self.fd, self._outgoing.read())
            except OSError:
                pass  # it has left, or does not read
        super().close()

    def send(self, data: bytes, timeout_s: float, deadline: float = FAR) -> None:
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            raise SendFailed(f"TLS: {error.reason or error}") from None
        super().send(self._outgoing.read(), timeout_s, deadline)

    def _look_ahead(self) -> bytes:
        self._incoming.write(read(self.fd, RECEIVE_BYTES))
        self._ahead = self._read() or b""
        return self._ahead

    def check_quiet(self) -> None:
        if self.ready:
            self._incoming.write(self._unasked())
        data = self._read()
        self._flush(0.0)
        if data:
            raise BadResponse("bytes that no request has asked for")

    def receive(self, timeout_s: float, deadline: float = FAR) -> bytes:
        """As above; :class:`TimedOut` also past the deadline, on the `time.perf_counter` scale."""
        while (data := self._read()) is None:
            try:
                self._more(timeout_s, deadline)
            except ClosedByPeer as end:
                # Without a close_notify anybody may have ended it (RFC 9112, 9.8).
                raise CutOff(str(end)) from None
        return data

    def receive_now(self) -> bytes:
        parts: list[bytes] = []
        try:
            self._incoming.write(super().receive_now())
        except ClosedByPeer as end:
            raise CutOff(str(end)) from None
        try:
            while (part := self._read()) is not None:
                parts.append(part)
        except ClosedByPeer:
            if not parts:
                raise
            self.ready = self.hung_up = True  # what came before counts, then the end does
        return b"".join(parts)

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


def in_use() -> InUse:
    return InUse(
        "another greenlet is in the middle of a request of this user: a KeepAliveUser is one connection, "
        "and HTTP/1.1 answers one request at a time"
    )


def _not_connected(number: int) -> ConnectFailed:
    return (Refused if number == errno.ECONNREFUSED else ConnectFailed)(os.strerror(number))


def _broken(error: OSError, failure: type[ReceiveFailed | SendFailed]) -> Exception:
    if error.errno in (errno.ECONNRESET, errno.EPIPE):
        return CutOff("reset by the server")
    return failure(os.strerror(error.errno or 0))
