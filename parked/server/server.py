"""A drop-in `pywsgi.WSGIServer` whose idle keep-alive connections cost next to nothing.

    from parked.server import KeepAliveWSGIServer as WSGIServer

What is kept of pywsgi, what changes:

    constructor, start, stop, serve_forever, close, environ    kept; keyword options are added
    handler hooks (get_environ, run_application, ...)          kept, see `parked.server.handler`
    wsgi.file_wrapper                                          added, see `parked.server.files`
    handlers that read requests themselves, stock handlers     kept: a greenlet a connection, as in pywsgi
    *spawn* as a pool or a number                              bounds requests in flight, not connections
    one greenlet, reader and handler a connection              only while a request is served
    stop()                                                     also closes the idle connections
    lenient HTTP                                               refused, see `parked.server.request`
"""

from __future__ import annotations

import _socket
import errno
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, ClassVar, Final

import gevent
from gevent import pywsgi
from gevent.event import Event
from gevent.socket import socket as gevent_socket

from parked.server.connection import Connection, shared_address
from parked.server.dispatch import RequestGreenlets
from parked.server.fields import error_response
from parked.server.files import FileWrapper
from parked.server.handler import KeepAliveWSGIHandler
from parked.server.handshakes import Handshakes
from parked.server.limits import Limits
from parked.server.parking import Parking
from parked.server.pending import PendingResponse
from parked.server.request import BadRequestError, HeadScan, parse_head
from parked.server.response import Counts
from parked.server.stream import send_all
from parked.server.tls import TLSSocket
from parked.server.turns import of_hub
from parked.server.waiting import PendingResponses

#: Seconds that a parked connection is kept. Long, for it costs so little, and since a client that reuses a
#: connection in the moment we close it sees an error: our patience has to outlast the other side's, be that a
#: proxy (60 s is usual), a browser (up to 300 s) or a test user that thinks for 270 s.
IDLE_TIMEOUT_S: Final = 900.0
#: Seconds that a client may take for a request head, from the first byte on; then 408 (RFC 9110, 15.5.9).
#: Lower cuts off slow links, higher lets half requests pile up.
HEADER_TIMEOUT_S: Final = 20.0
#: Seconds without a byte of the announced content; then 408.
BODY_TIMEOUT_S: Final = 60.0
#: Seconds in which a client takes not one byte of a response; then the connection is closed. It holds a
#: greenlet.
WRITE_TIMEOUT_S: Final = 60.0
#: Bytes asked for at once. A request is mostly smaller; Python allocates this much for each call.
RECV_BYTES: Final = 8192
#: Requests served in a row on one connection before others get their turn (pipelining only), if they do not
#: take longer than a turn.
REQUESTS_A_TURN: Final = 32
#: Connections taken in one go before the requests get their turn.
ACCEPTS_A_WAKEUP: Final = 64
#: Seconds after which accept is tried again when there was no descriptor or no place for it.
ACCEPT_RETRY_S: Final = 0.1
#: Seconds from one line about a pause to the next. At the edge, each client that leaves ends one and the next
#: that comes begins another.
PAUSE_LINES_S: Final = 10.0
#: Refused connections that may linger for their 503 to be read; the rest is closed at once.
MAX_REFUSED_LINGERING: Final = 16

#: Bound on the accepting that comes before retiring, in wake-ups of `ACCEPTS_A_WAKEUP`.
MAX_RETIRING_WAKEUPS: Final = 200

_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)
_FULL_RESPONSE: Final = error_response(HTTPStatus.SERVICE_UNAVAILABLE)


