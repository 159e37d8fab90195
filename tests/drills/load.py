"""A load test under a drill: ./run_test with a fault somewhere, its processes, and what it leaves."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drill import CHECKOUT, START_S, Drill

#: Seconds between two looks.
POLL_S = 0.05
#: Seconds that a run may take beyond ramp, fault and hold before a drill calls it hung.
PATIENCE_S = 60.0
#: Seconds in which the kernel has ended what was killed.
GONE_S = 2.0


class Hung(Exception):
    """Something that was waited for has not come."""


class LoadTest:
    """One ./run_test. Without --host it starts the server itself."""

    def __init__(
        self, *flags: str, folder: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="parked-drill-"))
        self.folder = folder or self._scratch / "run"
        server_port, master_port = free_ports(2)
        usual = {"--results": str(self.folder), "--master-port": str(master_port)}
        if "--host" not in flags:
            usual["--host"] = f"http://127.0.0.1:{server_port}"
            flags += ("--start-server",)
        self._out = self._scratch / "output"
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [str(CHECKOUT / "run_test"), *flags, *(word for pair in usual.items() for word in pair)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )
        self.began = time.monotonic()
        self._family: set[tuple[int, str]] = set()

    # Its processes

    def look(self) -> None:
        """Note who belongs to it by now: those that lose their parent can't be found afterwards."""
        todo = [self.process.pid]
        while todo:
            for pid in children(todo.pop()):
                todo.append(pid)
                if started := _started(pid):
                    self._family.add((pid, started))

    def left(self) -> list[int]:
        """Processes of it that still run, given a moment."""
        deadline = time.monotonic() + GONE_S
        while True:
            there = [pid for pid, started in self._family if _started(pid) == started]
            if not there or time.monotonic() > deadline:
                return there
            time.sleep(POLL_S)

    def _child(self, module: str) -> int:
        for pid in children(self.process.pid):
            if module in _words(pid):
                return pid
        raise Hung(f"no process runs {module}")

    @property
    def master(self) -> int:
        return self._child("parked.loadtest.command.locust")

    @property
    def workers(self) -> list[int]:
        """Of Locust."""
        return children(self.master)

    @property
    def server(self) -> int:
        return self._child("parked.prefork")

    @property
    def server_workers(self) -> list[int]:
        """In the order of their start; the process that tells the metrics comes last."""
        return children(self.server)

    # Its course

    def output(self) -> str:
        return self._out.read_text(errors="replace")

    def wait(self, what: str, reached: Callable[[], bool], within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not reached():
            self.look()
            if self.process.poll() is not None:
                raise Hung(f"the run ended before {what}:\n{self.output()}")
            if time.monotonic() > deadline:
                raise Hung(f"no {what} within {within_s:.0f} s:\n{self.output()}")
            time.sleep(POLL_S)

    def until(self, text: str, within_s: float = START_S) -> None:
        """Until it has printed that."""
        self.wait(f"'{text}'", lambda: text in self.output(), within_s)

    def until_hold(self, seconds: float = 2.0) -> None:
        """Until it holds for that long."""
        self.until("| hold")
        self.look()
        time.sleep(seconds)

    def connections(self) -> int:
        """In the last row that is written."""
        rows = self.rows()
        return int(rows[-1]["connections"]) if rows else 0

    def end(self, within_s: float) -> int:
        """Its exit code; raises :class:`Hung`."""
        deadline = time.monotonic() + within_s
        while (code := self.process.poll()) is None:
            self.look()
            if time.monotonic() > deadline:
                raise Hung(f"the run did not end within {within_s:.0f} s:\n{self.output()}")
            time.sleep(POLL_S)
        return code

    # What it leaves

    def rows(self) -> list[dict[str, str]]:
        try:
            with (self.folder / "samples.csv").open(newline="") as file:
                return [row for row in csv.DictReader(file) if None not in row.values()]
        except FileNotFoundError:
            return []

    def json(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return {}
        return found

    @property
    def reasons(self) -> str:
        return "; ".join(self.json("summary.json").get("reasons", ["no summary"]))

    def log(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        self.look()
        for pid, started in [*self._family]:
            if _started(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)


@contextlib.contextmanager
def running(
    *flags: str, folder: Path | None = None, environment: dict[str, str] | None = None
) -> Iterator[LoadTest]:
    """./run_test, which is gone at the end. What is not reached in time is a line and exit code 1."""
    run = LoadTest(*flags, folder=folder, environment=environment)
    try:
        yield run
    except Hung as hung:
        sys.exit(f"FAIL {hung}")
    finally:
        run.close()


def ended(drill: Drill, run: LoadTest, wanted: int, within_s: float) -> None:
    """Wait for the end of a run, which has to come by itself, with that exit code and without leftovers."""
    began = time.monotonic()
    code = run.end(within_s)
    drill.check(
        f"it ended {time.monotonic() - began:.0f} s later with exit code {code}, not {wanted}"
        if code != wanted
        else f"it ended {time.monotonic() - began:.0f} s later with exit code {code}",
        code == wanted,
    )
    left = run.left()
    drill.check(f"processes left running: {left or 'none'}", not left)
    drill.check("no traceback was printed", "Traceback" not in run.output())
    if code != wanted:
        drill.say(run.output())


def told(drill: Drill, run: LoadTest) -> dict[str, Any]:
    """Print the figures and the verdict of a run."""
    summary = run.json("summary.json")
    if not summary:
        drill.check("there is a summary", False)
        drill.say(run.output())
        return {}
    latency = summary["latency_ms"]
    drill.say(
        f"     seen: {summary['min_connections_in_hold']:,} to {summary['peak_connections']:,} connections "
        f"in {summary['hold_seconds']:.0f} s of hold, {summary['requests']:,} requests, "
        f"p50/p99/max {latency['p50'] or 0:.0f}/{latency['p99'] or 0:.0f}/{latency['max'] or 0:.0f} ms"
    )
    drill.say(
        f"     lost: {summary['failures']:,} requests {summary['failures_by_kind'] or ''}, "
        f"{summary['connections_closed_by_server']:,} connections, {summary['reconnects']:,} opened again"
    )
    drill.say(f"     verdict {summary['verdict']}: {run.reasons or 'no reason against it'}")
    return summary


def children(pid: int) -> list[int]:
    """Process ids of children; none if it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_running(pid: int) -> bool:
    """Not when it is a zombie: in a PID namespace nobody may wait for it."""
    return bool(_started(pid))


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _started(pid: int) -> str:
    """When it started (proc(5), stat): with its id that names a process. "" if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
