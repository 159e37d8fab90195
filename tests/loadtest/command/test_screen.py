"""The live screen in a real (pseudo-)terminal, and the pictures it is made of."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from rich.console import Console

from parked.loadtest.command import live, screen
from tests.commands import free_ports
from tests.loadtest.runs import write_run
from tests.loadtest.terminal import ENTER, HIDE_CURSOR, LEAVE, SHOW_CURSOR, Terminal

if TYPE_CHECKING:
    from pathlib import Path

ASKED = live.Asked("http://127.0.0.1:8000", 1000, 10, (1.0, 3.0), 2, 8 << 30)
#: Draws a folder's run until its input ends in a line; `crash` raises in the middle.
PROGRAM = """
import sys, time
from pathlib import Path
from parked.loadtest.command import live, screen
asked = live.Asked("http://127.0.0.1:8000", 1000, 10, (1.0, 3.0), 2, 8 << 30)
with screen.Screen(Path(sys.argv[1]), asked) as shown:
    while True:
        if sys.argv[2] == "crash":
            raise RuntimeError("in the middle")
        shown.refresh()
        time.sleep(0.02)
"""


def program(folder: Path, what: str = "draw") -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(folder), what]


def test_a_run_in_a_terminal_is_one_screen_that_resizes_and_an_interrupt_leaves_the_summary(
    tmp_path: Path,
) -> None:
    server, master = free_ports(2)
    command = [
        *(sys.executable, "-m", "loadtest", "-c", "300", "-r", "150", "--hold", "60s", "--think", "1:2"),
        *("--host", f"http://127.0.0.1:{server}", "--start-server", "--master-port", str(master)),
        *("--results", str(tmp_path / "run")),
    ]
    with Terminal(command) as terminal:

        def shows(pattern: str) -> bool:
            return re.search(pattern, "\n".join(terminal.picture()), re.DOTALL) is not None

        terminal.await_(lambda: shows(r"ramp .*300 connections"))
        terminal.await_(lambda: shows(r"hold .* of 1:00.*so far +pass.*300 of 300.*latency ms +p50 \d"))
        assert not terminal.echoes()
        terminal.resize(160, 50)
        terminal.await_(
            lambda: len(terminal.picture()[0]) == 160 and shows(r"p99 of the latency, ms, up to \d")
        )
        os.write(terminal.master, b"\x03")
        terminal.await_(lambda: shows("ending the test"))
        assert terminal.end() == 130
        assert terminal.echoes()
    assert terminal.output.count(ENTER) == terminal.output.count(LEAVE) == 1
    assert terminal.output.rindex(SHOW_CURSOR) > terminal.output.rindex(HIDE_CURSOR)
    assert b"\x1b[2J" not in terminal.output.partition(ENTER)[2], "a screen that is cleared flickers"
    left = terminal.scrollback()
    assert left.startswith("connections  300 to 127.0.0.1")
    assert "verdict      fail" in left
    assert left.endswith("stopping the server")
    assert "concurrency: 300, total requests: " in (tmp_path / "run" / "logfile").read_text()


def test_a_crash_gives_the_terminal_back_before_its_traceback(tmp_path: Path) -> None:
    with Terminal(program(write_run(tmp_path / "run"), "crash")) as terminal:
        assert terminal.end() == 1
        assert terminal.echoes()
    assert terminal.output.index(LEAVE) < terminal.output.index(b"Traceback")
    assert SHOW_CURSOR in terminal.output
    assert terminal.scrollback().startswith("Traceback")


def test_a_stopped_program_gives_the_terminal_back_and_draws_again_when_it_goes_on(tmp_path: Path) -> None:
    with Terminal(program(write_run(tmp_path / "run"))) as terminal:
        terminal.await_(lambda: any("connections" in line for line in terminal.picture()))
        terminal.process.send_signal(signal.SIGTSTP)
        process = psutil.Process(terminal.process.pid)
        terminal.await_(lambda: process.status() == psutil.STATUS_STOPPED)
        terminal.await_(lambda: LEAVE in terminal.output)
        assert terminal.echoes()
        terminal.process.send_signal(signal.SIGCONT)
        terminal.await_(lambda: terminal.output.count(ENTER) == 2 and "so far" in str(terminal.picture()))


def test_no_color_has_no_colors(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    colors = re.compile(rb"\x1b\[[0-9;]*(?:3[0-7]|38;[0-9;]+)m")
    for environment, expected in (({}, True), ({"NO_COLOR": "1"}, False)):
        with Terminal(program(folder), **environment) as terminal:
            terminal.await_(lambda: "Ctrl-C" in str(terminal.picture()))
        assert bool(colors.search(terminal.output)) is expected


@pytest.mark.parametrize(
    ("environment", "possible"),
    [({}, "True"), ({"TERM": "dumb"}, "False"), ({"PYTHONIOENCODING": "latin-1"}, "False")],
)
def test_only_a_terminal_that_can_show_it_gets_a_screen(environment: dict[str, str], possible: str) -> None:
    command = [
        sys.executable,
        "-c",
        "from parked.loadtest.command import screen; print(screen.is_possible())",
    ]
    with Terminal(command, **environment) as terminal:
        assert terminal.end() == 0
    assert terminal.scrollback() == possible


def test_a_background_job_gets_lines() -> None:
    code = (
        "import os; os.setpgid(0, 0); from parked.loadtest.command import screen; print(screen.is_possible())"
    )
    with Terminal(["/bin/sh", "-c", '"$0" -c "$1"; exit', sys.executable, code]) as terminal:
        assert terminal.end() == 0
    assert terminal.scrollback() == "False"


# Pictures


def text(folder: Path, columns: int = 80, lines: int = 24, asked: live.Asked = ASKED) -> str:
    run = live.Run(folder, asked)
    run.update()
    console = Console(width=columns, height=lines, color_system=None)
    with console.capture() as captured:
        console.print(screen.picture(run, "the last line", columns, lines))
    return captured.get()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (160, 50), (200, 30), (60, 24)])
def test_a_picture_fills_its_size_and_no_more(tmp_path: Path, columns: int, lines: int) -> None:
    drawn = text(write_run(tmp_path / "run"), columns, lines).splitlines()
    assert len(drawn) == lines
    assert max(map(len, drawn)) == columns
    assert drawn[-1].startswith("the last line")


def test_a_screen_without_rows_yet_says_that_it_waits(tmp_path: Path) -> None:
    assert re.search(r"wait +starting", text(tmp_path))


def test_what_would_fail_the_run_is_said_while_it_runs(tmp_path: Path) -> None:
    passing, failing = write_run(tmp_path / "good"), write_run(tmp_path / "bad", failures={"status": 3})
    assert re.search(r"so far +pass", text(passing))
    assert re.search(r"so far +fail: 3 failed requests \(3 x status\)", text(failing))


def test_a_chart_shows_the_greatest_of_each_column() -> None:
    heading, (upper, lower) = screen.chart("x", [0.0, 8.0, 16.0, 0.0], 11, 3)
    assert heading.plain == "x, up to 16"
    assert (upper, lower) == ("  █        ", " ██        ")
    _, (row,) = screen.chart("x", [1.0] * 99 + [2.0] + [1.0] * 100, 20, 2)
    assert row == "▄" * 9 + "█" + "▄" * 10
    assert screen.chart("x", [float("nan")], 8, 2)[1] == [" " * 8]


def test_what_users_hear_that_wait_has_a_line_of_its_own(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert not any(line.startswith("events") for line in text(folder).splitlines())
    lines = (folder / "samples.csv").read_text().splitlines()
    columns = lines[0].split(",")
    cells = lines[-1].split(",")
    for name, cell in (
        ("streams", "1000"),
        ("events_total", "12345"),
        ("events_lost_total", "2"),
        ("events_repeated_total", "0"),
        ("delivery_p50_ms", "5"),
    ):
        cells[columns.index(name)] = cell
    (folder / "samples.csv").write_text("\n".join([*lines[:-1], ",".join(cells), ""]))
    (line,) = (line for line in text(folder).splitlines() if line.startswith("events"))
    assert line.split() == [
        *("events", "12,345", "lost", "2", "repeated", "0", "waiting", "1,000", "delivery", "5/-/-", "ms")
    ]
