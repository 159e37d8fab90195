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

from parked.prefork import handover, metrics, sizing, worker
from parked.prefork.identity import IdentityError, PidFile, become
from parked.prefork.listening import ListenError, another, inherited, listen, place
from parked.prefork.notify import READY, STOPPING, notify, reloading
from parked.prefork.scoreboard import LAYOUT, Scoreboard
from parked.prefork.settings import (
    EXIT_APP,
    EXIT_KILLED,
    EXIT_LISTEN,
    EXIT_USAGE,
    EXIT_WORKERS,
    PROGRAM,
    Settings,
)
from parked.shared import exposition
from parked.shared.descriptors import raise_nofile
from parked.shared.listeners import MAX_WORKERS

_SIGNALS: Final = {
    signal.SIGCHLD,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
}
#: Seconds between looks at the scoreboard while workers start.
_START_POLL_S: Final = 0.02
#: Seconds before a worker is replaced that lived less than `_LONG_LIFE_S`: doubled each time, from .. to.
_BACK_OFF_S: Final = (0.1, 10.0)
_LONG_LIFE_S: Final = 10.0
#: Seconds that the application may take to be imported on trial, before a reload.
_TRIAL_S: Final = 60.0
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
    """A place for a worker, or for the metrics process: its socket stays, whoever works there."""

    listener: socket
    #: Of the scoreboard; None before the first start, and for the metrics process.
    row: int | None = None
    pid: int = 0
    started: float = 0.0
    #: When to start the next process here, while there is none; on the monotonic clock.
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
        self._nofile = raise_nofile()
        handed_over = handover.receive(os.environ)
        try:
            workers, self._capacity = sizing.plan(
                settings.workers, settings.connections, self._nofile, sizing.cpu_count()
            )
            if handed_over:
                workers = handed_over.workers
                self._listeners = [handover.adopt(fd) for fd in handed_over.listeners]
            else:
                self._listeners = inherited(os.environ) or listen(settings.bind, workers, settings.backlog)
            metrics_listener = None
            if handed_over and handed_over.metrics is not None:
                metrics_listener = handover.adopt(handed_over.metrics)
            elif settings.metrics is not None:
                (metrics_listener,) = listen(settings.metrics, 1, 0)
            self._pid_file = PidFile(settings.pid) if settings.pid else None
            become(settings.user, settings.group)
        except (sizing.SizingError, IdentityError) as error:
            raise StartError(str(error), EXIT_USAGE) from error
        except ListenError as error:
            raise StartError(str(error), EXIT_LISTEN) from error
        # Here, after our sockets are made and before the application is imported: what that imports (sockets,
        # locks, database drivers) then cooperates, so that a request that waits lets others run. The
        # supervisor itself waits in the kernel; a socket made after this line would give it an event loop,
        # which no worker could use.
        try:
            monkey.patch_all()
        except ImportError as error:  # Python's own modules, which the new user may not read
            raise StartError(f"cannot go on as user {settings.user}: {error}", EXIT_APP) from error
        self._application = load_application(settings.app)
        self._shared = len(self._listeners) < workers
        self._slots = [_Slot(self._listeners[place % len(self._listeners)]) for place in range(workers)]
        self._scoreboard = _scoreboard(handed_over)
        self._metrics = _Slot(metrics_listener) if metrics_listener else None
        if self._metrics is not None:
            load_metrics(self._scoreboard)
        self._lifeline = os.pipe()
        self._announced = False
        self._start_failures = 0
        # Processes that do not belong here any more, and the pipes to those of an earlier image.
        self._retiring: set[int] = set(handed_over.old if handed_over else [])
        self._old_lifelines = list(handed_over.lifelines if handed_over else [])
        self._reload_wanted = False

    def run(self) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.collect()
        gc.freeze()
        try:
            return self._supervise()
        finally:
            for address in (self.settings.bind, self.settings.metrics):
                if address and address.path:
                    Path(address.path).unlink(missing_ok=True)
            if self._pid_file is not None:
                self._pid_file.remove()

    def _supervise(self) -> int:
        while True:
            self._start_due()
            if not self._announced:
                self._announce_if_ready()
            elif self._reload_wanted:
                self._reload()
            received = signal.sigtimedwait(_SIGNALS, self._timeout())
            number = received.si_signo if received else 0
            if number in (signal.SIGTERM, signal.SIGINT):
                return self._stop()
            if number == signal.SIGHUP:
                self._reload_wanted = True
            elif number == signal.SIGTTIN:
                self._add_worker()
            elif number == signal.SIGTTOU:
                self._remove_worker()
            elif number == signal.SIGCHLD:
                self._reap()
                if self._start_failures >= _MAX_START_FAILURES:
                    self._say(f"giving up: {self._start_failures} workers died before they were ready")
                    self._stop()
                    return EXIT_WORKERS

    def _places(self) -> list[_Slot]:
        return [*self._slots, self._metrics] if self._metrics is not None else self._slots

    # -- processes come

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._places():
            if not slot.pid and slot.due <= now:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        if slot.row is None and slot is not self._metrics:
            slot.row = self._scoreboard.claim()
            if slot.row is None:
                self._say("cannot start a worker: those of earlier reloads are still at work")
                slot.due = time.monotonic() + _BACK_OFF_S[1]
                return
        try:
            pid = fork()
        except OSError as error:
            self._say(f"cannot start a worker: {error.strerror}")
            slot.due = time.monotonic() + _BACK_OFF_S[1]
            return
        if not pid:
            _exit(self._work(slot))
        if slot.row is not None:
            self._scoreboard.set(slot.row, "owner", pid)
        slot.pid = pid
        slot.started = time.monotonic()

    def _work(self, slot: _Slot) -> int:
        """In the child, which must not return into the supervisor's code."""
        try:
            # gevent's close() waits for the event loop to have been round, which here may be never.
            for fd in (self._lifeline[1], *self._old_lifelines):
                close(fd)
            for other in self._places():
                if other.listener is not slot.listener:
                    other.listener.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches all; the supervisor will say TERM
            duty = worker.Duty(
                slot.row or 0,
                slot.listener,
                self._shared,
                self._application,
                self.settings,
                self._nofile,
                self._scoreboard,
                self._lifeline[0],
            )
            code = worker.serve_metrics(duty) if slot is self._metrics else worker.run(duty)
            sys.stdout.flush()
            sys.stderr.flush()
            return code
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            return 1

    def _is_ready(self, slot: _Slot) -> bool:
        return slot.row is not None and self._scoreboard.get(slot.row, "ready") == slot.pid != 0

    def _announce_if_ready(self) -> None:
        if not all(self._is_ready(slot) for slot in self._slots):
            return
        self._announced = True
        self._start_failures = 0
        workers = len(self._slots)
        where = " and ".join(dict.fromkeys(place(sock) for sock in self._listeners))
        line = (
            f"listening on {where} with {workers} worker{'s' * (workers > 1)}"
            f" for {self._capacity} connections"
        )
        print(line, flush=True)
        notify(READY, line)
        for pid in self._retiring:
            _kill(pid, signal.SIGHUP)

    def _timeout(self) -> float:
        """Seconds until something is due without a signal."""
        if not self._announced:
            return _START_POLL_S
        dues = [slot.due for slot in self._places() if not slot.pid]
        return max(0.0, min(dues) - time.monotonic()) if dues else 3600.0

    # -- more, fewer and new ones

    def _add_worker(self) -> None:
        """TTIN."""
        count = len(self._slots)
        if count >= MAX_WORKERS:
            return
        listener = self._listeners[0]
        if not self._shared:
            try:
                listener = another(listener, self.settings.backlog)
            except OSError as error:
                self._say(f"cannot add a worker: {error.strerror}")
                return
            self._listeners.append(listener)
        self._slots.append(_Slot(listener))
        self._say(f"adding a worker: {count + 1}")

    def _remove_worker(self) -> None:
        """TTOU."""
        if len(self._slots) < 2:
            return
        slot = self._slots.pop()
        if not self._shared:
            # First our copy: what the kernel still queues there, the worker takes before it retires.
            self._listeners.remove(slot.listener)
            slot.listener.close()
        if slot.pid:
            self._retiring.add(slot.pid)
            _kill(slot.pid, signal.SIGHUP)
        self._say(f"removing a worker: {len(self._slots)}")

    def _reload(self) -> None:
        """HUP: become the new image, if its application can be imported."""
        self._reload_wanted = False
        if not self._can_import():
            self._say("not reloaded: the application cannot be imported")
            return
        notify(reloading())
        handover.execute(
            handover.Handover(
                [listener.fileno() for listener in self._listeners],
                self._metrics.listener.fileno() if self._metrics is not None else None,
                len(self._slots),
                [*self._retiring, *(slot.pid for slot in self._places() if slot.pid)],
                [*self._old_lifelines, self._lifeline[1]],
                self._scoreboard.fd,
                LAYOUT,
            )
        )

    def _can_import(self) -> bool:
        """Try in a process of its own, as main() would, but only so far that the application is there."""
        trial = fork()
        if not trial:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.execve(sys.executable, sys.orig_argv, {**os.environ, "PARKED_TRIAL": "1"})
        deadline = time.monotonic() + _TRIAL_S
        while not (ended := waitpid(trial, WNOHANG))[0]:
            if time.monotonic() > deadline or signal.sigpending() & {signal.SIGTERM, signal.SIGINT}:
                _kill(trial, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, _START_POLL_S)
        self._reap()  # the signal may have been another child's
        return ended[1] == 0

    # -- processes go

    def _reap(self) -> None:
        while True:
            try:
                pid, status = waitpid(-1, WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self._retiring:
                self._retiring.discard(pid)
                self._scoreboard.release(pid)
            for slot in self._places():
                if slot.pid == pid:
                    self._lost(slot, status)
            if not self._retiring:
                while self._old_lifelines:
                    close(self._old_lifelines.pop())

    def _lost(self, slot: _Slot, status: int) -> None:
        now = time.monotonic()
        ready = self._is_ready(slot)
        if not ready and not self._announced:
            self._start_failures += 1
        if now - slot.started >= _LONG_LIFE_S or not slot.back_off_s:
            slot.back_off_s = _BACK_OFF_S[0]
            wait_s = 0.0 if ready else slot.back_off_s
        else:
            slot.back_off_s = wait_s = min(slot.back_off_s * 2, _BACK_OFF_S[1])
        when = f" in {wait_s:g} s" if wait_s else ""
        self._say(f"worker {slot.pid} {_cause(status)}; replacing it{when}")
        slot.pid = 0
        slot.due = now + wait_s
        if slot.row is not None:
            self._scoreboard.restart(slot.row)

    def _stop(self) -> int:
        """Let the workers finish; a second signal ends them at once."""
        notify(STOPPING)
        self._reap()  # who has died before is not our doing
        left = {slot.pid for slot in self._places() if slot.pid} | self._retiring
        for pid in left:
            _kill(pid, signal.SIGTERM)
        began = time.monotonic()
        deadline = began + self.settings.graceful_timeout + _EXIT_GRACE_S
        code = 0
        while left:
            try:
                pid, status = waitpid(-1, WNOHANG)
            except ChildProcessError:
                break
            if pid:
                left.discard(pid)
                code = EXIT_KILLED if status else code
                continue
            received = signal.sigtimedwait(_SIGNALS, max(0.0, deadline - time.monotonic()))
            now = time.monotonic()
            again = received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT)
            if now >= deadline or (again and now > began + _ECHO_S):
                for pid in left:
                    _kill(pid, signal.SIGKILL)
                code = EXIT_KILLED
                deadline = now + 3600.0  # a killed process ends, if the kernel lets it
        return code

    def _say(self, message: str) -> None:
        print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)


def load_metrics(scoreboard: Scoreboard) -> None:
    """Import what the metrics process needs, so that it shares our memory.

    :raises StartError: without prometheus_client.
    """
    try:
        exposition.application(metrics.WorkersCollector(scoreboard))
    except exposition.MetricsUnavailableError as error:
        raise StartError(str(error), EXIT_USAGE) from error


def _scoreboard(handed_over: handover.Handover | None) -> Scoreboard:
    """That of the image before us, so that totals go on, if it is of the same form."""
    if handed_over is None or handed_over.scoreboard < 0:
        return Scoreboard()
    if handed_over.layout != LAYOUT:
        close(handed_over.scoreboard)
        return Scoreboard()
    scoreboard = Scoreboard(handed_over.scoreboard)
    for owner in {*scoreboard.column("owner")} - {*handed_over.old}:
        scoreboard.release(owner)  # of a process that was about to be replaced
    return scoreboard


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it was quicker


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed by signal {os.WTERMSIG(status)}"
    return f"exited with code {os.WEXITSTATUS(status)}"
