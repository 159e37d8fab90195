"""The supervisor: forks the workers, replaces those that die, reloads, and stops them in order.

It is a plain process that waits for signals and otherwise for nothing: no event loop, no handlers that do
things between two lines (`parked.prefork.signals`). The application is imported here, before the forks, so
that all workers share its memory; `gc.freeze` keeps the collector from touching, and so copying, what they
share.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from os import _exit, close, fork  # as they are before gevent patches them
from socket import socket
from typing import Final

from parked.prefork import application, changes, forks, handover, sizing, trial, worker
from parked.prefork.access_log import LogError
from parked.prefork.application import StartError
from parked.prefork.binding import Binding, which_are_secure
from parked.prefork.changes import Changes
from parked.prefork.identity import IdentityError
from parked.prefork.lifetime import is_bounded
from parked.prefork.listening import (
    ListenError,
    another,
    by_address,
    can_multiply,
    is_activated,
    place,
)
from parked.prefork.notify import READY, STOPPING, notify, reloading
from parked.prefork.opening import Opened, open_all
from parked.prefork.processes import bury_orphans, ended, kill, stop
from parked.prefork.scoreboard import LAYOUT
from parked.prefork.settings import (
    EXIT_LISTEN,
    EXIT_USAGE,
    EXIT_WORKERS,
    PROGRAM,
    Settings,
)
from parked.prefork.signals import STOPPING as STOP_SIGNALS
from parked.prefork.signals import Signals, StopRequested, block
from parked.prefork.watchdog import Watchdog, look_s
from parked.server.certificates import CertificateError
from parked.server.server import KeepAliveWSGIServer
from parked.shared.children import cause
from parked.shared.listeners import MAX_WORKERS, capacity

#: Seconds between looks at the scoreboard while workers start.
_START_POLL_S: Final = 0.02
#: Seconds before a worker is replaced that lived less than `_LONG_LIFE_S`: doubled each time, from .. to.
_BACK_OFF_S: Final = (0.1, 10.0)
_LONG_LIFE_S: Final = 10.0
#: Deaths before any worker was ever ready after which we give up.
_MAX_START_FAILURES: Final = 5
#: Seconds between looks at the scoreboard for workers that want a successor.
_LOOK_S: Final = 0.5
#: Seconds without anything due; the pipe of signals wakes us.
_IDLE_S: Final = 3600.0


@dataclass
class _Slot:
    """A place for a worker, or for the metrics process: its sockets stay, whoever works there."""

    listeners: list[socket]
    #: Made before the forks, started behind them; none in the metrics process.
    servers: list[KeepAliveWSGIServer] = field(default_factory=list)
    #: Of the scoreboard; None before the first start, and for the metrics process.
    row: int | None = None
    pid: int = 0
    started: float = 0.0
    #: When to start the next process here, while there is none; on the monotonic clock.
    due: float = 0.0
    back_off_s: float = 0.0
    #: Who worked here before and retires when this one is ready.
    predecessor: int = 0


def run(settings: Settings, signals: Signals) -> int:
    """Run the server; returns the exit code.

    :raises StartError: it cannot start; what it made is gone, what was left to it is so again.
    """
    left = None
    try:
        left = handover.receive(os.environ)
        opened = open_all(settings, left)
    except (sizing.SizingError, IdentityError, LogError, CertificateError, handover.HandoverError) as error:
        if left is not None:
            handover.leave(left, os.environ)
        raise StartError(str(error), EXIT_USAGE) from error
    except ListenError as error:
        raise StartError(str(error), EXIT_LISTEN) from error
    try:
        return Supervisor(settings, signals, opened).run()
    finally:
        opened.files.remove()


class Supervisor:
    """One image of it, from what is open to the exit code, or to the next image."""

    def __init__(self, settings: Settings, signals: Signals, opened: Opened) -> None:
        self.settings = settings
        self._signals = signals
        self._opened = opened
        #: By address; each worker has its own socket there, or all have the same.
        self._groups = by_address(opened.listeners)
        self._own = [len(group) >= opened.workers and can_multiply(group[0]) for group in self._groups]
        names = [group[0].getsockname() for group in self._groups]
        self._secure = which_are_secure(settings.bind, names, opened.context is not None)
        self._slots = [
            _Slot([group[place % len(group)] for group in self._groups]) for place in range(opened.workers)
        ]
        self._scoreboard = opened.scoreboard
        #: Workers that are there for what settings ask for, before TTIN and TTOU.
        self._planned = opened.planned_before or opened.planned
        if opened.metrics is not None and settings.metrics is None:  # a reload has turned it off
            opened.metrics.close()
            opened.metrics = None
        self._metrics = _Slot([opened.metrics]) if opened.metrics else None
        self._watchdog = Watchdog(self._scoreboard, settings.timeout, self._say)
        #: Seconds between two looks at how the workers are.
        self._look_s = look_s(settings.timeout) if settings.timeout else _IDLE_S
        if is_bounded(settings):
            self._look_s = min(self._look_s, _LOOK_S)
        self._changes = Changes(())
        self._lifeline = os.pipe()
        self._announced = False
        self._start_failures = 0
        # Processes that do not belong here any more, and the pipes to those of an earlier image.
        self._retiring: set[int] = set(opened.old)
        self._old_lifelines = list(opened.lifelines)
        self._reload_wanted = False
        #: The process that tries the new code, and until when it may.
        self._trial = 0
        self._trial_ends = 0.0
        #: When to try once more to become an image that has an application; only if this one has none.
        self._again: float | None = None
        #: What the next fork is to keep.
        self._spared: list[socket] = []
        forks.in_child(self._let_go)

    def run(self) -> int:
        try:
            self._application = application.load(self.settings.app)
            if self._metrics is not None:
                trial.load_metrics(self._scoreboard)
            self._resize()
            self._tell_of_addresses()
            for slot in self._slots:
                self._prepare(slot)
        except StopRequested:
            return self._stop(at_once=False)
        except StartError as error:
            if not self._retiring:
                raise
            # It was tried before, so it may well work the next time. The old workers serve on.
            self._say(f"{error}; trying again in {_BACK_OFF_S[1]:g} s, the old workers stay")
            self._again = time.monotonic() + _BACK_OFF_S[1]
        if self.settings.reload:
            self._changes = changes.of_application(self.settings.config)
            self._look_s = min(self._look_s, changes.LOOK_S)
        self._signals.interrupts = False
        self._signals.take_all()
        gc.collect()
        gc.freeze()
        return self._supervise()

    def _supervise(self) -> int:
        while True:
            if self._again is None:
                self._start_due()
                if not self._announced:
                    self._announce_if_ready()
            elif self._again <= time.monotonic():
                self._become_next()
            if changed := self._changes.look():
                self._say(f"{changed} has changed")
                self._reload_wanted = True
            self._reload_if_wanted()
            if self.settings.timeout:
                self._watchdog.look(time.monotonic())
            self._replace_one()
            for number in self._signals.wait(self._timeout()):
                if number in STOP_SIGNALS:
                    return self._stop(at_once=number == signal.SIGQUIT)
                self._hear(number)
            self._reap()
            if self._start_failures >= _MAX_START_FAILURES:
                failed, self._start_failures = self._start_failures, 0
                if not self._retiring:
                    self._say(f"giving up: {failed} workers died before they were ready")
                    self._stop(at_once=False)
                    return EXIT_WORKERS
                self._say(f"{failed} new workers died before they were ready; the old ones stay")

    def _hear(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload_wanted = True
        elif number == signal.SIGUSR1:
            for pid in self._pids():
                kill(pid, signal.SIGUSR1)
        elif number == signal.SIGTTIN:
            self._add_worker()
        elif number == signal.SIGTTOU:
            self._remove_worker()

    def _places(self) -> list[_Slot]:
        return [*self._slots, self._metrics] if self._metrics is not None else self._slots

    def _pids(self) -> set[int]:
        """Of all processes that serve, those that retire included."""
        return {slot.pid for slot in self._places() if slot.pid} | self._retiring

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
        if slot is not self._metrics and not slot.servers:
            self._prepare(slot)
        self._spared = slot.listeners
        # A worker has no handlers yet; what comes meanwhile waits for them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = fork()
            if not pid:
                code = 1
                try:
                    code = self._work(slot)
                finally:
                    _exit(code)
        except OSError as error:
            self._say(f"cannot start a worker: {error.strerror}")
            slot.due = time.monotonic() + _BACK_OFF_S[1]
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._spared = []
        if slot.row is not None:
            self._scoreboard.set(slot.row, "owner", pid)
        slot.pid = pid
        slot.started = time.monotonic()

    def _work(self, slot: _Slot) -> int:
        """In the child, which must not return into the supervisor's code."""
        row, lifeline = slot.row or 0, self._lifeline[0]
        duty = worker.Duty(row, slot.listeners, slot.servers, self.settings, self._scoreboard, lifeline)
        return worker.main(duty, worker.serve_metrics if slot is self._metrics else worker.run)

    def _prepare(self, slot: _Slot) -> None:
        """Make the servers that a worker will start there."""
        contexts = [self._opened.context if secure else None for secure in self._secure]
        places = map(worker.Place, slot.listeners, self._own, contexts)
        slot.servers = worker.make_servers(places, self._application, self.settings, self._opened.nofile)

    def _let_go(self) -> None:
        """In a forked child, a worker or one of the application's own."""
        for fd in (self._lifeline[1], *self._old_lifelines):
            close(fd)
        if not self._spared:
            close(self._lifeline[0])
        for sock in (*self._listeners(), *(self._metrics.listeners if self._metrics else [])):
            if sock not in self._spared:
                sock.close()
        self._opened.files.let_go()

    def _listeners(self) -> list[socket]:
        return [sock for group in self._groups for sock in group]

    def _is_ready(self, slot: _Slot) -> bool:
        return slot.row is not None and self._scoreboard.get(slot.row, "ready") == slot.pid != 0

    def _announce_if_ready(self) -> None:
        if not all(self._is_ready(slot) for slot in self._slots):
            return
        self._announced = True
        self._start_failures = 0
        workers = len(self._slots)
        possible = capacity(workers, self._opened.nofile)
        connections = min(self.settings.connections or possible, possible)
        where = " and ".join(
            place(group[0], secure) for group, secure in zip(self._groups, self._secure, strict=True)
        )
        line = (
            f"listening on {where} with {workers} worker{'s' * (workers > 1)} for {connections} connections"
        )
        print(line, flush=True)
        notify(READY, line)
        for pid in self._retiring:
            kill(pid, signal.SIGHUP)

    def _timeout(self) -> float:
        """Seconds until something is due without a signal."""
        if not self._announced and self._again is None:
            return _START_POLL_S
        dues = [slot.due for slot in self._places() if not slot.pid] if self._again is None else [self._again]
        if self._trial and self._trial_ends:
            dues.append(self._trial_ends)
        return min([self._look_s, *(max(0.0, due - time.monotonic()) for due in dues)])

    # -- more, fewer and new ones

    def _tell_of_addresses(self) -> None:
        """A reload keeps its sockets: say it if settings name others."""
        if not self._retiring:
            return
        bindings = [] if is_activated(os.environ) else [("--bind", one) for one in self.settings.bind]
        if self.settings.metrics is not None:
            bindings.append(("--metrics", Binding(self.settings.metrics)))
        there = {"--bind": [group[0].getsockname() for group in self._groups], "--metrics": []}
        if self._metrics is not None:
            there["--metrics"].append(self._metrics.listeners[0].getsockname())
        for flag, binding in bindings:
            if not any(binding.may_be(name) for name in there[flag]):
                self._say(f"{flag} {binding.address} takes a restart")

    def _resize(self) -> None:
        """To what new settings ask for. If that is as many as before, what TTIN and TTOU did stays."""
        if self._opened.planned == self._planned:
            return
        self._planned = self._opened.planned
        while len(self._slots) > self._planned:
            self._remove_worker()
        while len(self._slots) < self._planned:
            before = len(self._slots)
            self._add_worker()
            if len(self._slots) == before:  # it has said why
                return

    def _add_worker(self) -> None:
        """TTIN."""
        count = len(self._slots)
        if count >= MAX_WORKERS:
            return
        listeners = [group[0] for group in self._groups]
        try:
            for number, own in enumerate(self._own):
                if own:
                    listeners[number] = another(listeners[number], self.settings.backlog)
        except OSError as error:
            self._say(f"cannot add a worker: {error.strerror}")
            return
        for group, own, listener in zip(self._groups, self._own, listeners, strict=True):
            if own:
                group.append(listener)
        self._slots.append(_Slot(listeners))
        self._say(f"adding a worker: {count + 1}")

    def _remove_worker(self) -> None:
        """TTOU."""
        if len(self._slots) < 2:
            return
        slot = self._slots.pop()
        for group, own, listener in zip(self._groups, self._own, slot.listeners, strict=True):
            if own:
                # First our copy: what the kernel still queues there, the worker takes before it retires.
                group.remove(listener)
                listener.close()
        self._release_predecessor(slot)
        if slot.pid:
            self._retiring.add(slot.pid)
            kill(slot.pid, signal.SIGHUP)
        elif slot.row is not None:  # it has died, and its row was kept for a successor
            self._scoreboard.free(slot.row)
        self._say(f"removing a worker: {len(self._slots)}")

    def _replace_one(self) -> None:
        """Of the workers that want a successor one at a time: the others serve meanwhile."""
        waiting = next((slot for slot in self._slots if slot.predecessor), None)
        if waiting is not None:
            if self._is_ready(waiting):
                self._release_predecessor(waiting)
            return
        for slot in self._slots:
            if slot.pid and slot.row is not None and self._scoreboard.get(slot.row, "leaving"):
                slot.predecessor, slot.pid, slot.row = slot.pid, 0, None
                self._retiring.add(slot.predecessor)
                self._start(slot)
                return

    def _release_predecessor(self, slot: _Slot) -> None:
        if slot.predecessor in self._retiring:  # else it has ended by itself
            kill(slot.predecessor, signal.SIGHUP)
        slot.predecessor = 0

    def _reload_if_wanted(self) -> None:
        """HUP: try the new code, unless that is under way or nothing here is ready yet."""
        if self._trial:
            if self._trial_ends and time.monotonic() >= self._trial_ends:
                self._say(f"the new version is not ready after {self.settings.trial_timeout:g} s")
                self._trial_ends = 0.0
                self._end_trial()
            return
        if not self._reload_wanted or not (self._announced or self._retiring):
            return
        self._reload_wanted = False
        self._spared = self._groups[0][:1]
        supervisor = os.getpid()
        try:
            pid = fork()
        except OSError as error:
            self._say(f"not reloaded: {error.strerror}")
            return
        finally:
            spared, self._spared = self._spared, []
        if not pid:
            trial.execute(spared[0], self._opened.folder, supervisor)
        self._trial = pid
        patience_s = self.settings.trial_timeout
        self._trial_ends = time.monotonic() + patience_s if patience_s else 0.0

    def _end_trial(self) -> None:
        kill(self._trial, signal.SIGKILL)  # it may not have a group of its own yet
        kill(-self._trial, signal.SIGKILL)

    def _tried(self, status: int) -> None:
        """The trial has ended."""
        self._trial = 0
        if reason := trial.verdict(status):
            self._say(f"not reloaded: {reason}")
        elif not self._reload_wanted:  # else the code has changed again, and is tried again
            notify(reloading())
            self._become_next()

    def _become_next(self) -> None:
        metrics = self._metrics.listeners[0].fileno() if self._metrics is not None else None
        block()
        try:
            handover.execute(
                handover.Handover(
                    [listener.fileno() for listener in self._listeners()],
                    metrics,
                    len(self._slots),
                    [*self._pids()],
                    [*self._old_lifelines, self._lifeline[1]],
                    self._scoreboard.fd,
                    LAYOUT,
                    self._opened.folder,
                    self._opened.files.known,
                    self._opened.files.remover,
                    self._opened.files.pid_fd,
                    self._planned,
                )
            )
        except OSError as error:
            self._signals.take_all()
            self._say(f"not reloaded: {error.strerror}")
            notify(READY)
            if self._again is not None:
                self._again = time.monotonic() + _BACK_OFF_S[1]

    # -- processes go

    def _reap(self) -> None:
        """Take note of who has ended, of our own children."""
        if self._trial and (status := ended(self._trial)) is not None:
            self._tried(status)
        for pid in [pid for pid in self._retiring if ended(pid) is not None]:
            self._retiring.discard(pid)
            self._scoreboard.release(pid)
        for slot in self._places():
            if slot.pid and (status := ended(slot.pid)) is not None:
                self._lost(slot, status)
        if not self._retiring:
            while self._old_lifelines:
                close(self._old_lifelines.pop())
        if os.getpid() == 1:
            bury_orphans()

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
        self._say(f"worker {slot.pid} {cause(status)}; replacing it{when}")
        slot.pid = 0
        slot.due = now + wait_s
        if slot.row is not None:
            self._scoreboard.restart(slot.row)

    def _stop(self, at_once: bool) -> int:
        """Let the workers finish; *at_once*, or with a second signal, end them as they are."""
        self._signals.interrupts = False
        self._signals.take_all()
        notify(STOPPING)
        if self._trial:
            self._end_trial()
        return stop(self._pids(), self._signals, None if at_once else self.settings.graceful_timeout)

    def _say(self, message: str) -> None:
        print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)
