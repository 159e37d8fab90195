"""A worker process: from the fork to its exit."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import close  # as it is before gevent patches it: its own waits for the loop
from typing import Any, Final, NamedTuple

import gevent
from gevent.event import Event
from gevent.pool import Pool

from parked.prefork import access_log, forks, metrics, sizing
from parked.prefork.counts import Statistics
from parked.prefork.lifetime import Lifetime
from parked.prefork.scoreboard import Scoreboard
from parked.prefork.settings import EXIT_KILLED, PROGRAM, Settings
from parked.prefork.signals import HARMLESS
from parked.prefork.watchdog import Pulse
from parked.server.limits import Limits
from parked.server.server import KeepAliveWSGIServer
from parked.shared import exposition, listeners, out_of_memory
from parked.shared.log import GuardedLog

#: Allocations between two collections of young objects, and of these until an older generation's turn. A full
#: collection visits every connection: 20,000 of them take 3 ms, in which no request is answered.
_GC_THRESHOLDS: Final = (20_000, 20, 50)
#: Seconds that a worker of a trial lives: one that dies as soon as it serves is no good either.
_REHEARSAL_S: Final = 0.5
#: Workers of a core beyond which each turn of one finds its caches cold.
CROWDED: Final = 2
#: Exit code of one that has lived so long. Not 0: with that an application may end it before.
REHEARSED: Final = 113
#: Made while there is memory.
_NO_MEMORY: Final = b"a worker has no memory left and ends\n"
#: Seconds between two copies of the counters to the scoreboard.
_REPORT_S: Final = 1.0


class Place(NamedTuple):
    """Where a worker listens."""

    listener: socket.socket
    #: No other worker accepts from the same socket.
    is_own: bool
    #: Of TLS; None to speak in clear.
    context: Any


@dataclass(frozen=True)
class Duty:
    """What a worker is to do, and what it was given for it."""

    row: int
    #: Where it listens; all but the metrics process have a server for each.
    listeners: list[socket.socket]
    servers: list[KeepAliveWSGIServer]
    settings: Settings
    scoreboard: Scoreboard
    #: The reading end of a pipe whose other end only the supervisor holds.
    lifeline: int


def main(duty: Duty, work: Callable[[Duty], int]) -> int:
    """In the forked process: do *work* and say what it was that ended it; returns the exit code."""
    try:
        code = work(duty)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        return code
    except access_log.LogError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1


def run(duty: Duty) -> int:
    """Serve until TERM, until HUP and the last connection's end, or until the supervisor is gone.

    Returns the exit code.
    """
    _begin()
    settings, servers = duty.settings, duty.servers
    log = _open_log(servers)
    stopping, retiring = Event(), Event()
    watch = _Watch(duty, servers, stopping.set)
    watch.signal(signal.SIGHUP, retiring.set)
    if isinstance(log, access_log.LogFile):
        watch.signal(signal.SIGUSR1, log.reopen)
    watch.unblock()
    for server in servers:
        server.start()
    if settings.timeout:
        Pulse(duty.scoreboard, duty.row, settings.timeout)
    counted = _Counted(duty, servers)
    gevent.spawn(_report, duty, counted, watch)
    duty.scoreboard.set(duty.row, "ready", os.getpid())
    gevent.wait([stopping, retiring], count=1)
    if not stopping.is_set():
        for server in servers:
            server.retire()
        gone = gevent.spawn(gevent.wait, [server.drained for server in servers])
        gevent.wait([stopping, gone], timeout=0 if settings.reload else settings.reload_timeout, count=1)
    drains = [gevent.spawn(server.drain, settings.graceful_timeout) for server in servers]
    finished = all(drain.get() for drain in drains)
    if not watch.is_forked:
        counted.copy()  # of the last second, too
    if log is not None:
        log.flush()
    return 0 if finished else EXIT_KILLED


def rehearse(duty: Duty) -> int:
    """The same as far as it goes without accepting; and it has to live for a moment."""
    _begin()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _open_log(duty.servers)
    gevent.sleep(_REHEARSAL_S)
    return REHEARSED


def serve_metrics(duty: Duty) -> int:
    """The process behind --metrics: serve the scoreboard until TERM or until the supervisor is gone."""
    _begin()
    server = KeepAliveWSGIServer(
        duty.listeners[0],
        exposition.application(metrics.WorkersCollector(duty.scoreboard)),
        log=None,
        environ={"SERVER_NAME": ""},
    )
    stopping = Event()
    watch = _Watch(duty, [server], stopping.set)
    watch.signal(signal.SIGHUP, stopping.set)
    watch.unblock()
    server.start()
    stopping.wait()
    server.drain(1)
    return 0


def _begin() -> None:
    # The hub, if the application made one when it was imported, is the parent's; so is what gevent has put in
    # place to hear of children, which the supervisor has taken away again.
    gevent.reinit()
    hub = gevent.get_hub()
    hub.loop.reset_sigchld()
    # Signals to stop are heard by `_Watch`. What says `SystemExit` or `KeyboardInterrupt` here is code of the
    # application that was meant for a command, in a request or a greenlet: an error there, and nobody else's.
    hub.SYSTEM_ERROR = ()
    gc.set_threshold(*_GC_THRESHOLDS)
    out_of_memory.end_process(_NO_MEMORY, EXIT_KILLED)


class _Watch:
    """What this process hears of others: signals, and that the supervisor is gone. Its forked children don't.

    :param stop: ends this process in order.
    """

    def __init__(self, duty: Duty, servers: list[KeepAliveWSGIServer], stop: Callable[[], None]) -> None:
        self._duty = duty
        self._servers = servers
        #: Whether this is a child that the application has forked: what it counts is not the worker's.
        self.is_forked = False
        self._signals = [
            gevent.signal_handler(signal.SIGTERM, stop),
            gevent.signal_handler(signal.SIGQUIT, os._exit, EXIT_KILLED),
        ]
        # ^C reaches all, and the supervisor will say TERM; the others are for the supervisor, or for nobody.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU):
            self.signal(number, _do_nothing)
        for harmless in HARMLESS:
            if signal.getsignal(harmless) is signal.SIG_DFL:
                self.signal(harmless, _do_nothing)
        self._loop = gevent.get_hub().loop
        self._orphaned = self._loop.io(duty.lifeline, 1)
        self._orphaned.start(stop)
        forks.in_child(self._let_go)

    def signal(self, number: int, act: Callable[[], Any]) -> None:
        self._signals.append(gevent.signal_handler(number, act))

    def unblock(self) -> None:
        """All have been blocked since the fork; those that came meanwhile are delivered now."""
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _let_go(self) -> None:
        """In a forked child: nothing of this, and signals at their defaults."""
        self.is_forked = True
        # Whichever thread has forked: the hub is of the one that serves.
        self._loop.reinit()  # or it would take our watchers out of the epoll set that both have
        for server in self._servers:
            server.stop_accepting()
        self._orphaned.stop()
        for watcher in self._signals:
            watcher.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for listener in self._duty.listeners:
            listener.close()
        close(self._duty.lifeline)


def _do_nothing() -> None:
    pass


def make_servers(
    places: Iterable[Place], application: Callable[..., Any], settings: Settings, nofile: int
) -> list[KeepAliveWSGIServer]:
    """One for each place, with the same bounds together on connections and requests.

    To be called before the fork: what Python touches when it makes them, the workers then share. That is 0.7
    MB for each of them.

    :param nofile: descriptors that a process may open.
    """
    log = access_log.log_of(settings.access_log)
    pool = Pool(settings.limit_requests) if settings.limit_requests else "default"
    servers = [_make_server(place, application, settings, nofile, log, pool) for place in places]
    cpus = sizing.cpu_count()
    workers, _ = sizing.plan(settings.workers, settings.connections, nofile, cpus)
    for server in servers:
        server.beside = [other for other in servers if other is not server]
        server.pending.deadlines.spreads = workers <= CROWDED * cpus
    return servers


def _open_log(servers: list[KeepAliveWSGIServer]) -> GuardedLog | None:
    """That of all of them, if they have one; a file is opened here, in the process that writes to it.

    :raises LogError: it cannot be opened.
    """
    log = servers[0].log
    if isinstance(log, access_log.LogFile):
        log.open()
    return log if isinstance(log, GuardedLog) else None


def _make_server(
    place: Place,
    application: Callable[..., Any],
    settings: Settings,
    nofile: int,
    log: GuardedLog | None,
    pool: Any,
) -> KeepAliveWSGIServer:
    name = place.listener.getsockname()
    # pywsgi asks the resolver for SERVER_NAME, which takes a thread and up to seconds; we know our address.
    server_name = str(name[0]) if isinstance(name, tuple) else ""
    tls = {"ssl_context": place.context} if place.context is not None else {}
    server = KeepAliveWSGIServer(
        place.listener,
        application,
        log=log,
        error_log=sys.stderr,
        spawn=pool,
        environ={"wsgi.multiprocess": True, "SERVER_NAME": server_name},
        idle_timeout=settings.idle_timeout,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        write_timeout=settings.write_timeout,
        max_connections=settings.limit_connections or listeners.room(nofile),
        max_pending=settings.limit_pending,
        limits=Limits(
            settings.limit_request_line,
            settings.limit_header_bytes,
            settings.limit_header_count,
            settings.limit_body,
        ),
        forwarded_allow_ips=settings.forwarded_allow_ips,
        request_ids=settings.request_id,
        proxy_protocol=settings.proxy_protocol,
        proxy_allow_from=settings.proxy_allow_from,
        log_format=settings.access_log_format,
        **tls,
    )
    if place.is_own:
        # pywsgi takes one connection at a time where there are several processes, lest the first take all.
        server.max_accept = KeepAliveWSGIServer.max_accept
    return server


class _Counted:
    """What this worker counts, on its way to the scoreboard."""

    def __init__(self, duty: Duty, servers: list[KeepAliveWSGIServer]) -> None:
        self._duty = duty
        self._servers = servers
        self._base = duty.scoreboard.snapshot(duty.row)
        self._statistics = Statistics()
        if duty.settings.metrics is not None:
            for server in servers:
                server.statistics = self._statistics

    def requests(self) -> int:
        """Served so far."""
        return sum(server.requests for server in self._servers)

    def copy(self) -> None:
        counters = self._statistics.counters(_figures(self._servers))
        self._duty.scoreboard.update(self._duty.row, counters, self._base)


def _report(duty: Duty, counted: _Counted, watch: _Watch) -> None:
    """Leave our figures on the scoreboard, again and again."""
    lifetime = Lifetime(duty.settings)
    leaving = ""
    while not watch.is_forked:
        try:
            counted.copy()
            if not leaving and (leaving := lifetime.over(counted.requests())):
                print(f"{PROGRAM}: worker {os.getpid()} wants a successor: {leaving}", file=sys.stderr)
                duty.scoreboard.set(duty.row, "leaving", 1)
        except Exception:  # said, and tried again: figures that stand still look like a worker that does
            traceback.print_exc()
        gevent.sleep(_REPORT_S)


def _figures(servers: list[KeepAliveWSGIServer]) -> Iterable[tuple[str, int]]:
    """Of all together."""
    if len(servers) == 1:
        return servers[0].figures()
    totals: Counter[str] = Counter()
    for server in servers:
        totals.update(dict(server.figures()))
    return totals.items()
