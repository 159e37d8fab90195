"""A worker process: from the fork to its exit."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gevent
from gevent.event import Event

from app import sizing
from app.request import Limits
from app.scoreboard import Scoreboard
from app.server import KeepAliveWSGIServer
from app.settings import EXIT_KILLED, Settings

#: Allocations between two collections of young objects, and of these until an older generation's turn. A full
#: collection visits every connection: 20,000 of them take 3 ms, in which no request is answered.
_GC_THRESHOLDS: Final = (20_000, 20, 50)


def run(
    row: int,
    listener: socket.socket,
    application: Callable[..., Any],
    settings: Settings,
    nofile: int,
    workers: int,
    scoreboard: Scoreboard,
    lifeline: int,
) -> int:
    """Serve until TERM or until the supervisor is gone; returns the exit code.

    :param lifeline: the reading end of a pipe whose other end only the supervisor holds.
    """
    gevent.reinit()  # the hub, if the application made one when it was imported, is the parent's
    gc.set_threshold(*_GC_THRESHOLDS)
    log = _access_log(settings.access_log)
    server = KeepAliveWSGIServer(
        listener,
        application,
        log=log,
        error_log=sys.stderr,
        spawn=settings.limit_requests or "default",
        # pywsgi asks the resolver for SERVER_NAME, which takes a thread and up to seconds; we know our
        # address.
        environ={"wsgi.multiprocess": workers > 1, "SERVER_NAME": str(listener.getsockname()[0])},
        idle_timeout=settings.idle_timeout,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        write_timeout=settings.write_timeout,
        max_connections=sizing.worker_room(nofile),
        limits=Limits(
            settings.limit_request_line,
            settings.limit_header_bytes,
            settings.limit_header_count,
            settings.limit_body,
        ),
    )
    server.max_accept = KeepAliveWSGIServer.max_accept  # pywsgi's 1 is for workers that share one socket
    stopping = Event()
    term = gevent.signal_handler(signal.SIGTERM, stopping.set)
    orphaned = gevent.get_hub().loop.io(lifeline, 1)
    orphaned.start(stopping.set)
    server.start()
    scoreboard.set(row, "ready", os.getpid())
    stopping.wait()
    orphaned.stop()
    finished = server.drain(settings.graceful_timeout)
    term.cancel()
    if log is not None:
        log.flush()
    return 0 if finished else EXIT_KILLED


def _access_log(name: str) -> Any:
    if not name:
        return None
    if name == "-":
        return sys.stdout
    # Appended line by line: short lines of several processes do not mix (write(2), O_APPEND).
    return Path(name).open("a", buffering=1, encoding="utf-8")
