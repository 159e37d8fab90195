"""A reload on trial: the new code in a process of its own, as far as a worker that is ready and stays so.

It does what the next image of the supervisor will do (read the settings, import the application, fork a
worker, which makes its server and opens its log), on the same socket, but accepts nothing. Only then does the
supervisor become that image; whatever fails before costs a process that nobody had to do with.
"""

from __future__ import annotations

import os
import signal
import sys
from os import _exit, fork, waitpid  # as they are before gevent patches them
from socket import socket
from typing import Any, Final, NoReturn

from gevent import monkey

from parked.prefork import application, handover, metrics, opening, sizing, worker
from parked.prefork.application import StartError
from parked.prefork.identity import IdentityError
from parked.prefork.scoreboard import Scoreboard
from parked.prefork.settings import EXIT_APP, EXIT_USAGE, EXIT_WORKERS, Settings
from parked.server.certificates import CertificateError
from parked.shared import exposition
from parked.shared.children import cause, end_with_parent
from parked.shared.descriptors import raise_nofile

VARIABLE: Final = "PARKED_TRIAL"
_set_handler: Any = monkey.get_original("signal", "signal")  # gevent's keeps that of SIGCHLD to itself
_WORDS: Final = {
    EXIT_USAGE: "its settings make no sense",
    EXIT_APP: "the application cannot be imported",
    EXIT_WORKERS: "its worker does not become ready",
}


def execute(listener: socket, folder: str, parent: int) -> NoReturn:
    """In a child of the supervisor: become the trial."""
    try:
        end_with_parent(signal.SIGKILL, parent)
        os.setpgid(0, 0)  # what it starts goes when it goes
        os.chdir(folder)
        listener.set_inheritable(True)
        os.execve(sys.executable, sys.orig_argv, {**os.environ, VARIABLE: str(listener.fileno())})
    except OSError as error:
        print(f"cannot try {sys.executable} in {folder}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        _exit(1)


def verdict(status: int) -> str:
    """Why a trial that ended with this status says no; empty if it says yes."""
    code = os.waitstatus_to_exitcode(status)
    if code == worker.REHEARSED:
        return ""
    return _WORDS.get(code) or f"the new version {cause(status)} when it was tried"


def wanted(environment: os._Environ[str]) -> int:
    """The descriptor of the socket to try with; -1 if this process is no trial.

    :raises StartError: the variable is nonsense.
    """
    text = environment.pop(VARIABLE, "-1")
    try:
        return int(text)
    except ValueError:
        raise StartError(f"{VARIABLE}={text[:40]!r} is not a descriptor", EXIT_USAGE) from None


def run(settings: Settings, fd: int) -> int:
    """Be the trial; returns the exit code.

    :raises StartError: it fails before there is a worker.
    """
    try:
        return _try(settings, fd)
    finally:
        if os.getpgrp() == os.getpid():  # as `execute` has left it, and nobody else's processes
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)  # helpers that the application has started


def check(settings: Settings) -> int:
    """Read what a start would read and import the application, for --check-config; returns the exit code.

    :raises StartError: the server could not start so.
    """
    try:
        opening.work_in(settings.chdir)
    except IdentityError as error:
        raise StartError(str(error), EXIT_USAGE) from error
    _read(settings)
    print("the configuration is fine", flush=True)
    return 0


def _read(settings: Settings) -> tuple[int, Any, Any]:
    """Descriptors that a process may open, the TLS context and the application."""
    nofile = raise_nofile()
    try:
        sizing.plan(settings.workers, settings.connections, nofile, sizing.cpu_count())
        context = opening.tls_context(settings)
    except (sizing.SizingError, CertificateError) as error:
        raise StartError(str(error), EXIT_USAGE) from error
    return nofile, context, application.load(settings.app)


def _try(settings: Settings, fd: int) -> int:
    try:
        listener = handover.adopt(fd)
    except handover.HandoverError as error:
        raise StartError(f"{VARIABLE}={fd}: {error}", EXIT_USAGE) from error
    nofile, context, found = _read(settings)
    board = Scoreboard()
    if settings.metrics is not None:
        load_metrics(board)
    servers = worker.make_servers([worker.Place(listener, False, context)], found, settings, nofile)
    parent = os.getpid()
    _set_handler(signal.SIGCHLD, signal.SIG_DFL)  # as the supervisor does: ignored, it would tell us nothing
    pid = fork()
    if not pid:
        end_with_parent(signal.SIGKILL, parent)
        _exit(worker.main(worker.Duty(0, [listener], servers, settings, board, -1), worker.rehearse))
    _, status = waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) == worker.REHEARSED:
        return worker.REHEARSED
    print(f"a worker on trial {cause(status)}", file=sys.stderr, flush=True)
    return EXIT_WORKERS


def load_metrics(board: Scoreboard) -> None:
    """Import what the metrics process needs, so that it shares our memory.

    :raises StartError: without prometheus_client.
    """
    try:
        exposition.application(metrics.WorkersCollector(board))
    except exposition.MetricsUnavailableError as error:
        raise StartError(str(error), EXIT_USAGE) from error
