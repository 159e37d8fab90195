"""From the listening socket to a parked connection: accept, refuse, shake hands, pause.

Nothing that goes wrong here ends the accepting: what concerns one connection costs that one, what concerns
the system (no descriptors, no memory) costs a pause, and both are said in lines whose number is bounded.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final

import gevent
from gevent import pywsgi
from gevent.event import Event
from gevent.socket import socket as gevent_socket
from gevent.socket import wait_read

from parked.server.connection import EDGE, Connection, shared_address
from parked.server.dispatch import RequestGreenlets
from parked.server.fields import error_response
from parked.server.handler import KeepAliveWSGIHandler
from parked.server.handshakes import Handshakes, shake
from parked.server.parking import Parking
from parked.server.proxy_protocol import ProxyProtocol
from parked.server.reports import Reports, described
from parked.server.response import Counts
from parked.server.tls import TLSSocket
from parked.server.turns import Turns
from parked.server.waiting import PendingResponses
from parked.shared.log import GuardedLog

#: Connections taken in one go before the requests get their turn.
ACCEPTS_A_WAKEUP: Final = 64
#: ... and at intervals; if more have come they are taken as they come, until the next tick of `Parking`.
ACCEPTS_AN_INTERVAL: Final = 256
#: Of the queue's places, the share that the connections of an interval may take, by those of the second
#: before. Where it is full SYNs are dropped, and each costs its client a second.
QUEUE_SHARE: Final = 0.25
#: In struct tcp_info (linux/tcp.h): `tcpi_sacked`, of a listening socket the size of its queue.
_SACKED_AT: Final = 28
#: Seconds after which accept is tried again when there was no descriptor or no place for it.
ACCEPT_RETRY_S: Final = 0.1
#: Seconds from one line about a pause to the next. At the edge, each client that leaves ends one and the next
#: that comes begins another.
PAUSE_LINES_S: Final = 10.0
#: Refused connections of a process that may linger for their 503 to be read; the rest is closed at once.
MAX_REFUSED_LINGERING: Final = 16
#: Where the logs are a `logging.Logger`, the levels of requests, of what is said of refused clients, and of
#: all else: `logging.INFO`, `WARNING` and `ERROR`.
INFO_LEVEL: Final = 20
REFUSAL_LEVEL: Final = 30
ERROR_LEVEL: Final = 40

#: Said of a client whose handshake has had its time when there were too many (`parked.server.handshakes`).
GAVE_WAY: Final = "it gave way to a newcomer"

_STDERR: Final = 2

#: What a subclass overrides to have each connection for itself.
_CONNECTION_HOOKS: Final = ("handle", "do_handle", "do_read", "do_close", "wrap_socket_and_handle")


class AcceptingServer(pywsgi.WSGIServer):  # type: ignore[misc] # gevent has no type hints
    """The half of the server that faces the listening socket; `KeepAliveWSGIServer` is the whole."""

    _watcher: Any  # pywsgi's
    parking: Parking
    pending: PendingResponses
    turns: Turns
    max_connections: int
    draining: bool
    drained: Event
    statistics: Counts | None
    logs_requests: bool
    accepted: int
    rejected: int
    refused: int
    failed_handshakes: int
    proxy_protocol: ProxyProtocol | None
    faults: int
    _dispatch: RequestGreenlets | None
    _greenlets: Callable[[], RequestGreenlets]
    _evicting: bool  # no connection is parked any more
    beside: Sequence[AcceptingServer]
    _outside: int  # connections in their handshake, or with a handler that reads for itself
    _turned_away: list[Connection]  # refused, and some of them closed by now
    _parks: bool
    _chosen_for: Any  # the handler's class for which `_parks` holds
    _handshakes: Handshakes
    _log: Any
    _error_log: GuardedLog
    _refusals: Reports
    _failures: Reports
    _paused_since: float | None
    _tells_pause: bool
    _next_pause_line: float  # on the monotonic clock
    _interval_s: float  # between two looks for new connections; 0 accepts them as they come
    _accepted_before: int  # the interval was chosen

    def set_spawn(self, spawn: Any) -> None:
        super().set_spawn(spawn)
        if self._parks:
            self._accept_when_full()
        if self._dispatch is not None:  # it has been started: from now on in this way
            self._dispatch.stop()
            self._dispatch = self._greenlets()

    def _accept_when_full(self) -> None:
        """The pool bounds the requests in flight; being full is no reason not to accept."""
        self.__dict__.pop("full", None)

    def _choose_way(self) -> None:
        """Park connections, or leave each to a handler that reads it itself."""
        self._chosen_for = self.handler_class
        reader = self._reader()
        self._parks = reader is None
        if self._parks:
            self._accept_when_full()
            return
        if hasattr(self.pool, "full"):
            self.full = self.pool.full
        self.error_log.write(
            f"{reader} reads its connections itself: one greenlet per connection, none is parked\n"
        )

    def start_accepting(self) -> None:
        """Accept connections as they come, or at intervals."""
        if self._interval_s and self._watcher is None:
            self._watcher = self.loop.timer(self._interval_s, self._interval_s)
            self._watcher.start(self._do_read)
        else:
            super().start_accepting()

    def _accept_at_intervals(self, seconds: float) -> None:
        """Accept what comes within so many *seconds* together, if that is safe; 0 accepts it as it comes.

        A million connections, 4,000 new ones a second: woken for each of its 75, one worker of 55 took 140 us
        for one (`parked.shared.moderation` says when it pays).
        """
        came, self._accepted_before = self.accepted - self._accepted_before, self.accepted
        if seconds and self._watcher is not None and self._may_wait():
            fits = came * seconds <= QUEUE_SHARE * _queue_size(self.socket)
            self._set_interval(seconds if fits else 0.0)
        else:
            self._set_interval(0.0)

    def _set_interval(self, seconds: float) -> None:
        if seconds == self._interval_s:
            return
        self._interval_s = seconds
        if self._watcher is not None:  # it accepts
            self.stop_accepting()
            self.start_accepting()

    def _may_wait(self) -> bool:
        """Whether nobody misses what waits in the queue: no client its handshake, and no other process that
        accepts from there its part, all of which would be of whoever looks first."""
        listener = self.socket
        is_tcp = listener.family in (_socket.AF_INET, _socket.AF_INET6)
        is_own = is_tcp and listener.getsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT)
        # pywsgi takes one at a time where there are several processes.
        return bool(is_own) and self.max_accept > 1 and not self._shakes_hands

    def _do_read(self) -> None:
        try:
            if self._parks:
                self._accept()
            else:
                super()._do_read()
        except BaseException as error:
            self._on_fault("accepting", error)
            self._pause()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AN_INTERVAL if self._interval_s else self.max_accept):
            if self.full():
                self.stop_accepting()
                return
            if self._shakes_hands and not self._handshakes.have_room():
                self._pause()
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
            except Exception as error:  # epoll(7): max_user_watches, or no memory
                self.rejected += 1
                self._tell_pause(error)
                self._pause()
                return
            self._accept_succeeded()
        self._set_interval(0.0)  # there are more, and by the next interval too many

    def _accept_failed(self, error: OSError) -> None:
        if self.is_fatal_error(error):
            self.close()
            self.error_log.write(f"{self} failed with {error}\n")
            return
        self._tell_pause(error)
        self._pause()

    def _tell_pause(self, error: Exception) -> None:
        if self._paused_since is None:
            now = self._paused_since = time.monotonic()
            self._tells_pause = now >= self._next_pause_line
            if self._tells_pause:
                self._next_pause_line = now + PAUSE_LINES_S
                reason = getattr(error, "strerror", None) or described(error)
                self.error_log.write(f"accepting paused at {self.parking.count} connections: {reason}\n")

    def _pause(self) -> None:
        """Accept again in a moment."""
        self.stop_accepting()
        if self.started:
            self._timer = self.loop.timer(ACCEPT_RETRY_S)
            self._timer.start(self._resume)

    def _resume(self) -> None:
        try:
            self._start_accepting_if_started()
        except BaseException as error:
            self._on_fault("accepting again", error)
            self._pause()

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
        """A new connection; if that fails, its descriptor is closed."""
        if fd <= _STDERR:
            fd = _moved(fd)
        listener = self.socket
        full = self.max_connections and self._held() >= self.max_connections
        kind = gevent_socket if self._shakes_hands and not full else _socket.socket
        try:
            sock = kind(listener.family, listener.type, listener.proto, fileno=fd)
        except BaseException:
            os.close(fd)
            raise
        try:
            if full:
                self._refuse(sock, address)
            elif self._shakes_hands:
                self._handshakes.begin(sock, address)
                self._outside += 1
            else:
                sock.setblocking(False)
                self.parking.add(Connection(sock, shared_address(address)))
        except BaseException:
            sock.close()
            raise

    def _held(self) -> int:
        """Connections that count against `max_connections`: all but the few that linger after a refusal."""
        return sum(server._held_here() for server in (self, *self.beside))

    def _held_here(self) -> int:
        if self._turned_away:
            self._turned_away = [refused for refused in self._turned_away if refused.sock.fileno() >= 0]
        return self.parking.count + self._outside - len(self._turned_away)

    def _refuse(self, sock: Any, address: Any) -> None:
        """Full: say so in clear, over TLS by closing."""
        sock.setblocking(False)
        connection = Connection(sock, shared_address(address))
        self.parking.add(connection)
        self.rejected += 1
        connection.busy = True
        if not self.ssl_enabled:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            response = error_response(status)
            self._note_refusal(connection, status, "all connections are taken", len(response))
            try:
                sock.send(response)
            except OSError:
                pass  # it has left
        if sum(len(server._turned_away) for server in (self, *self.beside)) < MAX_REFUSED_LINGERING:
            self._turned_away.append(connection)
            self.parking.linger(connection)
        else:
            self.parking.close(connection)

    @property
    def _shakes_hands(self) -> bool:
        """Whether something comes before the first request: a PROXY header, or TLS."""
        return self.ssl_enabled or self.proxy_protocol is not None

    def _shake_hands(self, client: Any, address: Any) -> None:
        process = os.getpid()
        try:
            self._admit(client, address, process)
        finally:
            self._is_outside_no_more(process)

    def _is_outside_no_more(self, process: int) -> None:
        """Only now that it is counted by `parking`, or gone: for a moment between the two all would be gone.

        :param process: the one that has counted it; not the child of a fork.
        """
        if process == os.getpid():
            self._outside -= 1
            self._check_drained()

    def _admit(self, client: Any, address: Any, process: int) -> None:
        """What comes before the first request, and then to the others."""
        kind = "no PROXY header"
        try:
            with gevent.Timeout(self.parking.header_timeout or None):
                if self.proxy_protocol is not None:
                    address = self.proxy_protocol.receive(client, address)
                kind = "no TLS"
                sock = self._secure(client)
        except (Exception, gevent.Timeout, gevent.GreenletExit) as error:  # something else, or nothing
            self.failed_handshakes += 1
            gave_way = isinstance(error, gevent.GreenletExit)
            self._refusals.say(kind, f"{shown(address)}: {GAVE_WAY if gave_way else described(error)}")
            client.close()
            return
        if self._evicting or process != os.getpid():  # in a child of a fork it is not ours
            sock.close()
            return
        try:
            connection = Connection(sock, shared_address(address))
            self.parking.add(connection)
        except Exception as error:
            self.rejected += 1
            self._tell_pause(error)
            sock.close()
            return
        # The first request may have come with the end of the handshake, into OpenSSL where no edge is seen.
        connection.busy = True
        connection.reported = EDGE
        self._serve_soon(connection)

    def _secure(self, client: Any) -> TLSSocket | _socket.socket:
        """Shake hands in TLS, or go on with the bare socket."""
        if self.ssl_enabled:
            wait_read(client.fileno())
            self.turns.share()  # an answer takes a millisecond, and many may be asked for at once
            sock = self.wrap_socket(client, **{**self.ssl_args, "do_handshake_on_connect": False})
            try:
                shake(sock, self.turns)
                return TLSSocket(sock)
            except BaseException:
                sock.close()
                raise
        bare = _socket.socket(client.family, client.type, client.proto, fileno=client.detach())
        bare.setblocking(False)
        return bare

    def _logs_itself(self) -> bool:
        """Whether the handler has a way of its own to log a request, which needs no log."""
        handler = self.handler_class
        if not (isinstance(handler, type) and issubclass(handler, KeepAliveWSGIHandler)):
            return False
        return handler.log_request is not KeepAliveWSGIHandler.log_request

    def _reader(self) -> str | None:
        """Whose class reads connections itself, by overriding what we rely on; None if neither does."""
        server, handler = type(self), self.handler_class
        if any(getattr(server, name) is not getattr(AcceptingServer, name) for name in _CONNECTION_HOOKS):
            return f"{server.__module__}.{server.__qualname__}"
        if isinstance(handler, type) and issubclass(handler, KeepAliveWSGIHandler):
            ours = KeepAliveWSGIHandler
            if all(getattr(handler, name) is getattr(ours, name) for name in ours.reading_hooks):
                return None
        return f"{handler.__module__}.{getattr(handler, '__qualname__', handler)}"

    def handle(self, sock: Any, address: Any) -> None:
        """A connection whose handler reads for itself, from its first request to its last."""
        process = os.getpid()
        self._outside += 1
        try:
            super().handle(sock, address)
        finally:
            self._is_outside_no_more(process)

    def _on_ready(self, connections: list[Connection]) -> None:
        assert self._dispatch is not None
        self._dispatch.put(connections)

    def _serve_soon(self, connection: Connection) -> None:
        """As if an event had come for this busy connection."""
        self.loop.run_callback(self._on_ready, [connection])

    def _check_drained(self) -> None:
        if self.draining and not (self.parking.count or self._outside or self.pending.calling):
            self.drained.set()

    # -- telling

    def tell_of_client(self, kind: str, address: Any, reason: str) -> None:
        """Say what was wrong with what a client sent, now and then."""
        self._refusals.say(kind, f"{shown(address)}: {reason}")

    def _tell_of_certificates(self, line: str) -> None:
        self._failures.say("certificates", line)

    def _note_refusal(self, connection: Connection, status: HTTPStatus, reason: str, size: int) -> None:
        """Count and log what is answered without a handler: its line in the access log, and why."""
        self.refused += 1
        if self.statistics is not None:
            self.statistics.note_refusal(status)
        self.tell_of_client(f"refused with {status.value}", connection.address, reason)
        if self.logs_requests:
            try:
                self.handler_class(connection, connection.address, self).log_refusal(status, size)
            except Exception as error:  # an application's own way to write the line
                self._on_fault("logging a refusal", error)

    # Both may be set at any time, as in pywsgi, and no line that cannot be written there changes anything.

    @property
    def log(self) -> Any:
        """Where requests are logged: a file or a logger; None for nowhere."""
        return self._log

    @log.setter
    def log(self, log: Any) -> None:
        # An adapter of pywsgi's stays to be seen; see also `KeepAliveWSGIHandler.log_request`.
        known = (GuardedLog, pywsgi.LoggingLogAdapter, pywsgi._NoopLog)
        log = _with_write(log, INFO_LEVEL)
        self._log = log if isinstance(log, known) else GuardedLog(log)
        self.logs_requests = not isinstance(log, pywsgi._NoopLog) or self._logs_itself()

    @property
    def error_log(self) -> Any:
        """Where all else is said: a file or a logger; None for nowhere."""
        return self._error_log

    @error_log.setter
    def error_log(self, log: Any) -> None:
        writable = _with_write(log, ERROR_LEVEL)
        self._error_log = writable if isinstance(writable, GuardedLog) else GuardedLog(writable)
        self._failures = Reports(self._error_log.write)
        self._report_refusals(log)

    def _note_error_log(self, given: Any) -> None:
        """What else comes of the error log that the constructor was *given*."""
        errors = sys.stderr if given == "default" else given
        if self.environ.get("wsgi.errors") is errors:
            self.environ["wsgi.errors"] = self.error_log
        self._report_refusals(given)  # pywsgi has made a file of a logger

    def _report_refusals(self, given: Any) -> None:
        """What is said of clients has a level of its own, if the error log that was *given* is a logger."""
        errors = GuardedLog(_with_write(given, REFUSAL_LEVEL)) if _is_logger(given) else self._error_log
        self._refusals = Reports(errors.write)

    def _on_fault(self, what: str, error: BaseException) -> None:
        """Count and tell an exception that must not go any further."""
        self.faults += 1
        hub = gevent.get_hub()
        try:
            # Ctrl-C, say, is for the main greenlet, as in gevent. Whether to go on without memory is
            # for the hub as well: a worker ends then (`parked/shared/out_of_memory.py`).
            if isinstance(error, (*hub.SYSTEM_ERROR, MemoryError)):
                hub.handle_error(what, type(error), error, error.__traceback__)
            elif not isinstance(error, hub.NOT_ERROR):
                self._failures.say(f"fault in {what}", described(error))
        except Exception:
            self.error_log.note_lost()


def _queue_size(listener: Any) -> int:
    """Connections that may wait to be accepted; 0 if the kernel does not say."""
    try:
        info = listener.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_INFO, _SACKED_AT + 4)
    except OSError:
        return 0
    return int.from_bytes(info[_SACKED_AT:], sys.byteorder)


def _moved(fd: int) -> int:
    """The application has closed standard error, say: a client must not read what is written there."""
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, fd)  # for the next one
        os.close(null)
    except OSError:
        os.close(fd)
        raise
    return moved


def _is_logger(log: Any) -> bool:
    return not hasattr(log, "write") and hasattr(log, "log")


def _with_write(log: Any, level: int) -> Any:
    """What pywsgi's constructor makes of a log."""
    if log is None:
        return pywsgi._NoopLog()
    return pywsgi.LoggingLogAdapter(log, level) if _is_logger(log) else log


def shown(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) else "a local client"