class KeepAliveWSGIServer(pywsgi.WSGIServer):  # type: ignore[misc]
    """`pywsgi.WSGIServer` with parked connections, timeouts, bounds and strict HTTP/1.1.

    :param idle_timeout: seconds that a connection may be idle between requests; 0 for ever.
    :param header_timeout: seconds for a request head, from its first byte; 0 for ever.
    :param body_timeout: seconds to wait for the next bytes of request content; 0 for ever.
    :param write_timeout: seconds to wait for a client that does not read its response; 0 for ever.
    :param max_connections: connections at once; more get a 503. 0 for no bound but the descriptors.
    :param max_pending: pending responses at once (docs/pending.md); more get a 503. 0 for no bound.
    :param limits: sizes that a request may have.
    :param logs_json: write the access log as JSON, an object a line, instead of in pywsgi's form.
    """

    handler_class = KeepAliveWSGIHandler
    base_env: ClassVar[dict[str, Any]] = {**pywsgi.WSGIServer.base_env, "wsgi.file_wrapper": FileWrapper}
    max_accept = ACCEPTS_A_WAKEUP

    def __init__(
        self,
        listener: Any,
        application: Any = None,
        backlog: int | None = None,
        spawn: Any = "default",
        log: Any = "default",
        error_log: Any = "default",
        handler_class: Any = None,
        environ: dict[str, Any] | None = None,
        *,
        idle_timeout: float = IDLE_TIMEOUT_S,
        header_timeout: float = HEADER_TIMEOUT_S,
        body_timeout: float = BODY_TIMEOUT_S,
        write_timeout: float = WRITE_TIMEOUT_S,
        max_connections: int = 0,
        max_pending: int = 0,
        limits: Limits | None = None,
        logs_json: bool = False,
        **ssl_args: Any,
    ) -> None:
        self.body_timeout = body_timeout
        self.write_timeout = write_timeout
        self.max_connections = max_connections
        self.limits = limits if limits is not None else Limits()
        self.turns = of_hub()
        #: No new connections; responses end theirs.
        self.draining = False
        self.logs_json = logs_json
        #: Set when the last connection of a draining server is closed.
        self.drained = Event()
        #: Counts responses, if anybody wants to know.
        self.statistics: Counts | None = None
        # Counters, since the start.
        self.accepted = 0
        self.rejected = 0
        self.requests = 0
        self.bad_requests: dict[int, int] = {}
        self.timed_out_heads = 0
        self.timed_out_bodies = 0
        self.timed_out_writes = 0
        self.parking = Parking(
            self._on_ready, self._on_header_timeout, self._check_drained, idle_timeout, header_timeout
        )
        self.pending = PendingResponses(
            self.parking,
            self._serve_soon,
            self._finish,
            self._on_pending_end,
            lambda line: self.error_log.write(line),
            write_timeout,
            max_pending,
        )
        self._handshakes = Handshakes(self._shake_hands)
        self._evicting = False  # no connection is parked any more
        # Connections that `parking` does not know: in their handshake, or with a handler that reads itself.
        self._outside = 0
        self._paused_since: float | None = None
        self._tells_pause = False
        self._next_pause_line = 0.0  # on the monotonic clock
        self._dispatch: RequestGreenlets | None = None
        super().__init__(
            listener, application, backlog, spawn, log, error_log, handler_class, environ, **ssl_args
        )
        #: Whether anybody reads the access log; if not, its lines are not made.
        self.logs_requests = not isinstance(self.log, pywsgi._NoopLog)
        self._parks = _can_park(self.handler_class)
        if not self._parks:
            name = f"{self.handler_class.__module__}.{self.handler_class.__qualname__}"
            self.error_log.write(
                f"{name} reads its connections itself: each keeps a greenlet, none is parked\n"
            )

    # -- start and stop

    def set_spawn(self, spawn: Any) -> None:
        super().set_spawn(spawn)
        # The pool bounds the requests in flight; being full is no reason not to accept.
        if _can_park(self.handler_class):
            self.__dict__.pop("full", None)

    def init_socket(self) -> None:
        super().init_socket()
        self.socket.setblocking(False)  # a listener that was handed in may block, and so would the hub
        if self.socket.family in (_socket.AF_INET, _socket.AF_INET6):
            # Accepted sockets inherit it. A response is one send; what is left of Nagle's algorithm is the 40
            # ms that it waits for a delayed ACK when a streamed response takes two.
            self.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self.draining = self._evicting = False
        self.drained.clear()
        self.pending.open()
        limit = getattr(self.pool, "size", None) or 0
        self._dispatch = RequestGreenlets(self._serve, self._spawn, limit)

    def stop(self, timeout: float | None = None) -> None:
        """Stop accepting, close the idle connections, and let the requests in flight finish.

        As in pywsgi, only a pool is waited for, *timeout* seconds at most. See `drain` for the others.
        """
        self._begin_drain()
        super().stop(timeout)

    def drain(self, timeout: float) -> bool:
        """Stop and wait for the requests in flight, *timeout* seconds at most; whether all have finished."""
        self._begin_drain()
        self.close()
        return bool(self.drained.wait(timeout))

    def retire(self) -> None:
        """Stop accepting; each connection's next response is its last, so that no client sees an error.

        `drained` is set when all are gone; with clients that think for long, that may take as long.
        """
        for _ in range(MAX_RETIRING_WAKEUPS):  # who is in the queue already is ours, if nobody shares it
            before = self.accepted
            self._do_read()
            if self.accepted == before:
                break
        self.draining = True
        self.close()
        self.parking.tell_when_empty()
        self.pending.stop()

    def _begin_drain(self) -> None:
        if self._evicting:
            return
        self.draining = self._evicting = True
        self.stop_accepting()
        if self._dispatch is not None:
            self._dispatch.stop()
        self.parking.drain()
        self.pending.stop()

    def _check_drained(self) -> None:
        if self.draining and not self.parking.count and not self._outside:
            self.drained.set()

    # -- accepting

    def _do_read(self) -> None:
        if not self._parks:
            super()._do_read()
            return
        for _ in range(self.max_accept):
            if self.full():
                self.stop_accepting()
                return
            if self.ssl_enabled and not self._handshakes.have_room():
                self._pause_accepting()
                return
            try:
                fd, address = self.socket._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:  # the client has left the queue already
                    continue
                self._accept_failed(error)
                return
            try:
                self._take(fd, address)
            except OSError as error:  # epoll(7): max_user_watches, or no memory
                self.rejected += 1
                self._accept_failed(error)
                return
            self._accept_succeeded()

    def _accept_failed(self, error: OSError) -> None:
        if self.is_fatal_error(error):
            self.close()
            self.error_log.write(f"{self} failed with {error}\n")
            return
        if self._paused_since is None:
            now = self._paused_since = time.monotonic()
            self._tells_pause = now >= self._next_pause_line
            if self._tells_pause:
                self._next_pause_line = now + PAUSE_LINES_S
                self.error_log.write(
                    f"accepting paused at {self.parking.count} connections: {error.strerror}\n"
                )
                if error.errno not in _OUT_OF_RESOURCES:
                    self.loop.handle_error(self, type(error), error, error.__traceback__)
        self._pause_accepting()

    def _pause_accepting(self) -> None:
        self.stop_accepting()
        self._timer = self.loop.timer(ACCEPT_RETRY_S)
        self._timer.start(self._start_accepting_if_started)

    def _accept_succeeded(self) -> None:
        self.accepted += 1
        if self._paused_since is not None:
            seconds = time.monotonic() - self._paused_since
            self._paused_since = None
            if self._tells_pause:
                self.error_log.write(
                    f"accepting again after {seconds:.1f} s at {self.parking.count} connections\n"
                )

    def _take(self, fd: int, address: Any) -> None:
        listener = self.socket
        if self.max_connections and self.parking.count + self._outside >= self.max_connections:
            self._refuse(_socket.socket(listener.family, listener.type, listener.proto, fileno=fd), address)
        elif self.ssl_enabled:
            client = gevent_socket(listener.family, listener.type, listener.proto, fileno=fd)
            self._outside += 1
            self._handshakes.begin(client, address)
        else:
            sock = _socket.socket(listener.family, listener.type, listener.proto, fileno=fd)
            sock.setblocking(False)
            self._hold(Connection(sock, shared_address(address)))

    def _hold(self, connection: Connection) -> None:
        """:raises OSError: there is no room for it; it is closed."""
        try:
            self.parking.add(connection)
        except OSError:
            connection.sock.close()
            raise

    def _refuse(self, sock: Any, address: Any) -> None:
        """Full: say so in clear, over TLS by closing."""
        self.rejected += 1
        sock.setblocking(False)
        connection = Connection(sock, address)
        self._hold(connection)
        try:
            if not self.ssl_enabled:
                sock.send(_FULL_RESPONSE)
        except OSError:
            pass  # it has left
        if self.parking.count < self.max_connections + MAX_REFUSED_LINGERING:
            self.parking.linger(connection)
        else:
            self.parking.close(connection)

    def _shake_hands(self, client: Any, address: Any) -> None:
        try:
            with gevent.Timeout(self.parking.header_timeout or None):
                secured = self.wrap_socket(client, **self.ssl_args)
        except (
            OSError,
            gevent.Timeout,
            gevent.GreenletExit,
        ):  # not TLS, or nothing at all; a line for each would fill the disk
            client.close()
            return
        finally:
            self._outside -= 1
            self._check_drained()
        connection = Connection(TLSSocket(secured), shared_address(address))
        if self._evicting:
            secured.close()
            return
        try:
            self._hold(connection)
        except OSError:
            self.rejected += 1
            return
        # The first request may have come with the end of the handshake, into OpenSSL where no edge is seen.
        connection.busy = connection.pending = True
        self._serve_soon(connection)

    def handle(self, sock: Any, address: Any) -> None:
        """A connection whose handler reads for itself, from its first request to its last."""
        self._outside += 1
        try:
            super().handle(sock, address)
        finally:
            self._outside -= 1
            self._check_drained()

    # -- serving

    def figures(self) -> Iterator[tuple[str, int]]:
        """What this server counts: name and value, those of now first, then those since the start."""
        yield "connections", self.parking.count
        yield "active", self.active
        yield "accepted", self.accepted
        yield "rejected", self.rejected
        yield "idle_timeouts", self.parking.idle_timed_out
        yield "header_timeouts", self.timed_out_heads
        yield "body_timeouts", self.timed_out_bodies
        yield "write_timeouts", self.timed_out_writes
        yield from self.pending.figures()

    @property
    def active(self) -> int:
        """Requests in flight or waiting for a greenlet."""
        return self._dispatch.active if self._dispatch is not None else 0

    def _on_ready(self, connections: list[Connection]) -> None:
        assert self._dispatch is not None
        self._dispatch.put(connections)

    def _serve(self, connection: Connection) -> None:
        try:
            self._serve_requests(connection)
        except BaseException as error:
            self.loop.handle_error(self, type(error), error, error.__traceback__)
            self.parking.close(connection)

    def _serve_requests(self, connection: Connection) -> None:
        """Read and answer requests until the client pauses; then park."""
        parking = self.parking
        sock = connection.sock
        awaited = bool(connection.buffer)
        scan = parking.scans.get(connection) if awaited else None
        connection.pending = True  # the edge that has brought us here
        turns = REQUESTS_A_TURN
        while True:
            if connection.buffer:
                try:
                    head = parse_head(connection.buffer, self.limits, scan)
                except BadRequestError as error:
                    self._answer_bad_request(connection, error)
                    return
                if head is not None:
                    if awaited or scan is not None:
                        parking.head_complete(connection)
                        awaited, scan = False, None
                    self.requests += 1
                    handler = self.handler_class(connection, connection.address, self)
                    if not handler.handle_request(head):
                        self._finish(connection)
                        return
                    turns -= 1
                    if turns and not (connection.buffer and self.turns.over()):
                        continue
                    if connection.buffer or connection.pending:
                        assert self._dispatch is not None
                        self._dispatch.put_back(connection)
                        return
                elif scan is None:
                    scan = parking.scans[connection] = HeadScan()
            if not connection.pending and not connection.hung_up:
                if self._evicting:
                    parking.close(connection)
                    return
                parking.park(connection)
                return
            connection.pending = False
            try:
                data = sock.recv(RECV_BYTES)
            except BlockingIOError:
                connection.hung_up = False
                continue
            except OSError:
                data = b""  # reset by the client
            if not data:
                self.parking.close(connection)
                return
            if len(data) == RECV_BYTES:
                connection.pending = True  # there may be more, and no edge will tell
            connection.buffer = connection.buffer + data if connection.buffer else data

    def _serve_soon(self, connection: Connection) -> None:
        """As if an event had come for this busy connection."""
        self.loop.run_callback(self._on_ready, [connection])

    def _on_pending_end(self, pending: PendingResponse, connection: Connection) -> None:
        if self.logs_requests or self.statistics is not None:
            self.handler_class(connection, connection.address, self).note_pending(pending)

    def _finish(self, connection: Connection) -> None:
        """After the last response, unless it is still to come: close, such that the client can read it."""
        if connection.busy and connection.busy is not True:
            connection.busy.begin()
        elif connection.sock.fileno() >= 0:
            self.parking.linger(connection)

    def _answer_bad_request(self, connection: Connection, error: BadRequestError) -> None:
        self.bad_requests[error.status] = self.bad_requests.get(error.status, 0) + 1
        if self.statistics is not None:
            self.statistics.note_refusal(error.status)
        try:
            send_all(connection, error_response(error.status), self.write_timeout)
        except OSError:
            self.parking.close(connection)
            return
        self._finish(connection)

    def _on_header_timeout(self, connection: Connection) -> None:
        """In the hub: half a request has been waiting for too long."""
        self.timed_out_heads += 1
        if self.statistics is not None:
            self.statistics.note_refusal(HTTPStatus.REQUEST_TIMEOUT)
        try:
            connection.sock.send(error_response(HTTPStatus.REQUEST_TIMEOUT))
        except OSError:
            pass  # it does not read either
        self._finish(connection)


def _can_park(handler_class: Any) -> bool:
    """Whether *handler_class* leaves the reading of requests to the server."""
    if not (isinstance(handler_class, type) and issubclass(handler_class, KeepAliveWSGIHandler)):
        return False
    return all(
        getattr(handler_class, name) is getattr(KeepAliveWSGIHandler, name)
        for name in KeepAliveWSGIHandler.reading_hooks
    )
