"""A run from start to end: check, start what is missing, let Locust work, stop everything, report.

Every process that is started here gets a session of its own, so that a terminal's INT reaches only this
program, which then ends the others in order. Should this program itself be killed, the kernel sends them a
TERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan import preflight, resources, sizing
from parked.loadtest.plan.probe import probe_host
from parked.loadtest.report import report
from parked.loadtest.report.record import NoRun
from parked.loadtest.terms import checkout, values, variables
from parked.shared.children import end_with_parent
from parked.shared.descriptors import raise_nofile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from types import FrameType

    from parked.loadtest.command.screen import Screen

PASS, FAIL, LIMIT, HOST, START, RESULTS, INTERRUPTED = 0, 1, 3, 4, 5, 6, 130

#: Addresses at which run_server is started if nobody listens there.
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

#: Seconds that the server may take until it answers.
SERVER_READY_S = 60.0
#: Seconds that the server may take to stop, per 100,000 connections, and at least.
STOP_S_PER_100K, STOP_LEAST_S = 15.0, 20.0
#: Connections opened a second and core at the beginning of a ramp that adapts.
SPAWN_PER_S_A_CORE = 1500


@dataclasses.dataclass(frozen=True)
class Lead:
    """This host leads a run of several and carries no connections itself."""

    hosts: int
    address: str  #: at which Locust's master listens; * for all
    patience_s: int  #: for the hosts to join


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for, resolved against the machine."""

    connections: int
    spawn_per_s: int
    adaptive: bool
    hold: str
    think: str
    length: str
    host: str
    locustfile: Path
    processes: int
    web_port: int | None
    master_port: int
    results: Path
    force: bool
    plain: bool
    metrics: str | None
    command: str
    machine: Machine
    server_metrics: str = ""
    bottleneck: str = ""
    lead: Lead | None = None

    @classmethod
    def of(cls, chosen: argparse.Namespace, machine: Machine, command: str, now_unix_s: float) -> Settings:
        """Fill in what was left to the machine."""
        adaptive = chosen.spawn_rate == "auto"
        spawn_per_s = max(100, int(SPAWN_PER_S_A_CORE * machine.cpu_count)) if adaptive else chosen.spawn_rate
        settings = cls(
            connections=1 if chosen.connections == "auto" else chosen.connections,
            spawn_per_s=spawn_per_s,
            adaptive=adaptive,
            hold=chosen.hold,
            think=chosen.think,
            length=chosen.length,
            host=",".join(values.hosts(chosen.host)),
            locustfile=(chosen.locustfile or checkout.locustfile()).resolve(),
            processes=chosen.processes,
            web_port=chosen.web_port if chosen.web else None,
            master_port=chosen.master_port,
            results=Path(),
            force=chosen.force,
            plain=chosen.plain,
            metrics=chosen.metrics,
            command=command,
            machine=machine,
            server_metrics=chosen.server_metrics,
            lead=Lead(chosen.expect_hosts, chosen.master, values.duration(chosen.join_timeout))
            if chosen.master
            else None,
        )
        if chosen.connections == "auto":
            fit = resources.largest_that_fits(
                machine, settings.plan(local=settings.is_local, start=settings.is_local)
            )
            settings = dataclasses.replace(
                settings, connections=max(fit.connections, 1), bottleneck=fit.bottleneck
            )
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_unix_s))
        folder = chosen.results or checkout.results() / f"{stamp}-{settings.connections}"
        return dataclasses.replace(settings, results=folder.resolve())

    @property
    def urls(self) -> list[str]:
        return values.hosts(self.host)

    @property
    def is_local(self) -> bool:
        """Whether the servers are on this machine, and so are the connections."""
        return self.lead is None and all(urlsplit(url).hostname in LOCAL_HOSTS for url in self.urls)

    @property
    def port(self) -> int:
        parts = urlsplit(self.urls[0])
        return parts.port or (443 if parts.scheme == "https" else 80)

    def plan(self, local: bool, start: bool) -> sizing.Plan:
        """The run as the sizing model sees it; process counts of 0 are the model's to fill in."""
        return sizing.Plan(
            connections=self.connections,
            think_s=values.think_time(self.think),
            body_bytes=values.length(self.length),
            hold_s=values.duration(self.hold),
            spawn_per_s=self.spawn_per_s,
            local_server=local,
            start_server=start,
            host=urlsplit(self.urls[0]).hostname or "",
            port=self.port,
            client_workers=self.processes,
            master_port=self.master_port,
            web_port=self.web_port,
            metrics=values.listen_address(self.metrics) if self.metrics else None,
            results=self.results,
        )


class Stop(Exception):
    """The run can't go on: an exit code and what to tell."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def run(settings: Settings) -> int:
    """Do it all; returns the exit code."""
    interrupted = Interrupted()
    try:
        with contextlib.ExitStack() as started:
            return _run(settings, started, interrupted)
    except Stop as stop:
        say(f"{checkout.PROGRAM}: {stop}")
        return INTERRUPTED if interrupted.is_set else stop.code


def _run(settings: Settings, started: contextlib.ExitStack, interrupted: Interrupted) -> int:
    raise_nofile()
    start_server = False
    for url in settings.urls:
        probe = probe_host(url)
        start_server = settings.is_local and len(settings.urls) == 1 and probe.kind == "refused"
        if not (probe.ok or start_server):
            raise Stop(HOST, f"{url}: {probe.detail}")
    local = settings.is_local
    plan = settings.plan(local, start_server).on(settings.machine)
    _say_plan(settings, plan)
    try:
        settings.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Stop(
            RESULTS, f"cannot make {settings.results}: {error.strerror}; choose another with --results"
        ) from None
    if start_server:
        if not settings.server_metrics:
            folder = started.enter_context(tempfile.TemporaryDirectory(prefix="parked-"))
            settings = dataclasses.replace(settings, server_metrics=f"unix:{folder}/metrics")
        server = started.enter_context(_server(settings, plan))
        _await_server(settings, server, interrupted)
    locust_code = _locust(settings, plan, interrupted)
    if settings.lead is not None and locust_code == variables.EXIT_HOSTS:
        return INTERRUPTED if interrupted.is_set else locust_code  # it has said why
    return _report(settings, locust_code, interrupted)


def _say_plan(settings: Settings, plan: sizing.Plan) -> None:
    if settings.lead is not None:
        _say_lead(settings, settings.lead)
        # The users are elsewhere: what is needed here are ports and a place for the results.
        plan = dataclasses.replace(plan, connections=1, client_workers=1)
    else:
        for line in preflight.plan_lines(settings.machine, plan):
            say(line)
    if settings.bottleneck:
        say(f"more than {settings.connections:,} would need more {settings.bottleneck}")
    findings = preflight.check(settings.machine, plan)
    for finding in findings:
        say(f"{'too low' if finding.severity == 'blocks' else 'note'}: {finding}")
    blocking = [finding for finding in findings if finding.severity == "blocks"]
    if blocking and not settings.force:
        if any(finding.setting == "results folder" for finding in blocking):
            raise Stop(RESULTS, "nothing could be written; choose another folder with --results DIR")
        raise Stop(LIMIT, "not started: mend what is too low, ask for fewer connections, or try with --force")


def _say_lead(settings: Settings, lead: Lead) -> None:
    hosts = f"{lead.hosts} hosts" if lead.hosts > 1 else "one host"
    say(f"connections  {settings.connections:,} from {hosts} to {', '.join(settings.urls)}")
    address = socket.gethostname() if lead.address == "*" else lead.address
    say(f"on each of them, within {lead.patience_s} s: ./run_test --join {address}:{settings.master_port}")


@contextlib.contextmanager
def _server(settings: Settings, plan: sizing.Plan) -> Iterator[subprocess.Popen[bytes]]:
    """run_server for the duration of the run."""
    host = urlsplit(settings.host).hostname or ""
    bind = f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}"
    command = [
        sys.executable,
        "-P",
        "-m",
        "parked.prefork",
        "--app",
        checkout.demo(),
        "--bind",
        bind,
        "--connections",
        str(plan.connections),
    ]
    command += ["--metrics", settings.server_metrics]
    with (settings.results / "server.log").open("wb") as log, start_process(command, log, log) as server:
        # It shares the cores with the client, so it too lets others finish.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(server.pid, os.SCHED_BATCH, os.sched_param(0))
        try:
            yield server
        finally:
            stop_s = max(STOP_LEAST_S, STOP_S_PER_100K * plan.connections / 100_000)
            say("stopping the server")
            _stop(server, signal.SIGTERM, stop_s)


def _await_server(settings: Settings, server: subprocess.Popen[bytes], interrupted: Interrupted) -> None:
    deadline = time.monotonic() + SERVER_READY_S
    while True:
        if interrupted.is_set:
            raise Stop(INTERRUPTED, "interrupted before the test began")
        if server.poll() is not None:
            last_line = tail(settings.results / "server.log")
            raise Stop(START, f"the server ended with code {server.returncode}: {last_line}")
        probe = probe_host(settings.host, 2.0)
        if probe.ok:
            return
        if time.monotonic() > deadline:
            raise Stop(START, f"the server did not answer within {SERVER_READY_S:.0f} s: {probe.detail}")
        time.sleep(0.1)


def _locust(settings: Settings, plan: sizing.Plan, interrupted: Interrupted) -> int:
    """Run Locust to its end and return its exit code."""
    said = {variables.REPORT: "by run_test", variables.COMMAND: settings.command}
    prefix = settings.results / "locust"
    command = [
        *(sys.executable, "-P", "-m", "locust", "-f", str(settings.locustfile), "--host", settings.host),
        *("--users", str(settings.connections), "--spawn-rate", str(settings.spawn_per_s)),
        *("--master-bind-port", str(settings.master_port), "--master-port", str(settings.master_port)),
        *("--think", settings.think, "--length", settings.length, "--hold", settings.hold),
        *("--results", str(settings.results), "--csv", str(prefix), "--csv-full-history"),
        *("--html", f"{prefix}.html", "--only-summary", "--loglevel", "WARNING"),
    ]
    # In place of the locustfile's default: the hold counts from when all connections are established.
    command += ["--run-time", "168h"]
    if lead := settings.lead:
        command += ["--master", "--expect-workers", str(variables.EXPECT_MANY_WORKERS)]
        command += ["--master-bind-host", lead.address]
        said[variables.EXPECT_HOSTS] = str(lead.hosts)
        said[variables.JOIN_TIMEOUT] = str(lead.patience_s)
    else:
        command += ["--processes", str(plan.client_workers), "--master-bind-host", "127.0.0.1"]
    if settings.adaptive:
        command.append("--adaptive")
    if settings.server_metrics:
        command += ["--server-metrics", settings.server_metrics]
    if settings.metrics:
        command += ["--metrics", settings.metrics]
    if settings.web_port is None:
        command.append("--headless")
    else:
        command += ["--web-port", str(settings.web_port), "--web-host", "127.0.0.1"]
        say(f"start the test at http://127.0.0.1:{settings.web_port}")
    log_path = settings.results / "locust.log"
    screen = _screen(settings)
    # Locust prints the lines itself, or the screen shows what they say.
    out = subprocess.DEVNULL if screen else None
    with log_path.open("wb") as log, start_process(command, out, log, said) as locust:
        asked = 0
        try:
            with screen or contextlib.nullcontext():
                while True:
                    try:
                        return locust.wait(0.2)
                    except subprocess.TimeoutExpired:
                        if interrupted.count > asked:
                            asked = interrupted.count
                            text = "ending the test" if asked == 1 else "ending the test at once"
                            (screen.say if screen else say)(text)
                            locust.send_signal(signal.SIGINT if asked == 1 else signal.SIGKILL)
                        if screen:
                            screen.refresh()
        finally:
            end_group(locust.pid)


def _screen(settings: Settings) -> Screen | None:
    """The live screen, where it is wanted and possible."""
    if settings.plain or settings.lead is not None or not sys.stdout.isatty():
        return None
    from parked.loadtest.command import live, screen

    asked = live.Asked(
        settings.host,
        settings.connections,
        values.duration(settings.hold),
        values.think_time(settings.think),
        settings.machine.cpu_count,
        settings.machine.memory_total_bytes,
    )
    return screen.Screen(settings.results, asked) if screen.is_possible() else None


def _report(settings: Settings, locust_code: int, interrupted: Interrupted) -> int:
    killed = locust_code < 0 and not interrupted.is_set
    notes = [f"Locust's master was killed by signal {-locust_code}"] if killed else []
    try:
        summary = report.make(settings.results, notes)
    except NoRun:
        if interrupted.is_set:
            raise Stop(INTERRUPTED, "interrupted before the test began") from None
        raise Stop(
            START, f"Locust ended with code {locust_code}: {tail(settings.results / 'locust.log')}"
        ) from None
    except OSError as error:
        raise Stop(RESULTS, f"cannot write to {settings.results}: {error.strerror}") from None
    say("\n".join(report.lines(summary, settings.results)))
    if interrupted.is_set:
        return INTERRUPTED
    return PASS if summary["verdict"] == "pass" else FAIL


class Interrupted:
    """Counts INT and TERM from when it is made."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    @property
    def is_set(self) -> bool:
        return self.count > 0


@contextlib.contextmanager
def start_process(
    command: list[str], out: IO[bytes] | int | None, err: IO[bytes], said: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, with `said` in its environment; stopped at the end if need be."""
    environment = checkout.environment() | (said or {})
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env=environment,
        preexec_fn=functools.partial(_own_session, os.getpid()),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            _stop(process, signal.SIGTERM, STOP_LEAST_S)


def _own_session(parent: int) -> None:
    os.setsid()
    end_with_parent(signal.SIGTERM, parent)


def _stop(process: subprocess.Popen[bytes], number: signal.Signals, within_s: float) -> None:
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            say(f"process {process.pid} did not end within {within_s:.0f} s and is killed")
    end_group(process.pid)
    process.wait()


def end_group(leader: int) -> None:
    """Kill what is left of a process's session; its leader made the group, so the id is nobody else's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def tail(path: Path) -> str:
    text = path.read_text(errors="replace").strip() if path.exists() else ""
    return text.splitlines()[-1] if text else f"no output; see {path}"


def say(text: Any) -> None:
    print(text, flush=True)
