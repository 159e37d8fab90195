"""run_test behind a shell, as people call it: pipes whose readers go, and a terminal that is closed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from tests.commands import free_ports, run
from tests.loadtest.command.test_run import PROJECT, RUN_S
from tests.loadtest.runs import NO_PICTURES
from tests.loadtest.terminal import Terminal


def command(folder: Path, *options: str) -> list[str]:
    server_port, master_port = free_ports(2)
    return [
        *(sys.executable, "-m", "loadtest", "-c", "40", "--think", "1:2", "--master-port", str(master_port)),
        *("--host", f"http://127.0.0.1:{server_port}", "--start-server", "--results", str(folder), *options),
    ]


def environment(tmp_path: Path) -> dict[str, str]:
    """With a folder for temporary files that the test can look into."""
    (tmp_path / "tmp").mkdir()
    return os.environ | {"PYTHONPATH": NO_PICTURES, "TMPDIR": str(tmp_path / "tmp")}


def await_rows(folder: Path, count: int) -> None:
    deadline = time.monotonic() + RUN_S
    samples = folder / "samples.csv"
    while not samples.exists() or len(samples.read_text().splitlines()) <= count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def summary(folder: Path) -> dict[str, object]:
    assert (folder / "index.html").exists()
    loaded: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return loaded


def judged(folder: Path) -> int:
    """The exit code of a run that went well, but for its rate: by chance, for so few requests."""
    reasons = cast(list[str], summary(folder)["reasons"])
    assert [reason for reason in reasons if not reason.endswith(" offered")] == []
    return 1 if reasons else 0


def test_a_run_whose_reader_goes_is_finished_and_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = shlex.join(command(folder, "--hold", "2s"))
    line = f"{words} 2>{tmp_path}/errors | head -3; exit ${{PIPESTATUS[0]}}"
    done = run(["bash", "-c", line], env=environment(tmp_path), timeout=RUN_S)
    assert (tmp_path / "errors").read_text() == ""
    assert done.returncode == judged(folder), done


def test_an_interrupt_that_ends_the_reader_too_leaves_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = f"{shlex.join(command(folder, '--hold', '5m'))} 2>{tmp_path}/errors | tee {tmp_path}/log"
    # A session of its own: Ctrl-C in a terminal sends INT to all of the pipeline.
    shell = subprocess.Popen(
        ["bash", "-c", line], env=environment(tmp_path), stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        await_rows(folder, 2)
        os.killpg(shell.pid, signal.SIGINT)
        shell.wait(RUN_S)
        deadline = time.monotonic() + RUN_S
        while list((tmp_path / "tmp").iterdir()) or not (folder / "summary.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    assert summary(folder)["verdict"] == "fail"
    assert (tmp_path / "errors").read_text() == ""


def test_a_terminal_that_is_closed_is_an_interrupt(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Terminal(command(folder, "--hold", "5m"), TMPDIR=environment(tmp_path)["TMPDIR"]) as terminal:
        await_rows(folder, 2)
        terminal.hang_up()
        assert terminal.process.wait(RUN_S) == 130
    assert summary(folder)["verdict"] == "fail"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_a_program_reads_is_all_there_however_slow_it_is() -> None:
    program = "from parked.loadtest.terms import console; console.say(1); console.hand_over('2' * 200_000)"
    line = f"{shlex.join([sys.executable, '-c', program])} | (sleep 0.3; wc -c)"
    done = run(["bash", "-c", line], cwd=PROJECT, timeout=30)
    assert (done.stdout, done.stderr) == ("200003\n", "")


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "| true"])
def test_a_line_that_cannot_be_written_is_dropped(redirection: str) -> None:
    program = "from parked.loadtest.terms import console\nfor n in range(99): console.say(n)"
    program += "\nconsole.hand_over('x' * 200_000)"
    line = f"{shlex.join([sys.executable, '-c', program])} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, cwd=PROJECT, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
