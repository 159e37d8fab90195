"""The supervisor: makes the sockets, forks the workers, replaces those that die, stops them in order.

It is a plain process that waits for signals with sigtimedwait(2): no event loop, no handlers that run between
two lines. The application is imported here, before the forks, so that all workers share its memory;
`gc.freeze` keeps the collector from touching, and so copying, what they share.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from os import (
    WNOHANG,
    _exit,
    close,
    fork,
    waitpid,
)  # as they are before gevent patches them: see `_be_worker`
from pathlib import Path
from socket import socket
from typing import Any, Final

from gevent import monkey

from app import sizing, worker
from app.listening import ListenError, listen
from app.scoreboard import Scoreboard
from app.settings import EXIT_APP, EXIT_KILLED, EXIT_LISTEN, EXIT_USAGE, EXIT_WORKERS, Settings

_SIGNALS: Final = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
#: Seconds between looks at the scoreboard while workers start.
_START_POLL_S: Final = 0.02
#: Seconds before a worker is replaced that lived less than `_LONG_LIFE_S`: doubled each time, from .. to.
_BACK_OFF_S: Final = (0.1, 10.0)
_LONG_LIFE_S: Final = 10.0
#: Deaths before any worker was ever ready after which we give up.
_MAX_START_FAILURES: Final = 5
#: Seconds in which a second TERM or INT is taken for an echo of the first: timeout(1) and some shells signal
#: a process and then its group.
_ECHO_S: Final = 0.5
#: Seconds beyond the graceful timeout that a worker may take to exit.
_EXIT_GRACE_S: Final = 2.0


class StartError(Exception):
    """Why the server cannot start: one line for the user, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class _Slot:
    """A place for a worker: its socket stays, whoever works there."""

    row: int
    listener: socket
    pid: int = 0
    started: float = 0.0
    #: When to start the next worker here, while there is none; on the monotonic clock.
    due: float = 0.0
    back_off_s: float = 0.0


def load_application(name: str) -> Callable[..., Any]:
    """Import MODULE:CALLABLE; the current directory counts as on Python's own path.

    :raises StartError: with the module and the error.
    """
    module_name, _, attributes = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception as error:
        raise StartError(f"cannot import {name}: {type(error).__name__}: {error}", EXIT_APP) from error
    except SystemExit as error:
        raise StartError(f"cannot import {name}: it exits ({error.code})", EXIT_APP) from error
    if not callable(found):
        raise StartError(f"cannot import {name}: it is not callable", EXIT_APP)
    application: Callable[..., Any] = found
    return application


