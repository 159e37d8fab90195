"""Follows a run from the Locust master (or from a Locust without workers) and writes it down as it happens.

Once a second: what the workers counted (:mod:`parked.loadtest.master.fleet`) and what outside witnesses saw
(:mod:`parked.loadtest.machine.monitor`) become a row of `samples.csv` and a line of `logfile`. It also tells
the phases apart

    ramp    from the start until all connections are established
    hold    from then on; ends after --hold, or when Locust ends the test
    stop    users are being stopped

(back to the ramp if the number of users or their think time is changed, from Locust's web UI, say)

and writes `run.json`, the facts from which :mod:`parked.loadtest.report.report` makes the summary, every few
seconds anew: whatever becomes of the master, what was measured stays.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import gevent
from gevent.lock import RLock
from locust.event import EventHook
from locust.runners import STATE_MISSING, STATE_RUNNING, STATE_SPAWNING, MasterRunner, WorkerRunner

from parked.loadtest.machine.machine import Machine
from parked.loadtest.machine.monitor import MachineSample, Monitor
from parked.loadtest.master import server_metrics
from parked.loadtest.master.fleet import Fleet, Second
from parked.loadtest.master.hosts import Hosts
from parked.loadtest.master.ramp import Pace, PacedDispatcher
from parked.loadtest.master.reserve import Lines, Reserve
from parked.loadtest.master.server_metrics import NoMetrics, Reading, ServerMetrics
from parked.loadtest.terms import checkout, clock, console, values, variables
from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.histogram import new_histogram
from parked.loadtest.terms.sample import CUMULATIVE, MESSAGE, Sample

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.event import Events

logger = logging.getLogger(__name__)

#: Columns of samples.csv that come from the workers; SERVER_COLUMNS come from the server's own metrics and
#: are empty without them, MACHINE_COLUMNS come from the monitor. Units are in the names, *_total are since
#: the start; `requests`, `failures`, `reconnects` and `received_bytes` are what was counted since the row
#: before, until `counted_unix_s`: :func:`parked.loadtest.report.record.per_second` makes rates of them.
FLEET_COLUMNS = (
    "time_s",
    "unix_time_s",
    "counted_unix_s",
    "phase",
    "users",
    "connections_wanted",
    "connections",
    "connections_min",
    "opened_total",
    "reconnects_total",
    "requests_total",
    "requests_sent_total",
    "failures_total",
    "late_sends_total",
    "received_bytes_total",
    "requests",
    "failures",
    "reconnects",
    "received_bytes",
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "latency_max_ms",
    "burst_10ms_max",
    "loop_lag_max_ms",
    "gc_pause_max_ms",
)
MACHINE_COLUMNS = (
    "server_cores",
    "client_cores",
    "kernel_cores",
    "busy_cores",
    "server_pss_bytes",
    "client_pss_bytes",
    "slab_bytes",
    "memory_available_bytes",
    "sockstat_tcp_inuse",
    "sockstat_tcp_tw",
    "sockstat_tcp_mem_bytes",
    "listen_overflows",
    "listen_drops",
    "retrans_segs",
    "server_processes",
    "client_processes",
)
SERVER_COLUMNS = server_metrics.COLUMNS
COLUMNS = FLEET_COLUMNS + SERVER_COLUMNS + MACHINE_COLUMNS

#: Seconds between two writings of run.json.
FACTS_S = 5
#: Seconds without one more connection after which a ramp counts as stalled and the test ends.
STALLED_S = 60
#: Seconds by which the wall clock must have been set to be told of; NTP slews it by less in an hour.
CLOCK_STEP_S = 2.0
#: Packages whose versions belong to a result.
PACKAGES = ("locust", "gevent", "greenlet", "falcon", "httptools", "hdrhistogram")


def attach(events: Events) -> None:
    """Let every Locust process that runs this locustfile find its part."""

    @events.init.add_listener
    def on_init(environment: Environment, **_: Any) -> None:
        if not isinstance(environment.runner, WorkerRunner):
            Recorder(environment)


class Recorder:
    """One run after the other: a web UI may start several.

    :ivar seconds: fired with `run`, a :class:`Run`, after each second of it, and after its end.
    """

    def __init__(self, environment: Environment) -> None:
        assert environment.runner is not None
        self._environment = environment
        self._runner = environment.runner
        environment.parked_recorder = self  # type: ignore[attr-defined]
        self.seconds = EventHook()
        self._fleet = Fleet()
        self._hosts = Hosts.of(environment)
        self._run: Run | None = None
        #: The workers' last samples, now and when the run began: they count from the start of their process,
        #: and a web UI starts several runs.
        self._latest: dict[str, Sample] = {}
        self._before: dict[str, Sample] = {}
        environment.dispatcher_class = PacedDispatcher
        self._runner.register_message(MESSAGE, self._take)
        environment.events.test_start.add_listener(self._test_started)
        environment.events.test_stopping.add_listener(self._test_stopping)
        environment.events.test_stop.add_listener(self._test_stopped)
        environment.events.quit.add_listener(self._quitting)

    def _take(self, msg: Any, **_: Any) -> None:
        if self._hosts is not None:
            msg.data["unix_time_s"] += self._hosts.offset_s(msg.data.get("host", ""))
        self._latest[msg.node_id] = msg.data
        before = self._before.get(msg.node_id)
        self._fleet.take(msg.node_id, _since(before, msg.data) if before else msg.data)

    def _test_started(self, **_: Any) -> None:
        self._fleet = Fleet()
        self._before = dict(self._latest)
        self._run = Run(self._environment, self._fleet, self._hosts)
        PacedDispatcher.pace = self._run.pace
        gevent.spawn(self._follow, self._run)

    def _follow(self, run: Run) -> None:
        started = time.monotonic()
        while True:
            # The next whole second; those that a busy machine kept us from are in its row.
            elapsed_s = time.monotonic() - started
            gevent.sleep(math.floor(elapsed_s) + 1 - elapsed_s)
            if run.ended:
                return
            try:
                run.second()
            except OSError as error:  # a full disk must not end a run that goes well otherwise
                run.cannot_write(error)
            self.seconds.fire(run=run)
            if run.over:
                logger.info(run.over)
                gevent.spawn(self._end)
                run.over = ""

    def _end(self) -> None:
        options_ = self._environment.parsed_options
        if options_ is not None and options_.headless:
            self._runner.quit()
        else:
            self._runner.stop()

    def _test_stopping(self, **_: Any) -> None:
        if self._run is not None:
            self._run.stopping()

    def _test_stopped(self, **_: Any) -> None:
        if self._run is not None:
            self._run.end()
            self.seconds.fire(run=self._run)

    def _quitting(self, **_: Any) -> None:
        run = self._run
        if run is not None and run.folder is not None:
            run.end()
            if not os.environ.get(variables.REPORT):
                # A process of its own: the plots' library is large, and this process is monkey-patched.
                subprocess.run(
                    [sys.executable, "-m", "parked.loadtest.report.report", str(run.folder)],
                    env=checkout.environment(),
                    check=False,
                )


class Run:
    """One run's phases, rows and facts.

    :ivar fleet: the workers' counts of this run.
    :ivar row: the last second, as in samples.csv.
    :ivar offered_per_s: requests/s due in that second; None if users have no common think time.
    :ivar second_now: what the workers counted up to that second.
    :ivar machine_now: what the monitor saw in it.
    """

    def __init__(self, environment: Environment, fleet: Fleet, hosts: Hosts | None = None) -> None:
        chosen = environment.parsed_options
        assert environment.runner is not None
        assert chosen is not None
        self._runner = environment.runner
        self._environment = environment
        self.fleet = self._fleet = fleet
        self._hosts = hosts
        self.row: dict[str, Any] = {}
        self.offered_per_s: float | None = None
        self.second_now: Second | None = None
        self.machine_now: MachineSample | None = None
        self._chosen = chosen
        self._host = environment.host or ""
        self._think_s = _think_time_of(environment)
        self._asked = self._target, self._think_s
        #: What was asked for anew while the run went on.
        self._changes: list[dict[str, Any]] = []
        self._hold_s = values.duration(chosen.hold) if chosen.hold else None
        self.pace = Pace(chosen.spawn_rate) if chosen.adaptive else None
        self.folder = Path(chosen.results) if chosen.results else None
        self.ended = False
        self._ending = RLock()
        #: Why the test is to end, once it is.
        self.over = ""
        self._phase = "ramp"
        self._started = time.monotonic()
        self.started_unix_s = clock.unix_time_s()
        self._notes: list[str] = []
        self._previous: dict[str, float] = {}
        self._failures_by_kind: dict[str, int] = {}
        #: Most connections, of the whole run and since it was last asked for others.
        self._peak = self._most = 0
        self._progress_at = 0.0
        self._hold_began = self._hold_ended = 0.0
        #: When what the hold's first and last row count was counted; see _counted_unix_s.
        self._counted_first = self._counted_last = 0.0
        self._hold_first: dict[str, float] = {}
        self._hold_last: dict[str, float] = {}
        self._hold_min: int | None = None
        self.hold_latencies = new_histogram()
        self._hold_thinks_s, self._hold_lengths = Distribution(), Distribution()
        self._bursts = 0
        self._cpu_first = self._cpu_last = (0.0, 0.0)
        self._files: list[Lines] = []
        self._reserve: Reserve | None = None
        self._disk_was_full = False
        #: Seconds by which the wall clock was found to be off; told once each time that it changes.
        self._step_s = 0.0
        self._rows: Any = None
        self._written = 0
        self._log: Lines | None = None
        self._monitor: Monitor | None = None
        self._server_processes_lost = 0
        #: The server's own counts; None if it does not tell them.
        self._server: ServerMetrics | None = None
        self._server_base: Reading | None = None
        if self.folder is not None or chosen.metrics:
            target = urlsplit(values.hosts(self._host)[0])
            port = target.port or (443 if target.scheme == "https" else 80)
            # The servers of a run of several hosts are on none of them, as far as is known.
            monitor = Monitor(os.getpid(), port if hosts is None else None)
            self._monitor = monitor
            if self.folder is not None:
                self._open(self.folder, monitor)
        if hosts is not None:
            hosts.begin(self.folder)

    def _open(self, folder: Path, monitor: Monitor) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._reserve = Reserve(folder)
        samples = self._reserve.lines(folder / "samples.csv")
        self._log = self._reserve.lines(folder / "logfile")
        self._files = [samples, self._log]
        self._rows = csv.DictWriter(samples, COLUMNS)
        self._rows.writeheader()
        self._server_is_local = bool(monitor.sample().server_processes)
        self._machine = Machine.read().as_dict()
        if self._chosen.server_metrics:
            self._follow_server(ServerMetrics(self._chosen.server_metrics))

    def _follow_server(self, metrics: ServerMetrics) -> None:
        try:
            self._server_base = metrics.read()
        except NoMetrics as error:
            logger.warning("no server metrics at %s: %s", metrics.address, error)
        else:
            self._server = metrics
            metrics.follow()

    @property
    def _server_now(self) -> Reading | None:
        """What the server has counted since the run began."""
        if self._server is None or self._server_base is None or self._server.latest is None:
            return None
        return self._server.latest.since(self._server_base)

    @property
    def _target(self) -> int:
        return self._runner.target_user_count

    @property
    def _counted_unix_s(self) -> float:
        """When the workers took the samples that a row counts, on average; 0 if there is none.

        Samples come once a second, as rows do, but at moments of their own: a row may be up to a second ahead
        of its counts. A rate over rows would be wrong by as much.
        """
        workers = self._fleet.workers.values()
        alive = [worker for worker in workers if not worker.lost] or workers  # the last ones' counts stay
        times = [worker.sample["unix_time_s"] for worker in alive]
        return sum(times) / len(times) if times else 0.0

    def second(self) -> None:
        """Look at everything, write it down, and decide on the phase."""
        hosts, at_s = self._hosts, time.monotonic() - self._started
        for text in hosts.news(at_s) if hosts is not None else ():
            self.note(text)
        for worker in self._fleet.lose_silent(None if hosts is None else hosts.may_be_alive):
            if hosts is None or not hosts.has_lost(worker):
                where = f" on {hosts.name_of(worker)}" if hosts is not None else ""
                self.note(
                    f"Locust worker pid {worker.sample['pid']}{where} ended at {at_s:.0f} s "
                    f"with {worker.sample['connections']:,} connections"
                )
            self._forget(worker.name)
        self._notice_step()
        second = self._fleet.second()
        machine = self._monitor.sample() if self._monitor is not None else None
        if hosts is not None and machine is not None:
            machine = hosts.machine(machine)
        for process in machine.lost if machine is not None else ():
            if process.side == "server":
                self._server_processes_lost += 1
                self.note(f"server process {process.pid} ended at {time.monotonic() - self._started:.0f} s")
        self._notice_change()
        phase = self._phase
        self._decide(second, machine)
        if hosts is not None:
            hosts.second(at_s, phase, second)
        self._note_row(phase, second, machine)
        self._write()

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
        self._asked = asked
        self._think_s = asked[1]
        elapsed_s = time.monotonic() - self._started
        self._changes.append({"time_s": round(elapsed_s, 1), "connections": asked[0], "think_s": asked[1]})
        self._most, self._progress_at = 0, time.monotonic()
        self._phase = "ramp"
        self._hold_began = self._hold_ended = self._counted_first = self._counted_last = 0.0
        self._hold_first = self._hold_last = {}
        self._hold_min, self._bursts = None, 0
        self.hold_latencies = new_histogram()
        self._hold_thinks_s, self._hold_lengths = Distribution(), Distribution()
        self._cpu_first = self._cpu_last = (0.0, 0.0)

    def _decide(self, second: Second, machine: MachineSample | None) -> None:
        now = time.monotonic()
        self._peak = max(self._peak, second.connections)
        if second.connections > self._most:
            self._most, self._progress_at = second.connections, now
        cpu = (machine.server_cpu_seconds, machine.client_cpu_seconds) if machine else (0.0, 0.0)
        if self._phase == "ramp":
            if self.pace is not None:
                self.pace.observe(second, machine)
            if self._target and second.connections >= self._target and self._runner.state == STATE_RUNNING:
                self._phase, self._hold_began = "hold", now
                self._hold_first = self._hold_last = second.totals
                self._counted_first = self._counted_last = self._counted_unix_s
                self._hold_min = second.connections
                self._fleet.hold_begins()
                self._cpu_first = self._cpu_last = cpu
            elif self._stalled(now):
                self.note(f"the ramp stalled at {second.connections:,} of {self._target:,} connections")
                self.over = "ramp stalled: no new connection for a minute, ending the test"
        elif self._phase == "hold":
            self._hold_ended = now
            self._hold_last, self._cpu_last = second.totals, cpu
            self._counted_last = self._counted_unix_s
            self._hold_min = min(self._hold_min or 0, second.connections_min)
            self.hold_latencies.add(second.latencies)
            self._hold_thinks_s.merge(second.thinks_s)
            self._hold_lengths.merge(second.lengths)
            self._bursts = max(self._bursts, second.burst_10ms_max)
            if self._hold_s is not None and now - self._hold_began >= self._hold_s:
                self.over = f"held for {now - self._hold_began:.0f} s, ending the test"

    def _stalled(self, now: float) -> bool:
        waited_s = now - (self._progress_at or self._started)
        return bool(self._target) and self._runner.state == STATE_RUNNING and waited_s > STALLED_S

    def _note_row(self, phase: str, second: Second, machine: MachineSample | None) -> None:
        totals, previous = second.totals, self._previous
        self._previous, self._failures_by_kind = totals, second.failures_by_kind
        since = {name: totals[name] - previous.get(name, 0) for name in totals}
        latencies = second.latencies
        known = latencies.get_total_count() > 0
        elapsed_s = time.monotonic() - self._started
        row: dict[str, Any] = {
            "time_s": round(elapsed_s, 1),
            "unix_time_s": round(clock.unix_time_s(), 1),
            "counted_unix_s": round(self._counted_unix_s, 3),
            "phase": phase,
            "users": second.users,
            "connections_wanted": self._target,
            "connections": second.connections,
            "connections_min": second.connections_min,
            "opened_total": totals["opened"],
            "reconnects_total": totals["reconnects"],
            "requests_total": totals["requests"],
            "requests_sent_total": totals["requests_sent"],
            "failures_total": totals["failures"],
            "late_sends_total": totals["late_sends"],
            "received_bytes_total": totals["received_bytes"],
            "requests": since["requests"],
            "failures": since["failures"],
            "reconnects": since["reconnects"],
            "received_bytes": since["received_bytes"],
            "burst_10ms_max": second.burst_10ms_max,
            "loop_lag_max_ms": round(second.loop_lag_max_s * 1000, 1),
            "gc_pause_max_ms": round(second.gc_pause_max_s * 1000, 1),
        }
        if server := self._server_now:
            row |= server.columns
        if known:
            for name, percentile in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)):
                row[f"latency_{name}_ms"] = round(latencies.get_value_at_percentile(percentile) / 1000, 3)
        if machine is not None:
            row |= {name: _rounded(getattr(machine, name)) for name in MACHINE_COLUMNS}
        self.row, self.second_now, self.machine_now = row, second, machine
        # A lost connection still has requests due in the hold.
        due = self._target if phase == "hold" else second.connections
        self.offered_per_s = 2 * due / sum(self._think_s) if any(self._think_s) else None

    def _write(self) -> None:
        if self.folder is None:
            return
        line = console.line(self.row)
        print(line, flush=True)
        if self._log is None:
            return
        self._log.write(line + "\n")
        self._rows.writerow(self.row)
        self._written += 1
        if int(self.row["time_s"]) % FACTS_S == 0:
            self._write_facts()
        if self._reserve is not None and self._reserve.spent and not self._disk_was_full:
            self._disk_was_full = True
            self._tell(f"results: the disk is full ({self.folder}); what was kept back for this is in use")

    def _tell(self, text: str) -> None:
        """A note that can't wait for the report."""
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """Something that a reader of the results has to know."""
        logger.warning(text)
        self._notes.append(text)

    def cannot_write(self, error: OSError) -> None:
        if self._rows is not None:
            self._rows = self._log = None
            self._tell(
                f"results: {error.strerror} ({error.filename or self.folder}); the run goes on unrecorded"
            )

    def _forget(self, name: str) -> None:
        """Have Locust see at its next heartbeat that a worker is gone; it would wait for a minute by
        itself."""
        if isinstance(self._runner, MasterRunner):
            node = self._runner.clients.get(name)
            if node is not None and node.state != STATE_MISSING:
                node.heartbeat = -1

    def stopping(self) -> None:
        """Locust begins to stop the users."""
        if self._phase == "ramp" and self._runner.state in (STATE_SPAWNING, STATE_RUNNING):
            self.note("ended before all connections were established")
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
                self._server.settle()
            try:
                if self._fleet.news or self._server is not None:
                    self.second()
                self._write_facts()
            except OSError as error:
                self.cannot_write(error)
            for file in self._files:
                with contextlib.suppress(OSError):  # told already, when it was to be written
                    file.close()
            if self._reserve is not None:
                self._reserve.close()
            if self._hosts is not None:
                self._hosts.end()

    @property
    def _server_gc_pause_s(self) -> float | None:
        now, base = self._server_now, self._server_base
        if now is None or base is None or now.gc_pause_s is None or base.gc_pause_s is None:
            return None
        return now.gc_pause_s - base.gc_pause_s

    def _write_facts(self) -> None:
        if self.folder is None or self._reserve is None:
            return
        hold_s = max(0.0, self._hold_ended - self._hold_began)
        facts = {
            "host": self._host,
            "target_connections": self._target,
            "started_unix_s": self.started_unix_s,
            "think_s": self._think_s,
            "changes": self._changes,
            "length": values.length(self._chosen.length),
            "hold_asked_s": self._hold_s,
            "ramp_s": (self._hold_began or time.monotonic()) - self._started,
            "hold_s": hold_s,
            "hold_counted_s": self._counted_last - self._counted_first,
            "peak_connections": self._peak,
            "min_connections_in_hold": self._hold_min,
            "totals": self._previous,
            "hold": {name: self._hold_last[name] - first for name, first in self._hold_first.items()},
            "hold_cpu_s": {
                "server": self._cpu_last[0] - self._cpu_first[0],
                "client": self._cpu_last[1] - self._cpu_first[1],
            },
            "burst_10ms_max": self._bursts,
            "failures_by_kind": self._failures_by_kind,
            "workers": self._fleet.table(),
            "hosts": self._hosts.table() if self._hosts is not None else [],
            "server_software": self._fleet.server_software,
            "server_is_local": self._server_is_local,
            "server_processes_lost": self._server_processes_lost,
            "server_metrics": self._server is not None,
            "server_gc_pause_s": self._server_gc_pause_s,
            "machine": self._machine,
            "versions": _versions(),
            "command": os.environ.get(variables.COMMAND) or " ".join(map(shlex.quote, sys.argv)),
            "notes": self._notes,
            # What these facts speak of: a master that is killed leaves later rows and no end.
            "rows": self._written,
            "ended": self.ended,
            "hold_latencies": self.hold_latencies.encode().decode(),  # base64 by itself
            "hold_thinks_s": self._hold_thinks_s.as_list(),
            "hold_lengths": self._hold_lengths.as_list(),
        }
        partial = self.folder / "run.json.partial"
        self._reserve.write_text(partial, json.dumps(facts, indent=1))
        partial.replace(self.folder / "run.json")


def _since(before: Sample, sample: Sample) -> Sample:
    """The sample with counters that began at the earlier one."""
    kinds = {
        kind: count - before["failures_by_kind"].get(kind, 0)
        for kind, count in sample["failures_by_kind"].items()
    }
    since = sample.copy()
    for name in CUMULATIVE:
        since[name] = sample[name] - before[name]
    since["failures_by_kind"] = {kind: count for kind, count in kinds.items() if count}
    return since


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _think_time_of(environment: Environment) -> tuple[float, float]:
    """Think time of all users, from which the offered rate follows; 0, 0 if they have no common one."""
    spans = {
        getattr(user_class, "think_time", (0.0, 0.0))
        if getattr(user_class.wait_time, "__module__", "") == "parked.loadtest.client.user"
        else (0.0, 0.0)
        for user_class in environment.user_classes
    }
    return spans.pop() if len(spans) == 1 else (0.0, 0.0)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }
