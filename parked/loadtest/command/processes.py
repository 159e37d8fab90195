"""What a run starts and ends: processes in sessions of their own, and interrupts that are counted.

A terminal's INT reaches only this program, which then ends the others in order. Should this program itself be
killed, the kernel sends them a TERM.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

from parked.loadtest.terms import checkout, files
from parked.loadtest.terms.console import say
from parked.shared.children import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: Exit codes; 7 is `variables.EXIT_HOSTS`.
PASS, FAIL, USAGE, LIMIT, HOST, START, RESULTS, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130

#: The command that is Locust, to which its options are added.
LOCUST = (sys.executable, "-P", "-m", "parked.loadtest.command.locust")
#: The command that is Locust, but ends when it has read its options and the locustfile.
LOOK = (sys.executable, "-P", "-m", "parked.loadtest.command.look")

#: Variables that say to Locust what run_test decides: which part a process has, when the test begins, where
#: its log goes. Options of that kind are refused or given by run_test; variables would be followed unseen.
MODE_VARIABLES = (
    "LOCUST_MODE_WORKER",
    "LOCUST_MODE_MASTER",
    "LOCUST_MASTER_NODE_HOST",
    "LOCUST_MASTER_NODE_PORT",
    "LOCUST_MASTER_BIND_HOST",
    "LOCUST_MASTER_BIND_PORT",
    "LOCUST_EXPECT_WORKERS",
    "LOCUST_EXPECT_WORKERS_MAX_WAIT",
    "LOCUST_PROCESSES",
    "LOCUST_HEADLESS",
    "LOCUST_HEADFUL",
    "LOCUST_AUTOSTART",
    "LOCUST_AUTOQUIT",
    "LOCUST_SKIP_LOG_SETUP",
    "LOCUST_LOGFILE",
)

#: Seconds that a process may take to stop, at least.
STOP_LEAST_S = 20.0


class Stop(Exception):
    """The run can't go on: an exit code and what to tell."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Interrupted:
    """Counts INT, TERM, QUIT and HUP (the terminal is closed) from when it is made; not a HUP that nohup
    hides."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
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
    for name in MODE_VARIABLES:
        environment.pop(name, None)
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
            stop(process, signal.SIGTERM, STOP_LEAST_S)


def _own_session(parent: int) -> None:
    os.setsid()
    end_with_parent(signal.SIGTERM, parent)


def stop(process: subprocess.Popen[bytes], number: signal.Signals, within_s: float) -> None:
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
    try:
        text = files.read_text(path).strip()
    except OSError:
        text = ""
    return text.splitlines()[-1] if text else f"no output; see {path}"
