"""A drop-in `pywsgi.WSGIServer` whose idle keep-alive connections cost next to nothing.

    from parked.server import KeepAliveWSGIServer as WSGIServer

What is kept of pywsgi, what changes:

    constructor, start, stop, serve_forever, close, environ    kept; keyword options are added
    handler hooks (get_environ, run_application, ...)          kept, see `parked.server.handler`
    wsgi.file_wrapper                                          added, see `parked.server.files`
    handlers that read requests themselves, stock handlers     kept: one greenlet per connection, as in pywsgi
    *spawn* as a pool or a number                              bounds requests in flight, not connections
    one greenlet, reader and handler a connection              only while a request is served
    stop()                                                     also closes the idle connections
    lenient HTTP                                               refused, see `parked.server.request`
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from ssl import CERT_NONE
from typing import Any, ClassVar, Final
from weakref import ref

from gevent import pywsgi
from gevent.event import Event
from greenlet import getcurrent

from parked.server import unix
from parked.server.accepting import ACCEPTS_A_WAKEUP, AcceptingServer
from parked.server.access_format import JSON, line_format
from parked.server.arguments import check_bounds, check_tls
from parked.server.certificate_files import OF_CONTEXT, CertificateFiles
from parked.server.connection import EDGE, HUNG_UP, Connection
from parked.server.dispatch import RequestGreenlets, end_with_request, ties
from parked.server.environ import BaseEnviron, begin, fill
from parked.server.fields import error_response
from parked.server.files import FileWrapper
from parked.server.forwarded import Forwarded
from parked.server.handler import KeepAliveWSGIHandler
from parked.server.handshakes import Handshakes
from parked.server.limits import Limits
from parked.server.parking import Parking
from parked.server.pending import PendingResponse
from parked.server.proxy_protocol import DEFAULT_PEERS, ProxyProtocol
from parked.server.request import BadRequestError, Fields, HeadScan, parse_head
from parked.server.request_id import RequestIds
from parked.server.response import Counts
from parked.server.stream import send_all
from parked.server.tls import TLSSocket, wrapping
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
#: Bound on the accepting that comes before retiring, in wake-ups of `ACCEPTS_A_WAKEUP`.
MAX_RETIRING_WAKEUPS: Final = 200


class KeepAliveWSGIServer(AcceptingServer):
    """`pywsgi.WSGIServer` with parked connections, timeouts, bounds and strict HTTP/1.1.

    :param idle_timeout: seconds that a connection may be idle between requests; 0 for ever.
    :param header_timeout: seconds for a request head, from its first byte; 0 for ever.
    :param body_timeout: seconds to wait for the next bytes of request content; 0 for ever.
    :param write_timeout: seconds to wait for a client that does not read its response; 0 for ever.
    :param max_connections: connections at once; more get a 503. 0 for no bound but the descriptors.
    :param max_pending: pending responses at once (docs/pending.md); more get a 503. 0 for no bound.
    :param limits: sizes that a request may have.
    :param forwarded_allow_ips: peers whose X-Forwarded-* and Forwarded fields say who the client is, see
        `parked.server.forwarded`; empty for nobody's, which leaves the fields as they are.
    :param proxy_protocol: v1, v2 or auto: which PROXY headers connections of balancers begin with; empty for
        none.
    :param proxy_allow_from: the peers that send these, see `parked.server.proxy_protocol`.
    :param request_ids: give each request an id, see `parked.server.request_id`; the peers of
        *forwarded_allow_ips* may send theirs.
    :param log_format: the form of the access log's lines, see `parked.server.access_format`; empty for
        pywsgi's.
    :param logs_json: the same as *log_format* json.
    :param ssl_args: TLS as pywsgi takes it: *certfile*, *keyfile* and others of `gevent.ssl.wrap_socket`, or
        *ssl_context* and what its `wrap_socket` takes.
    :raises TypeError: a keyword is none of these.
    :raises ValueError: a timeout or bound is negative, or there is TLS without a certificate.
    :raises OSError: the certificate's files are of no use.
    """

    handler_class = KeepAliveWSGIHandler
    base_env: ClassVar[dict[str, Any]] = {**pywsgi.WSGIServer.base_env, "wsgi.file_wrapper": FileWrapper}
    max_accept = ACCEPTS_A_WAKEUP
    environ: dict[str, Any]

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
        log_format: str = "",
        forwarded_allow_ips: str = "",
        request_ids: bool = False,
        proxy_protocol: str = "",
        proxy_allow_from: str = DEFAULT_PEERS,
        **ssl_args: Any,
    ) -> None:
        check_bounds(
            idle_timeout=idle_timeout,
            header_timeout=header_timeout,
            body_timeout=body_timeout,
            write_timeout=write_timeout,
            max_connections=max_connections,
            max_pending=max_pending,
        )
        check_tls(ssl_args, KeepAliveWSGIServer.__init__)
        self.body_timeout = body_timeout
        self.write_timeout = write_timeout
        self.max_connections = max_connections
        self.limits = limits if limits is not None else Limits()
        self.gives_ids = request_ids
        forwarded = Forwarded(forwarded_allow_ips) if forwarded_allow_ips else None
        #: Who is behind a proxy, if any is trusted. With ids before it, so that requests ask for one thing.
        self.forwarded = RequestIds(forwarded_allow_ips, forwarded) if request_ids else forwarded
        self.proxy_protocol = ProxyProtocol(proxy_protocol, proxy_allow_from) if proxy_protocol else None
        self.turns = of_hub()
        #: No new connections; responses end theirs.
        self.draining = False
        self.access_format = line_format(JSON if logs_json else log_format, request_ids)
        #: Set when the last connection of a draining server is closed, and the last callback has returned.
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
        self.failed_handshakes = 0
        #: Answers of the server's own to what was no request, or one connection too many.
        self.refused = 0
        #: Exceptions in the server itself, each of which has cost a connection at most.
        self.faults = 0
        self.parking = Parking(
            self._on_ready,
            self._on_header_timeout,
            self._check_drained,
            idle_timeout,
            header_timeout,
            self._on_fault,
        )
        self.pending = PendingResponses(
            self.parking,
            self._serve_soon,
            self._finish,
            self._on_pending_end,
            self._check_drained,
            lambda line: self.error_log.write(line),
            self._on_fault,
            write_timeout,
            max_pending,
        )
        self._handshakes = Handshakes(self._shake_hands, self._on_fault)
        self._parks = False  # decided when all is there to decide by
        self._evicting = False  # no connection is parked any more
        # Connections that `parking` does not know: in their handshake, or with a handler that reads itself.
        self._outside = 0
        self._turned_away: list[Connection] = []
        #: Servers of the same process, with whom the connections are counted.
        self.beside: Sequence[AcceptingServer] = ()
        self._paused_since: float | None = None
        self._tells_pause = False
        self._next_pause_line = 0.0  # on the monotonic clock
        self._interval_s = 0.0
        self._accepted_before = 0
        self.parking.on_intervals = self._accept_at_intervals
        self._dispatch: RequestGreenlets | None = None
        self._own_environ: BaseEnviron | None = None
        if ssl_args.get("certfile") and "ssl_context" not in ssl_args:
            of_context = {name: ssl_args.pop(name) for name in OF_CONTEXT if name in ssl_args}
            ssl_args["ssl_context"] = CertificateFiles(self._tell_of_certificates, **of_context)
        super().__init__(
            listener, application, backlog, spawn, log, error_log, handler_class, environ, **ssl_args
        )
        context = ssl_args.get("ssl_context")
        if context is not None:
            self.wrap_socket = wrapping(context)
        asks = context.verify_mode if context is not None else CERT_NONE
        #: Whether clients show certificates, whose names the application finds in environ.
        self.names_clients = asks != CERT_NONE
        self._note_error_log(error_log)
        self._choose_way()
        _servers.append(ref(self, _servers.remove))

    # -- start and stop

    def init_socket(self) -> None:
        if self.handler_class is not self._chosen_for:  # it was set since
            self.log = self.log
            self._choose_way()
        super().init_socket()
        self.socket.setblocking(False)  # a listener that was handed in may block, and so would the hub
        if self.socket.family in (_socket.AF_INET, _socket.AF_INET6):
            # Accepted sockets inherit it. A response is one send; what is left of Nagle's algorithm is the 40
            # ms that it waits for a delayed ACK when a streamed response takes two.
            self.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        made_by = getattr(self.get_environ, "__func__", None)
        self._own_environ = None  # a server that makes environs in its own way is asked for each
        if self.environ_class is dict and made_by is pywsgi.WSGIServer.get_environ:
            self.environ = self._own_environ = BaseEnviron(self.environ)
        self.draining = self._evicting = False
        self.drained.clear()
        self.parking.open()
        self.pending.open()
        self._dispatch = self._greenlets()

    def _greenlets(self) -> RequestGreenlets:
        return RequestGreenlets(self._serve, self._spawn, self.pool, self._on_fault)

    def update_environ(self) -> None:
        super().update_environ()
        if self.proxy_protocol is not None and not self.environ["SERVER_NAME"]:
            # A unix socket whose clients have addresses all the same.
            self.environ.update(unix.server("", self.environ["wsgi.url_scheme"]))

    def serve_forever(self, stop_timeout: float | None = None) -> None:
        """As in pywsgi; in a child that was forked from a started server, serve there too."""
        if self.started and self._watcher is None and self._timer is None:
            self.start_accepting()
        super().serve_forever(stop_timeout)

    def _forget(self) -> None:
        """In a forked child: listen to nothing and let go of the connections; they are the parent's."""
        # First: its epoll set is shared as well, until it makes one of its own, and libuv takes out of it at
        # once what is not watched any more.
        self.loop.reinit()
        self.stop_accepting()
        self.pending.forget()
        self.parking.forget()
        self._outside = 0
        self._turned_away = []
        if self._dispatch is not None:
            self._dispatch.forget()
            self._dispatch = self._greenlets()

    def stop(self, timeout: float | None = None) -> None:
        """Stop accepting, close the idle connections, and let the requests in flight finish.

        As in pywsgi, only a pool is waited for, *timeout* seconds at most. See `drain` for the others.
        """
        self._begin_drain()
        super().stop(timeout)

    def drain(self, timeout: float) -> bool:
        """Stop and wait for the requests in flight and for callbacks, *timeout* seconds at most.

        Whether all have finished.
        """
        self._begin_drain()
        self.close()
        return bool(self.drained.wait(timeout))

    def retire(self) -> None:
        """Stop accepting; each connection's next response is its last, so that no client sees an error.

        `drained` is set when all are gone; with clients that think for long, that may take as long.
        """
        self._empty_queue()
        self.draining = True
        self.close()
        self.parking.tell_when_empty()
        self.pending.stop()

    def _empty_queue(self) -> None:
        """Take who is in the queue already: they are ours, if nobody shares it."""
        for _ in range(MAX_RETIRING_WAKEUPS):
            before = self.accepted
            self._do_read()
            if self.accepted == before:
                break

    def _begin_drain(self) -> None:
        if self._evicting:
            return
        if self._interval_s and self._watcher is not None:
            self._empty_queue()
        self.draining = self._evicting = True
        self.stop_accepting()
        if self._dispatch is not None:
            self._dispatch.stop()
        self.parking.drain()
        self.pending.stop()

    # -- serving

    def begin_environ(self, fields: Fields) -> dict[str, Any]:
        """What the environ of a request with these *fields* begins with."""
        base = self._own_environ
        if base is not None and base is self.environ:
            return fields.begun.copy() if fields.begun_for is base.stamp else begin(base, fields)
        return fill(self.get_environ(), fields)

    def figures(self) -> Iterator[tuple[str, int]]:
        """What this server counts: name and value, those of now first, then those since the start."""
        yield "connections", self.parking.count
        yield "active", self.active
        yield "accepted", self.accepted
        yield "rejected", self.rejected
        yield "refused", self.refused
        yield "failed_handshakes", self.failed_handshakes
        yield "faults", self.faults
        yield "idle_timeouts", self.parking.idle_timed_out
        yield "header_timeouts", self.timed_out_heads
        yield "body_timeouts", self.timed_out_bodies
        yield "write_timeouts", self.timed_out_writes
        yield from self.pending.figures()

    @property
    def active(self) -> int:
        """Requests in flight or waiting for a greenlet."""
        return self._dispatch.active if self._dispatch is not None else 0

    def _serve(self, connection: Connection) -> None:
        try:
            self._serve_requests(connection)
        except BaseException as error:
            end_with_request()
            self._on_fault("serving a connection", error)
            getcurrent().gr_context = None
            self.parking.close(connection)
            connection.reported |= HUNG_UP
            self._finish(connection)  # a pending response has to hear of it

    def _serve_requests(self, connection: Connection) -> None:
        """Read and answer requests until the client pauses; then park."""
        parking = self.parking
        sock = connection.sock
        awaited = bool(connection.buffer)
        scan = parking.scans.get(connection) if awaited else None
        connection.reported |= EDGE  # what has brought us here
        turns = REQUESTS_A_TURN
        me = getcurrent()
        known = ties(me)
        while True:
            if connection.buffer:
                try:
                    head = parse_head(connection.buffer, self.limits, scan)
                except BadRequestError as error:
                    self._answer_bad_request(connection, error)
                    return
                if head is not None:
                    if turns != REQUESTS_A_TURN and ties(me) != known:
                        self._go_on_later(connection)  # something is left: not in this greenlet
                        return
                    if awaited or scan is not None:
                        parking.head_complete(connection)
                        awaited, scan = False, None
                    self.requests += 1
                    handler = self.handler_class(connection, connection.address, self)
                    try:
                        keeps = handler.handle_request(head)
                    except BadRequestError as error:  # whose request it is, is not to be known
                        connection.buffer = head.line.encode("latin-1")
                        self._answer_bad_request(connection, error)
                        return
                    me.gr_context = None  # context variables are one request's: none for the next
                    if not keeps:
                        self._finish(connection)
                        return
                    turns -= 1
                    if turns and not (connection.buffer and self.turns.over()):
                        continue
                    if connection.buffer or connection.reported & EDGE:
                        self._go_on_later(connection)
                        return
                elif scan is None:
                    scan = parking.scans[connection] = HeadScan()
            if not connection.reported:
                if self._evicting:
                    parking.close(connection)
                    return
                parking.park(connection)
                return
            connection.reported &= HUNG_UP
            try:
                data = sock.recv(RECV_BYTES)
            except BlockingIOError:
                connection.reported = 0
                if type(sock) is TLSSocket and sock.is_behind:
                    connection.reported |= EDGE
                    if self.turns.over():
                        self._go_on_later(connection)
                        return
                continue
            except OSError:
                data = b""  # reset by the client
            if not data:
                self.parking.close(connection)
                return
            connection.buffer = connection.buffer + data if connection.buffer else data
            if len(data) == RECV_BYTES or (type(sock) is TLSSocket and sock.is_behind):
                connection.reported |= EDGE  # there may be more, and no edge will tell
                if self.turns.over():
                    self._go_on_later(connection)
                    return

    def _go_on_later(self, connection: Connection) -> None:
        """There is more of it, and others have waited."""
        assert self._dispatch is not None
        self._dispatch.put_back(connection)

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
        response = error_response(error.status)
        self._note_refusal(connection, error.status, error.reason, len(response))
        try:
            send_all(connection, response, self.write_timeout)
        except OSError:
            self.parking.close(connection)
            return
        self._finish(connection)

    def _on_header_timeout(self, connection: Connection) -> None:
        """In the hub: half a request has been waiting for too long."""
        self.timed_out_heads += 1
        status = HTTPStatus.REQUEST_TIMEOUT
        response = error_response(status)
        self._note_refusal(connection, status, "the request head is not complete", len(response))
        try:
            connection.sock.send(response)
        except OSError:
            pass  # it does not read either
        self._finish(connection)


#: All of this process, for the child of a fork.
_servers: list[ref[KeepAliveWSGIServer]] = []


def _forget_in_child() -> None:
    for known in _servers[:]:
        server = known()
        if server is not None and server._dispatch is not None:  # it has been started, and has something
            server._forget()


os.register_at_fork(after_in_child=_forget_in_child)
