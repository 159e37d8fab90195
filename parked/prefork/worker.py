"""A worker process: from the fork to its exit."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gevent
from gevent.event import Event

from parked.prefork import metrics
from parked.prefork.counts import Statistics
from parked.prefork.scoreboard import Scoreboard
from parked.prefork.settings import EXIT_KILLED, Settings
from parked.server.limits import Limits
from parked.server.server import KeepAliveWSGIServer
from parked.shared import exposition, listeners, out_of_memory

#: Allocations between two collections of young objects, and of these until an older generation's turn. A full
#: collection visits every connection: 20,000 of them take 3 ms, in which no request is answered.
_GC_THRESHOLDS: Final = (20_000, 20, 50)


#: Made while there is memory.
_NO_MEMORY: Final = b"a worker has no memory left and ends\n"
#: Seconds between two copies of the counters to the scoreboard.
_REPORT_S: Final = 1.0


@dataclass(frozen=True)
class Duty:
    """What a worker is to do, and what it was given for it."""

    row: int
    listener: socket.socket
    #: Other workers accept from the same socket.
    shares_listener: bool
    application: Callable[..., Any]
    settings: Settings
    #: Descriptors that a process may open.
    nofile: int
    scoreboard: Scoreboard
    #: The reading end of a pipe whose other end only the supervisor holds.
    lifeline: int


def run(duty: Duty) -> int:
    """Serve until TERM, until HUP and the last connection's end, or until the supervisor is gone.

    Returns the exit code.
    """
    gevent.reinit()  # the hub, if the application made one when it was imported, is the parent's
    gc.set_threshold(*_GC_THRESHOLDS)
    out_of_memory.end_process(_NO_MEMORY, EXIT_KILLED)
    settings = duty.settings
    server = _make_server(duty)
    stopping, retiring = Event(), Event()
    gevent.signal_handler(signal.SIGTERM, stopping.set)
    gevent.signal_handler(signal.SIGHUP, retiring.set)
    _unblock_signals()
    orphaned = gevent.get_hub().loop.io(duty.lifeline, 1)
    orphaned.start(stopping.set)
    server.start()
    gevent.spawn(_report, duty, server)
    duty.scoreboard.set(duty.row, "ready", os.getpid())
    gevent.wait([stopping, retiring], count=1)
    if not stopping.is_set():
        server.retire()
        gevent.wait([stopping, server.drained], timeout=settings.reload_timeout, count=1)
    orphaned.stop()
    finished = server.drain(settings.graceful_timeout)
    server.log.flush()
    return 0 if finished else EXIT_KILLED


def serve_metrics(duty: Duty) -> int:
    """The process behind --metrics: serve the scoreboard until TERM or until the supervisor is gone."""
    gevent.reinit()
    server = KeepAliveWSGIServer(
        duty.listener,
        exposition.application(metrics.WorkersCollector(duty.scoreboard)),
        log=None,
        environ={"SERVER_NAME": ""},
    )
    stopping = Event()
    for number in (signal.SIGTERM, signal.SIGHUP):
        gevent.signal_handler(number, stopping.set)
    _unblock_signals()
    orphaned = gevent.get_hub().loop.io(duty.lifeline, 1)
    orphaned.start(stopping.set)
    server.start()
    stopping.wait()
    server.drain(1)
    return 0


def _unblock_signals() -> None:
    """The supervisor has them all blocked; one that came before we were ready for it is delivered now."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _make_server(duty: Duty) -> KeepAliveWSGIServer:
    settings = duty.settings
    name = duty.listener.getsockname()
    # pywsgi asks the resolver for SERVER_NAME, which takes a thread and up to seconds; we know our address.
    server_name = str(name[0]) if isinstance(name, tuple) else ""
    server = KeepAliveWSGIServer(
        duty.listener,
        duty.application,
        log=_access_log(settings.access_log),
        error_log=sys.stderr,
        spawn=settings.limit_requests or "default",
        environ={"wsgi.multiprocess": True, "SERVER_NAME": server_name},
        idle_timeout=settings.idle_timeout,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        write_timeout=settings.write_timeout,
        max_connections=settings.limit_connections or listeners.room(duty.nofile),
        max_pending=settings.limit_pending,
        limits=Limits(
            settings.limit_request_line,
            settings.limit_header_bytes,
            settings.limit_header_count,
            settings.limit_body,
        ),
        logs_json=settings.access_log_format == "json",
    )
    if not duty.shares_listener:
        # pywsgi takes one connection at a time where there are several processes, lest the first take all.
        server.max_accept = KeepAliveWSGIServer.max_accept
    return server


def _report(duty: Duty, server: KeepAliveWSGIServer) -> None:
    """Leave our figures on the scoreboard, again and again."""
    base = duty.scoreboard.snapshot(duty.row)
    statistics = Statistics()
    if duty.settings.metrics is not None:
        server.statistics = statistics
    while True:
        duty.scoreboard.update(duty.row, statistics.counters(server.figures()), base)
        gevent.sleep(_REPORT_S)


def _access_log(name: str) -> Any:
    if not name:
        return None
    if name == "-":
        return sys.stdout
    # Appended line by line: short lines of several processes do not mix (write(2), O_APPEND).
    return Path(name).open("a", buffering=1, encoding="utf-8")
