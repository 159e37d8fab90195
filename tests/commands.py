"""How tests run programs that have children, and which ports they give them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


def run(
    command: Sequence[str | Path],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: str = "",
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with captured output, for a program that has children.

    Those hold its pipes, too, and `subprocess.run` waits for them without end once its limit is reached. Here
    the output goes to files, and what is left of the program's process group ends with it.

    Raises AssertionError at *timeout* seconds, with what was said until then.
    """
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(input.encode())
        given.seek(0)
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=given, stdout=out, stderr=err, start_new_session=True
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            said = f"{_text(out)}{_text(err)}"
            raise AssertionError(f"not within {timeout} s: {command}\n{said[-20_000:]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return subprocess.CompletedProcess(command, process.returncode, _text(out), _text(err))


def interrupted(command: Sequence[str | Path], env: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and output of a program that begins with an interrupt held back, as by scripts/run."""

    def hold_back() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGINT)

    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=env, stdout=said, stderr=said, preexec_fn=hold_back)
        try:
            return process.wait(60), _text(said)
        finally:
            process.kill()
            process.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def free_port() -> int:
    """One that nobody has now, outside of the range that others' connections are given theirs from."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)  # some tests seed the usual one
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found = sorted({*found, port})
    return found
