"""What the drills share: a server to watch, checks that print what was seen, and the command line.

Drills need nothing but Python's standard library; ./run_server brings its own environment.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
#: Seconds that a server may take to be ready, its environment not yet made included.
START_S = 300.0
#: Seconds that it may take to stop, beyond its graceful timeout.
STOP_S = 20.0
#: Exit code of a drill that this machine does not allow: neither passed nor failed.
NOT_HERE = 77


class Drill:
    """The command line, the checks and the exit code of a drill."""

    def __init__(self, description: str) -> None:
        self.parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self._failed = False

    def number(self, flag: str, default: float, meaning: str, kind: type = int) -> None:
        self.parser.add_argument(flag, type=kind, default=default, help=f"{meaning} [%(default)s]")

    def parse(self) -> argparse.Namespace:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return self.parser.parse_args()

    def say(self, what: str) -> None:
        print(what, flush=True)

    def check(self, what: str, passed: bool) -> None:
        self._failed |= not passed
        self.say(f"{'ok  ' if passed else 'FAIL'} {what}")

    def exit(self) -> None:
        sys.exit(1 if self._failed else 0)


class Server:
    """A server in processes of its own; its standard error goes to `log`."""

    def __init__(self, command: list[str], nofile: int = 0) -> None:
        def limit() -> None:
            if nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in kill()
        self._process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            preexec_fn=limit,
            start_new_session=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        deadline = time.monotonic() + START_S
        line = ""
        while "listening on" not in line and time.monotonic() < deadline:
            line = self._process.stdout.readline()
            if not line:
                self.kill()
                sys.exit(f"the server did not start: {self.log().strip()}")
        found = re.search(r"//([\d.]+):(\d+)", line)
        assert found, line
        self.address = (found[1], int(found[2]))

    def log(self) -> str:
        """What it has written to standard error so far."""
        self._log.seek(0)
        return self._log.read()

    def workers(self) -> list[int]:
        """Process ids of its children."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def memory_bytes(self) -> int:
        """Memory of all its processes, shared pages counted in proportion (proc(5), smaps_rollup).

        Without pages of files: the kernel takes those away and gives them back as it likes.
        """
        total = 0
        for pid in [self.pid, *self.workers()]:
            rollup = _proc(pid, "smaps_rollup")
            total += sum(int(kib) * 1024 for kib in re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+)", rollup, re.M))
        return total

    def cpu_seconds(self) -> float:
        """User and system time of its living processes."""
        ticks = 0
        for pid in [self.pid, *self.workers()]:
            fields = _proc(pid, "stat").rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:13]))  # utime, stime
        return ticks / os.sysconf("SC_CLK_TCK")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self) -> int:
        """Its exit code after TERM."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -1

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def serving(*flags: str, nofile: int = 0, command: list[str] | None = None) -> Iterator[Server]:
    """./run_server on a free port, stopped at the end."""
    command = command or [str(CHECKOUT / "run_server"), "--bind", "127.0.0.1:0"]
    server = Server([*command, *flags], nofile)
    try:
        yield server
    finally:
        server.stop()
        server.kill()


def _proc(pid: int, name: str) -> str:
    """A file of proc(5); empty for a process that has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def percentile(values: list[float], share: float) -> float:
    """The value that *share* (0..1) of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")
