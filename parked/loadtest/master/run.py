"""One run, second by second: its phases, and what becomes of its workers, hosts and servers.

    ramp    from the start until all connections are established
    hold    from then on; ends after --hold, or when Locust ends the test
    stop    users are being stopped

(back to the ramp if the number of users or their think time is changed, from Locust's web UI, say). Each
second what the workers counted (:mod:`parked.loadtest.master.fleet`) and what outside witnesses saw
(:mod:`parked.loadtest.machine.monitor`) become a row of `samples.csv` and a line of `logfile`; `run.json` has
the facts from which :mod:`parked.loadtest.report.report` makes the summary.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import platform
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gevent.lock import RLock
from locust.runners import STATE_MISSING, STATE_RUNNING, STATE_SPAWNING, MasterRunner

from parked.loadtest.client.think import grain_s
from parked.loadtest.client.user import KeepAliveUser
from parked.loadtest.machine.machine import Machine
from parked.loadtest.machine.monitor import MachineSample, Monitor
from parked.loadtest.master import rows
from parked.loadtest.master.folder import Folder
from parked.loadtest.master.hold import Hold
from parked.loadtest.master.hope import Hope
from parked.loadtest.master.hosts import COLUMNS as HOST_COLUMNS
from parked.loadtest.master.ramp import Pace
from parked.loadtest.master.server_metrics import NoMetrics, ServerMetrics
from parked.loadtest.terms import clock, console, options, values, variables
from parked.loadtest.terms.harmless import for_line
from parked.shared.private import masked

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

    from parked.loadtest.master.fleet import Fleet, Second
    from parked.loadtest.master.hosts import Hosts

logger = logging.getLogger(__name__)

#: Seconds between two writings of run.json.
FACTS_S = 5
#: Seconds without one more connection after which a ramp counts as stalled and the test ends.
STALLED_S = 60
#: Seconds without another user after which all are there that will be.
SETTLED_S = 5.0
#: Seconds by which the wall clock must have been set to be told of; NTP slews it by less in an hour.
CLOCK_STEP_S = 2.0
#: Packages whose versions belong to a result.
PACKAGES = ("locust", "gevent", "greenlet", "falcon", "httptools", "hdrhistogram")


class Run:
    """One run's phases, rows and facts.

    :ivar fleet: the workers' counts of this run.
    :ivar row: the last second, as in samples.csv.
    :ivar offered_per_s: requests/s due in that second; None if users have no common think time.
    :ivar second_now: what the workers counted up to that second.
    :ivar machine_now: what the monitor saw in it.
    :ivar hold: of the hold that goes on, or was the last.
    :ivar over: why the test is to end, once it is.
    """

    def __init__(self, environment: Environment, fleet: Fleet, hosts: Hosts | None = None) -> None:
        assert environment.runner is not None
        assert environment.parsed_options is not None
        chosen = options.ours(environment.parsed_options)
        self._runner = environment.runner
        self._environment = environment
        self._chosen = chosen
        self.fleet = fleet
        self._hosts = hosts
        self.row: dict[str, Any] = {}
        self.offered_per_s: float | None = None
        self.second_now: Second | None = None
        self.machine_now: MachineSample | None = None
        self.hold = Hold()
        self._hope = Hope()
        cores = os.cpu_count() if hosts is None else None
        self.pace = Pace(chosen.spawn_rate, cores) if chosen.adaptive else None
        self.ended = False
        self.over = ""
        self._ending = RLock()
        self._phase = "ramp"
        self._started = time.monotonic()
        self.started_unix_s = clock.unix_time_s()
        hosts_of_classes = [kind.host for kind in _keep_alive_classes(environment) if kind.host]
        self._host = environment.host or next(iter(hosts_of_classes), "")
        self._hold_asked_s = values.duration(chosen.hold) if chosen.hold else None
        self._think_s = _think_time_of(environment)
        self._asked = self._target, self._think_s
        #: Users that are to be connected (:meth:`_look_who_is_there`); how many there are, and since when.
        self._wanted = self._target
        #: Users of those that were asked for that are not wanted any more.
        self._ended_themselves = 0
        self._users = 0
        self._users_since = 0.0
        #: The last change was one to fewer users.
        self._goes_down = False
        #: When nobody sleeps any more who has drawn a think time of before it was changed.
        self._awake_at = 0.0
        #: What was asked for anew while the run went on.
        self._changes: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._totals: dict[str, float] = {}
        #: Most connections, of the whole run and since it was last asked for others; when there was one more.
        self._peak = self._most = 0
        self._progress_at = 0.0
        #: When the facts were written last, and in which phase.
        self._facts_at = 0.0
        self._facts_phase = ""
        #: Seconds by which the wall clock was found to be off; told once each time that it changes.
        self._step_s = 0.0
        self._server_processes_lost = 0
        self._monitor: Monitor | None = None
        self._folder: Folder | None = None
        #: The server's own counts; None if it does not tell them.
        self._server: ServerMetrics | None = None
        folder = Path(chosen.results) if chosen.results else None
        if folder is not None or chosen.metrics:
            self._monitor = self._watch()
        if folder is not None:
            self._folder = Folder(folder, None if hosts is None else HOST_COLUMNS)
            self._machine = Machine.read().as_dict()
            if chosen.server_metrics:
                self._follow_server(ServerMetrics(chosen.server_metrics))
        if hosts is not None:
            hosts.begin()

    def _watch(self) -> Monitor:
        # The servers of a run of several hosts are on none of them, as far as is known.
        monitor = Monitor(os.getpid(), _ports_here(self._host) if self._hosts is None else ())
        self._server_is_local = bool(monitor.sample().server_processes)
        return monitor

    def _follow_server(self, metrics: ServerMetrics) -> None:
        try:
            metrics.begin()
        except NoMetrics as error:
            logger.warning("no server metrics at %s: %s", metrics.address, error)
        else:
            self._server = metrics

    @property
    def has_an_end(self) -> bool:
        """Whether it is over after its hold, and not when Locust says."""
        return self._hold_asked_s is not None

    @property
    def folder(self) -> Path | None:
        """Where the results are written; None if they are not."""
        return None if self._folder is None else self._folder.path

    @property
    def _target(self) -> int:
        return self._runner.target_user_count

    def _look_who_is_there(self) -> None:
        """How many connections there are to be: those of KeepAliveUsers, as long as these are alive.

        Users of other classes have none that we know of, and a user may end itself (StopUser). A worker that
        has ended has not ended its users: they still count.
        """
        runner = self._runner
        if self._phase == "stop":
            return
        wanted = self._target
        users = sum(worker.sample["users"] for worker in self.fleet.workers.values())
        if users != self._users:
            self._users, self._users_since = users, time.monotonic()
        if runner.state == STATE_RUNNING:
            wanted -= sum(
                runner.target_user_classes_count.get(user_class.__name__, 0)
                for user_class in self._environment.user_classes
                if not issubclass(user_class, KeepAliveUser)
            )
            asked = wanted
            if self._phase == "ramp" and time.monotonic() - self._users_since >= SETTLED_S:
                # Others have never come, like those of a worker that ended before it told of any.
                ended = sum(worker.sample["users_ended"] for worker in self.fleet.workers.values())
                wanted = min(wanted, max(users, wanted - ended))
            elif self._phase == "hold":
                wanted = min(wanted, self._wanted)
            self._ended_themselves = asked - wanted
        self._wanted = wanted

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def second(self) -> None:
        """Look at everything, write it down, and decide on the phase."""
        hosts, at_s = self._hosts, self._elapsed_s
        for text in hosts.news(at_s) if hosts is not None else ():
            self.note(text)
        self._lose_workers(at_s)
        self._notice_step()
        second = self.fleet.second()
        machine = self._monitor.sample() if self._monitor is not None else None
        if hosts is not None and machine is not None:
            machine = hosts.machine(machine)
        for process in machine.lost if machine is not None else ():
            if process.side == "server":
                self._server_processes_lost += 1
                self.note(f"server process {process.pid} ended at {self._elapsed_s:.0f} s")
        self._notice_change()
        self._look_who_is_there()
        phase = self._phase
        self._decide(second, machine)
        of_hosts = hosts.second(at_s, phase, second) if hosts is not None else []
        self._take_row(phase, second, machine)
        self._write(of_hosts)

    def _lose_workers(self, at_s: float) -> None:
        hosts = self._hosts
        for worker in self.fleet.lose_silent(None if hosts is None else hosts.may_be_alive):
            if hosts is None or not hosts.has_lost(worker):
                where = f" on {hosts.name_of(worker)}" if hosts is not None else ""
                self.note(
                    f"Locust worker pid {worker.sample['pid']}{where} ended at {at_s:.0f} s "
                    f"with {worker.sample['connections']:,} connections"
                )
            self._forget(worker.name)

    def _name_stuck_workers(self) -> None:
        """Their connections stand, and what is due on them is neither sent nor counted."""
        for worker, silent_s in self.fleet.stuck():
            where = f" on {self._hosts.name_of(worker)}" if self._hosts is not None else ""
            self.note(
                f"Locust worker pid {worker.sample['pid']}{where} was stuck: nothing was heard of it and its "
                f"{worker.sample['connections']:,} connections in the last {silent_s:.0f} s"
            )

    def _forget(self, name: str) -> None:
        """Have Locust see at its next heartbeat that a worker is gone; it would wait for a minute by
        itself."""
        if isinstance(self._runner, MasterRunner):
            node = self._runner.clients.get(name)
            if node is not None and node.state != STATE_MISSING:
                node.heartbeat = -1

    def _notice_step(self) -> None:
        """Somebody has set the wall clock: the run's times go on as before, other programs' do not."""
        step_s = clock.step_s()
        if abs(step_s - self._step_s) >= CLOCK_STEP_S:
            logger.warning("the wall clock is off by %+.1f s; times in the results are not", step_s)
            self._step_s = step_s

    def _notice_change(self) -> None:
        """Other connections or think times than before: the web UI's form, or a LoadTestShape. A hold counts
        from the last change."""
        asked = self._target, _think_time_of(self._environment)
        if asked == self._asked or self._phase == "stop":
            return
        if asked[1] != self._think_s and self._most:
            self._awake_at = time.monotonic() + max(self._think_s or (0.0,))
        self._goes_down = asked[0] < self._asked[0]
        self._asked = asked
        self._think_s = asked[1]
        self._changes.append(
            {"time_s": round(self._elapsed_s, 1), "connections": asked[0], "think_s": asked[1]}
        )
        self._most, self._progress_at = 0, time.monotonic()
        self._phase, self.hold = "ramp", Hold()

    def _decide(self, second: Second, machine: MachineSample | None) -> None:
        now = time.monotonic()
        self._peak = max(self._peak, second.connections)
        established = self._established(second)
        if established > self._most:
            self._most, self._progress_at = established, now
        if self._phase == "ramp":
            if self.pace is not None:
                self.pace.observe(second, machine)
            if (
                established >= self._wanted > 0
                and self._are_gone(now)
                and self._runner.state == STATE_RUNNING
            ):
                if now >= self._awake_at:
                    self._phase = "hold"
                    self.hold.begin(now, self.fleet.counted_unix_s, second, machine)
                    self.fleet.hold_begins()
            elif self._ended_themselves and not self._wanted and self._hold_asked_s is not None:
                self.over = "all users have ended themselves, ending the test"
            elif self._stalled(now):
                self.note(f"the ramp stalled at {established:,} of {self._wanted:,} connections")
                self.over = "ramp stalled: no new connection for a minute, ending the test"
        elif self._phase == "hold":
            self.hold.add(now, self.fleet.counted_unix_s, second, machine)
            if self._hold_asked_s is not None and self.hold.seconds >= self._hold_asked_s:
                self.over = f"held for {self.hold.seconds:.0f} s, ending the test"
        may_end = self._hold_asked_s is not None and self._phase != "stop" and not self.over
        if may_end and self._hope.is_lost(now, second.totals):
            self.note(f"ended early: all {second.totals['failures']:,} requests until then have failed")
            self.over = "every request fails, ending the test"

    def _are_gone(self, now: float) -> bool:
        """Whether those that are not wanted any more have ended. Samples are a second behind Locust; and of a
        worker that has ended the last one stays."""
        fewer = self._users <= self._target or now - self._users_since >= SETTLED_S
        return fewer or not self._goes_down

    def _established(self, second: Second) -> int:
        """Connections that do what they are to do: those of event streams count once these have begun."""
        if _workload_of(self._environment) != "events":
            return second.connections
        return 0 if second.heard is None else min(second.connections, second.heard.streams)

    def _stalled(self, now: float) -> bool:
        """Whether a hold that was asked for will not come: a run without one ends when Locust says."""
        if self._hold_asked_s is None or not self._wanted or self._runner.state != STATE_RUNNING:
            return False
        return now - (self._progress_at or self._started) > STALLED_S

    def _take_row(self, phase: str, second: Second, machine: MachineSample | None) -> None:
        self.row = {
            "time_s": round(self._elapsed_s, 1),
            "unix_time_s": round(clock.unix_time_s(), 1),
            "counted_unix_s": round(self.fleet.counted_unix_s, 3),
            "phase": phase,
            "connections_wanted": self._wanted,
            **rows.counted(second, self._totals, phase),
        }
        if self._server is not None and (told := self._server.since_begin):
            self.row |= told.columns
        if machine is not None:
            self.row |= rows.measured(machine)
        self._totals = second.totals
        self.second_now, self.machine_now = second, machine
        # A lost connection still has requests due in the hold.
        due = self._wanted if phase == "hold" else second.connections
        self.offered_per_s = 2 * due / sum(self._think_s) if self._think_s and any(self._think_s) else None

    def _write(self, of_hosts: list[dict[str, Any]]) -> None:
        if self._folder is None:
            return
        console.say(console.line(self.row))
        self._folder.write_row(self.row, of_hosts)
        due = not self._facts_at or time.monotonic() - self._facts_at >= FACTS_S
        # Also as the hold begins: who is killed then has established all connections, and is not to say less.
        if due or self._phase != self._facts_phase:
            self._facts_at, self._facts_phase = time.monotonic(), self._phase
            self._folder.write_facts(self._facts())
        if self._folder.filled_up():
            self._tell(f"results: the disk is full ({self.folder}); what was kept back for this is in use")

    def _tell(self, text: str) -> None:
        """A note that can't wait for the report."""
        console.say(text)
        self.note(text)

    def note(self, text: str) -> None:
        """Something that a reader of the results has to know."""
        text = for_line(text)  # strangers may have a part in it
        logger.warning(text)
        self._notes.append(text)

    def cannot_write(self, error: OSError) -> None:
        if self._folder is not None and self._folder.give_up():
            self._tell(
                f"results: {error.strerror} ({error.filename or self.folder}); the run goes on unrecorded"
            )

    def stopping(self) -> None:
        """Locust begins to stop the users."""
        asked = self._hold_asked_s is not None or self._folder is not None  # else it is Locust's run
        is_on_its_way = self._phase == "ramp" and (self._wanted or not self._ended_themselves)
        if asked and is_on_its_way and self._runner.state in (STATE_SPAWNING, STATE_RUNNING):
            self.note("ended before all connections were established")
        if self._phase == "hold":
            self._name_stuck_workers()
        self._phase = "stop"

    def end(self) -> None:
        """The last worker has stopped: write the last row and the facts."""
        with self._ending:  # who quits meanwhile has to wait for the facts
            if self.ended:
                return
            self.ended = True
            self._phase = "stop"
            if self._server is not None:
                self._server.stop()
                self._server.settle(self.fleet.answered)
            if self.fleet.news or self._server is not None:
                self._try_to(self.second)
            if self._folder is not None:
                folder = self._folder
                self._try_to(lambda: folder.write_facts(self._facts()))
                folder.close()
            if self._hosts is not None:
                self._hosts.end()

    def _try_to(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.cannot_write(error)

    def _facts(self) -> dict[str, Any]:
        """For run.json."""
        assert self._folder is not None
        return {
            "host": masked(self._host),
            "target_connections": self._wanted,
            "users_ended_themselves": self._ended_themselves,
            "started_unix_s": self.started_unix_s,
            "think_s": self._think_s,
            "think_grain_s": grain_s(self._think_s[1] if self._think_s else 0.0),
            "workload": _workload_of(self._environment),
            "changes": self._changes,
            "length": _length_of(self._environment),
            "hold_asked_s": self._hold_asked_s,
            "ramp_s": (self.hold.began or time.monotonic()) - self._started,
            "peak_connections": self._peak,
            "totals": self._totals,
            "failures_by_kind": self.second_now.failures_by_kind if self.second_now else {},
            "workers": self.fleet.table(),
            "other_classes": [
                kind.__name__
                for kind in self._environment.user_classes
                if not issubclass(kind, KeepAliveUser)
            ],
            "hosts": self._hosts.table() if self._hosts is not None else [],
            "server_software": self.fleet.server_software,
            "server_is_local": self._server_is_local,
            "server_processes_lost": self._server_processes_lost,
            "socket_bytes_from": self.machine_now.socket_bytes_from if self.machine_now else None,
            "server_metrics": self._server is not None,
            "server_gc_pause_s": self._server.gc_pause_s if self._server is not None else None,
            "machine": self._machine,
            "versions": _versions(),
            "command": os.environ.get(variables.COMMAND) or shlex.join(map(masked, sys.argv)),
            "notes": self._notes,
            # What these facts speak of: a master that is killed leaves later rows and no end.
            "rows": self._folder.rows,
            "ended": self.ended,
            **self.hold.facts(),
        }


def _keep_alive_classes(environment: Environment) -> list[type[KeepAliveUser]]:
    return [kind for kind in environment.user_classes if issubclass(kind, KeepAliveUser)]


def _ports_here(hosts: str) -> tuple[int, ...]:
    """Ports of the servers under test; none, unless all of them are at addresses of this machine."""
    ports = []
    for url in hosts.split(","):
        target = urlsplit(url.strip())
        if not _is_here(target.hostname or ""):
            return ()
        ports.append(target.port or (443 if target.scheme == "https" else 80))
    return tuple(ports)


def _is_here(name: str) -> bool:
    """Whether a name stands for an address of this machine: only to such a socket can be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _think_time_of(environment: Environment) -> tuple[float, float] | None:
    """Think time of all KeepAliveUsers, which makes the offered rate; None if they have no common one."""
    spans = {
        user_class.think_time if user_class.draws_think_time() else None
        for user_class in _keep_alive_classes(environment)
    }
    return spans.pop() if len(spans) == 1 else None


def _workload_of(environment: Environment) -> str:
    """What all KeepAliveUsers do; "mixed" if they have nothing in common."""
    kinds = {kind.workload for kind in _keep_alive_classes(environment)}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _length_of(environment: Environment) -> tuple[int, int] | None:
    """Characters of a response, where user classes say so with a `length` of (MIN, MAX), as the built-in one
    does; None if they do not, or differ."""
    lengths = {getattr(user_class, "length", None) for user_class in _keep_alive_classes(environment)}
    length = lengths.pop() if len(lengths) == 1 else None
    return length if isinstance(length, tuple) and len(length) == 2 else None


@functools.cache  # the facts are written each second, and this reads each package's metadata
def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }
