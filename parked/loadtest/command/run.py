"""A run from start to end: check, start what is missing, let Locust work, stop everything, report."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from parked.loadtest.command import live, locustfile, outcome, watch
from parked.loadtest.command.processes import (
    FAIL,
    HOST,
    INTERRUPTED,
    LIMIT,
    LOCUST,
    LOOK,
    PASS,
    RESULTS,
    START,
    STOP_LEAST_S,
    USAGE,
    Interrupted,
    Stop,
    end_group,
    start_process,
    stop,
    tail,
)
from parked.loadtest.plan import preflight, rehearsal, sizing
from parked.loadtest.plan.probe import probe_host
from parked.loadtest.report import report
from parked.loadtest.report.record import NoRun
from parked.loadtest.terms import checkout, files, options, values, variables
from parked.loadtest.terms.console import hand_over, say
from parked.shared import place
from parked.shared.descriptors import raise_nofile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from parked.loadtest.command.screen import Screen
    from parked.loadtest.command.settings import Lead, Settings

#: Files that a run leaves in its folder; others are the user's own.
_OF_A_RUN = re.compile(
    r"(run|summary)\.json|(samples|hosts)\.csv|latencies\.hdr|logfile|server\.log|index\.html|junit\.xml"
    r"|(connections|throughput|latency|cpu|memory)\.png|locust(\.log|\.html|_\w+\.csv)"
)
#: The last line of Locust's log where a file that it was asked for had no place: that of a traceback.
_LOST_FILE = re.compile(r"^\w*Error: \[Errno \d+\] (.+)")
#: Seconds that Locust is given to end beyond the longest time that the run may take.
END_S = 300.0
#: Seconds after an interrupt in which the run has to write something. Locust's CSV files change once a second
#: while it stops, and nothing for up to 20 s at its end; less could cut off one that has few cores.
STILL_S = 60.0
#: Seconds that Locust may take to load a locustfile and look at its options.
LOAD_S = 120.0
#: Seconds that the server may take until it answers.
SERVER_READY_S = 60.0
#: Seconds that the server may take to stop, per 100,000 connections.
STOP_S_PER_100K = 15.0


def run(settings: Settings) -> int:
    """Do it all; returns the exit code."""
    interrupted = Interrupted()
    try:
        with contextlib.ExitStack() as started:
            if settings.as_json:  # what is for people goes to standard error
                started.enter_context(contextlib.redirect_stdout(sys.stderr))
            return _run(settings, started, interrupted)
    except Stop as stop:
        say(f"{checkout.PROGRAM}: {stop}")
        return INTERRUPTED if interrupted.is_set else stop.code


def _run(settings: Settings, started: contextlib.ExitStack, interrupted: Interrupted) -> int:
    raise_nofile()
    _check_locust_options(settings, interrupted)
    start_server = False
    for url in settings.urls:
        probe = probe_host(url, verify=settings.verifies)
        can_start = settings.is_local and len(settings.urls) == 1 and probe.kind == "refused"
        start_server = can_start and settings.may_start_server
        if not (probe.ok or start_server):
            hint = "; --start-server starts ours there" if can_start else ""
            raise Stop(HOST, f"{url}: {probe.detail}{hint}")
        rehearses = probe.ok and settings.rehearses and settings.lead is None and not settings.force
        if rehearses and (why := _rehearse(settings, url)):
            raise Stop(HOST, f"{url} {why} (--force tries anyway)")
    if settings.server_metrics and not start_server and not settings.force:
        _ask_server_metrics(settings.server_metrics)
    local = settings.is_local
    plan = settings.plan(local, start_server).on(settings.machine)
    _say_plan(settings, plan)
    _check_junit(settings)  # before an earlier run is replaced
    _make_folder(settings)
    if start_server:
        if not settings.server_metrics:
            folder = started.enter_context(tempfile.TemporaryDirectory(prefix="parked-"))
            settings = dataclasses.replace(settings, server_metrics=f"unix:{folder}/metrics")
        server = started.enter_context(_server(settings, plan))
        _await_server(settings, server, interrupted)
    locust_code, aborted = _locust(settings, plan, interrupted)
    if settings.lead is not None and locust_code == variables.EXIT_HOSTS:
        return INTERRUPTED if interrupted.is_set else locust_code  # it has said why
    return _report(settings, locust_code, aborted, interrupted)


def _rehearse(settings: Settings, url: str) -> str:
    """Why what each connection does would fail there; empty if it would not, as far as one can tell."""
    verify = settings.verifies
    path = settings.path or options.PATHS.get(settings.workload, "")
    if settings.workload == "events":
        return rehearsal.no_stream(url, path, verify=verify)
    if settings.workload == "longpoll":
        if options.SECONDS not in path:  # nobody knows when it would answer
            return ""
        return rehearsal.objection(url, path.replace(options.SECONDS, "0.1"), verify=verify)
    length = None if path else values.length(settings.length)[0]
    return rehearsal.objection(url, path or f"/?length={length}", length, verify=verify)


def _ask_server_metrics(address: str) -> None:
    """A witness that was asked for has to be there: a run without it looks like one that it confirmed."""
    from parked.loadtest.master import server_metrics  # imports gevent, which few runs need here

    try:
        server_metrics.ask(address)
    except server_metrics.NoMetrics as error:
        raise Stop(
            HOST,
            f"--server-metrics {address}: {error}; give what run_server --metrics has there, or leave it out "
            "(--force tries anyway)",
        ) from None


def _check_junit(settings: Settings) -> None:
    path, folder = settings.junit, settings.results
    if path is None or (not folder.exists() and path.resolve().parent == folder.resolve()):  # is made next
        return
    if wrong := outcome.unwritable(path):
        raise Stop(RESULTS, f"cannot write {path}: {wrong}")


def _make_folder(settings: Settings) -> None:
    """The folder for the results: a new or an empty one, unless a run in it may be replaced."""
    folder = settings.results
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(file.name for file in folder.iterdir())
        if there and not settings.overwrite:
            raise Stop(
                RESULTS,
                f"{folder} is not empty ({there[0]}); choose another with --results, or replace the run in "
                "it with --overwrite",
            )
        if found := files.links(folder):  # Locust and the server would follow it
            raise Stop(RESULTS, f"{folder}/{found[0]} is a link; choose another folder with --results")
        for name in there:
            if _OF_A_RUN.fullmatch(name):
                (folder / name).unlink()
        outcome.point_latest_to(folder)
    except OSError as error:
        raise Stop(
            RESULTS, f"cannot make {folder}: {error.strerror}; choose another with --results"
        ) from None


def _check_locust_options(settings: Settings, interrupted: Interrupted) -> None:
    """Have Locust look at the words that are left to it and at the locustfile, before anything is started.

    Where there are none, and no run that would be lost, the run itself is soon enough: a look takes a second.
    """
    own = settings.locustfile != checkout.locustfile(settings.workload).resolve()
    told = settings.of_locust or any(name.startswith("LOCUST_") for name in os.environ)
    if not (told or (own and settings.overwrite)):
        return
    looks = [*LOOK, "-f", str(settings.locustfile), *settings.of_locust]
    deadline = time.monotonic() + LOAD_S
    with (
        tempfile.TemporaryFile() as said,
        start_process(looks, subprocess.DEVNULL, said) as looking,
    ):
        while looking.poll() is None:
            if interrupted.is_set:
                raise Stop(INTERRUPTED, "interrupted before the test began")
            if time.monotonic() > deadline:
                raise Stop(START, f"Locust did not load {settings.locustfile} within {LOAD_S:.0f} s")
            time.sleep(0.05)
        if looking.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            # What is wrong with options may have a line behind it, of what was meant.
            _, of_options, why = "\n".join(lines).rpartition("locust: error: ")
            if of_options:
                raise Stop(USAGE, f"error: {settings.did_you_mean or '; '.join(why.splitlines())}")
            raise Stop(USAGE, f"error: {lines[-1] if lines else f'Locust ended with {looking.returncode}'}")


def _say_plan(settings: Settings, plan: sizing.Plan) -> None:
    if settings.lead is not None:
        _say_lead(settings, settings.lead)
        # The users are elsewhere: what is needed here are ports and a place for the results.
        plan = dataclasses.replace(plan, connections=1, client_workers=1)
    else:
        for line in preflight.plan_lines(settings.machine, plan):
            say(line)
    if settings.is_auto:
        say(
            f"this is the whole job: as many connections as this machine permits, up to 400,000; "
            f"{checkout.COMMAND} --quick is a smaller one"
        )
    if settings.bottleneck:
        say(f"more than {settings.connections:,} would need more {settings.bottleneck}")
    findings = preflight.check(settings.machine, plan)
    for finding in findings:
        blocks = "" if finding.found == "in use" else "too low: "
        say(f"{blocks if finding.severity == 'blocks' else 'note: '}{finding}")
    blocking = [finding for finding in findings if finding.severity == "blocks"]
    if blocking and not settings.force:
        if any(finding.setting == "results folder" for finding in blocking):
            raise Stop(RESULTS, "the results could not be kept; choose another folder with --results DIR")
        raise Stop(
            LIMIT, "not started: fix what is named above, ask for fewer connections, or try with --force"
        )


def _say_lead(settings: Settings, lead: Lead) -> None:
    hosts = f"{lead.hosts} hosts" if lead.hosts > 1 else "one host"
    say(f"connections  {settings.connections:,} from {hosts} to {', '.join(settings.urls)}")
    address = socket.gethostname() if lead.address == "*" else lead.address
    join = f"{checkout.COMMAND} --join {address}:{settings.master_port}"
    say(f"on each of them, within {lead.patience_s} s: {join}")


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
        place.demo(),
        "--bind",
        bind,
        "--connections",
        str(plan.connections),
    ]
    command += ["--metrics", settings.server_metrics]
    with files.new(settings.results / "server.log", "xb") as log, start_process(command, log, log) as server:
        # It shares the cores with the client, so it too lets others finish.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(server.pid, os.SCHED_BATCH, os.sched_param(0))
        try:
            yield server
        finally:
            stop_s = max(STOP_LEAST_S, STOP_S_PER_100K * plan.connections / 100_000)
            say("stopping the server")
            stop(server, signal.SIGTERM, stop_s)


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


def _locust(settings: Settings, plan: sizing.Plan, interrupted: Interrupted) -> tuple[int, str]:
    """Run Locust to its end: its exit code, and why it was ended early, if it was (--abort-on-fail)."""
    said = {variables.REPORT: "by run_test", variables.COMMAND: settings.command}
    prefix = settings.results / "locust"
    command = [
        *(*LOCUST, "-f", str(settings.locustfile), "--host", settings.host),
        *("--users", str(settings.connections), "--spawn-rate", str(settings.spawn_per_s)),
        *("--master-bind-port", str(settings.master_port), "--master-port", str(settings.master_port)),
        *("--think", settings.think, "--length", settings.length, "--hold", settings.hold),
        *("--results", str(settings.results), "--csv", str(prefix), "--csv-full-history"),
        *("--html", f"{prefix}.html", "--only-summary", "--loglevel", "WARNING"),
    ]
    # In place of the locustfile's default: the hold counts from when all connections are established.
    command += ["--run-time", f"{settings.longest_s}s"]
    if lead := settings.lead:
        command += ["--master", "--expect-workers", str(variables.EXPECT_MANY_WORKERS)]
        command += ["--master-bind-host", lead.address]
        said[variables.EXPECT_HOSTS] = str(lead.hosts)
        said[variables.JOIN_TIMEOUT] = str(lead.patience_s)
    else:
        command += ["--processes", str(plan.client_workers), "--master-bind-host", "127.0.0.1"]
        said[variables.KEYS] = _new_keys()
    if settings.adaptive:
        command.append("--adaptive")
    if settings.insecure:
        command.append("--insecure")
    if settings.server_metrics:
        command += ["--server-metrics", settings.server_metrics]
    if settings.metrics:
        command += ["--metrics", settings.metrics]
    if settings.web_port is None:
        command.append("--headless")
    else:
        command += ["--web-port", str(settings.web_port), "--web-host", "127.0.0.1"]
        say(f"start the test at http://127.0.0.1:{settings.web_port}")
    command += settings.of_locust
    log_path = settings.results / "locust.log"
    screen, watched, aborted = _screen(settings), _watch(settings), ""
    # Locust prints the lines itself, or the screen shows what they say.
    out = subprocess.DEVNULL if screen else sys.stderr.fileno() if settings.as_json else None
    with files.new(log_path, "xb") as log, start_process(command, out, log, said) as locust:
        _read_ahead()
        asked = 0
        progress: _Progress | None = None  # of the stop, once it is asked for
        give_up = math.inf
        if settings.web_port is None:
            join_s = settings.lead.patience_s if settings.lead else 0
            give_up = time.monotonic() + join_s + settings.longest_s + END_S
        try:
            with screen or contextlib.nullcontext():
                while True:
                    try:
                        return locust.wait(0.2), aborted
                    except subprocess.TimeoutExpired:
                        if time.monotonic() > give_up:
                            end_group(locust.pid)
                            continue
                        if progress is not None and progress.is_over:
                            text = f"nothing has happened for {STILL_S:.0f} s: ending the test at once"
                            (screen.say if screen else say)(text)
                            end_group(locust.pid)
                            progress = None
                            continue
                        if watched is not None and not aborted and (aborted := watched.why()):
                            (screen.say if screen else say)(f"ending the test: {aborted}")
                            locust.send_signal(signal.SIGINT)
                            progress = _Progress(settings.results)
                        if interrupted.count > asked:
                            asked = interrupted.count
                            text = "ending the test" if asked == 1 else "ending the test at once"
                            (screen.say if screen else say)(text)
                            locust.send_signal(signal.SIGINT if asked == 1 else signal.SIGKILL)
                            progress = _Progress(settings.results)
                        if screen:
                            screen.refresh()
        finally:
            end_group(locust.pid)


class _Progress:
    """Whether a run that is to stop still writes its files; logs are none of it, who waits may complain."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, int] = {}
        self._since_s = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Asked again and again: nothing has changed for :data:`STILL_S`."""
        seen = {}
        with contextlib.suppress(OSError):  # a file that is replaced just now has changed
            for file in os.scandir(self._folder):
                if not file.name.endswith(".log"):
                    seen[file.name] = file.stat(follow_symlinks=False).st_mtime_ns
        if seen != self._seen:
            self._seen, self._since_s = seen, time.monotonic()
        return time.monotonic() - self._since_s > STILL_S


def _new_keys() -> str:
    """For this run's master alone (`plugin.strangers`)."""
    import zmq

    return b" ".join(zmq.curve_keypair()).decode()


def _screen(settings: Settings) -> Screen | None:
    """The live screen, where it is wanted and possible."""
    if settings.plain or settings.lead is not None or not sys.stdout.isatty():
        return None
    from parked.loadtest.command import screen

    return screen.Screen(settings.results, _asked(settings)) if screen.is_possible() else None


def _watch(settings: Settings) -> watch.Watch | None:
    return (
        watch.Watch(settings.results, _asked(settings), settings.fail_if) if settings.abort_on_fail else None
    )


def _asked(settings: Settings) -> live.Asked:
    return live.Asked(
        settings.host,
        settings.connections,
        values.duration(settings.hold),
        values.think_time(settings.think),
        settings.machine.cpu_count,
        settings.machine.memory_total_bytes,
    )


def _read_ahead() -> None:
    """Import what draws the pictures while Locust starts: it takes 2 to 4 s, which would come after the run.

    Called when nothing is forked any more, for a child would inherit what its thread holds.
    """

    def read() -> None:
        with contextlib.suppress(Exception):  # the report says what is lacking
            importlib.import_module("parked.loadtest.report.plots")

    threading.Thread(target=read, name="reading ahead", daemon=True).start()


def _report(settings: Settings, locust_code: int, aborted: str, interrupted: Interrupted) -> int:
    killed = locust_code < 0 and not interrupted.is_set
    notes = [f"Locust's master was killed by signal {-locust_code}"] if killed else []
    if aborted:
        notes.append(f"ended early (--abort-on-fail): {aborted}")
    if_failed = ["interrupted"] if interrupted.is_set else []
    try:
        made = report.Report.of(settings.results, notes, if_failed, settings.fail_if)
    except NoRun as lost:
        if interrupted.is_set:
            raise Stop(INTERRUPTED, "interrupted before the test began") from None
        if not locust_code or not settings.results.exists():
            raise Stop(RESULTS, f"the run has ended, and its results are gone: {lost}") from None
        why = locustfile.explained(settings.locustfile, tail(settings.results / "locust.log"))
        raise Stop(START, f"Locust ended with code {locust_code}: {why}") from None
    summary, log = made.summary, settings.results / "locust.log"
    unwritten: Stop | None = None
    try:
        made.write()
    except OSError as error:  # told behind the figures, which are there all the same
        unwritten = Stop(RESULTS, f"cannot write to {error.filename or settings.results}: {error.strerror}")
    except NoRun as odd:
        unwritten = Stop(RESULTS, str(odd))
    if settings.junit is not None:  # also if the folder is full: it may be on another disk
        try:
            outcome.write_junit(settings.junit, summary, settings.fail_if)
        except OSError as error:
            unwritten = unwritten or Stop(RESULTS, f"cannot write to {settings.junit}: {error.strerror}")
    if locust_code and settings.wants_locust_files and (lost_file := _LOST_FILE.match(tail(log))):
        unwritten = unwritten or Stop(
            RESULTS, f"Locust could not write a file that it was asked for: {lost_file[1]}; see {log}"
        )
    page = settings.results / "index.html"
    for line in report.lines(summary, settings.results):
        if page.exists() or not line.endswith(f" {page}"):  # no way to what a full disk has no place for
            say(line)
    if settings.as_json and sys.__stdout__ is not None:
        with contextlib.redirect_stdout(sys.__stdout__):
            hand_over(json.dumps(summary, indent=2))
    if unwritten is not None:
        raise unwritten
    if settings.open_page and not outcome.show(settings.results):
        say(f"there is no browser to show {settings.results / 'index.html'}")
    if summary["verdict"] == "pass":
        return PASS  # also if interrupted: a web UI that is ended after its test
    return INTERRUPTED if interrupted.is_set else FAIL