class Supervisor:
    """Run the server as *settings* say; `run` returns the exit code."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._nofile = sizing.raise_nofile()
        try:
            self._workers, self._capacity = sizing.plan(
                settings.workers, settings.connections, self._nofile, sizing.cpu_count()
            )
        except sizing.SizingError as error:
            raise StartError(str(error), EXIT_USAGE) from error
        try:
            listeners = listen(settings.bind, self._workers, settings.backlog)
        except ListenError as error:
            raise StartError(str(error), EXIT_LISTEN) from error
        # Here, after our sockets are made and before the application is imported: what that imports (sockets,
        # locks, database drivers) then cooperates, so that a request that waits lets others run. The
        # supervisor itself waits in the kernel; a socket made after this line would give it an event loop,
        # which no worker could use.
        monkey.patch_all()
        self._application = load_application(settings.app)
        self._slots = [_Slot(row, listener) for row, listener in enumerate(listeners)]
        self._scoreboard = Scoreboard(self._workers)
        self._lifeline = os.pipe()
        self._announced = False
        self._start_failures = 0

    def run(self) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.collect()
        gc.freeze()
        while True:
            self._start_due()
            if not self._announced:
                self._announce_if_ready()
            received = signal.sigtimedwait(_SIGNALS, self._timeout())
            if received is None:
                continue
            if received.si_signo != signal.SIGCHLD:
                return self._stop()
            self._reap()
            if self._start_failures >= _MAX_START_FAILURES:
                self._say(f"giving up: {self._start_failures} workers died before they were ready")
                self._stop()
                return EXIT_WORKERS

    # -- workers come

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if not slot.pid and slot.due <= now:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        self._scoreboard.clear(slot.row)
        try:
            pid = fork()
        except OSError as error:
            self._say(f"cannot start a worker: {error.strerror}")
            slot.due = time.monotonic() + _BACK_OFF_S[1]
            return
        if not pid:
            _exit(self._be_worker(slot))
        slot.pid = pid
        slot.started = time.monotonic()

    def _be_worker(self, slot: _Slot) -> int:
        """In the child, which must not return into the supervisor's code."""
        try:
            # gevent's close() waits for the event loop to have been round, which here may be never.
            close(self._lifeline[1])
            for other in self._slots:
                if other is not slot:
                    other.listener.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches all; the supervisor will say TERM
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            code = worker.run(
                slot.row,
                slot.listener,
                self._application,
                self.settings,
                self._nofile,
                self._workers,
                self._scoreboard,
                self._lifeline[0],
            )
            sys.stdout.flush()
            sys.stderr.flush()
            return code
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            return 1

    def _is_ready(self, slot: _Slot) -> bool:
        return slot.pid != 0 and self._scoreboard.get(slot.row, "ready") == slot.pid

    def _announce_if_ready(self) -> None:
        if all(self._is_ready(slot) for slot in self._slots):
            self._announced = True
            host, port = self._slots[0].listener.getsockname()[:2]
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            print(
                f"listening on http://{place} with {self._workers} worker{'s' * (self._workers > 1)}"
                f" for {self._capacity} connections",
                flush=True,
            )

    def _timeout(self) -> float:
        """Seconds until something is due without a signal."""
        if not self._announced:
            return _START_POLL_S
        dues = [slot.due for slot in self._slots if not slot.pid]
        return max(0.0, min(dues) - time.monotonic()) if dues else 3600.0

    # -- workers go

    def _reap(self) -> None:
        while True:
            try:
                pid, status = waitpid(-1, WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for slot in self._slots:
                if slot.pid == pid:
                    self._lost(slot, status)

    def _lost(self, slot: _Slot, status: int) -> None:
        now = time.monotonic()
        if not self._is_ready(slot) and not self._announced:
            self._start_failures += 1
        if now - slot.started >= _LONG_LIFE_S or not slot.back_off_s:
            slot.back_off_s = _BACK_OFF_S[0]
            wait_s = 0.0 if self._is_ready(slot) else slot.back_off_s
        else:
            slot.back_off_s = wait_s = min(slot.back_off_s * 2, _BACK_OFF_S[1])
        self._say(
            f"worker {slot.pid} {_cause(status)}; replacing it" + (f" in {wait_s:g} s" if wait_s else "")
        )
        slot.pid = 0
        slot.due = now + wait_s

    def _stop(self) -> int:
        """Let the workers finish; a second signal ends them at once."""
        self._kill(signal.SIGTERM)
        began = time.monotonic()
        deadline = began + self.settings.graceful_timeout + _EXIT_GRACE_S
        code = 0
        while any(slot.pid for slot in self._slots):
            code = max(code, self._reap_stopped())
            if not any(slot.pid for slot in self._slots):
                break
            received = signal.sigtimedwait(_SIGNALS, max(0.0, deadline - time.monotonic()))
            now = time.monotonic()
            if now >= deadline or (
                received and received.si_signo != signal.SIGCHLD and now > began + _ECHO_S
            ):
                self._kill(signal.SIGKILL)
                code = EXIT_KILLED
                deadline = now + 3600.0  # a killed process ends, if the kernel lets it
        return code

    def _reap_stopped(self) -> int:
        code = 0
        for slot in self._slots:
            if slot.pid:
                try:
                    pid, status = waitpid(slot.pid, WNOHANG)
                except ChildProcessError:
                    pid, status = slot.pid, 0
                if pid:
                    slot.pid = 0
                    code = max(code, EXIT_KILLED if status else 0)
        return code

    def _kill(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.pid:
                os.kill(slot.pid, number)

    def _say(self, message: str) -> None:
        print(f"run_server: {message}", file=sys.stderr, flush=True)


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed by signal {os.WTERMSIG(status)}"
    return f"exited with code {os.WEXITSTATUS(status)}"
