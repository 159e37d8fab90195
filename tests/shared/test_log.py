from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parked.shared.log import GuardedLog


@pytest.fixture
def pipe() -> Iterator[tuple[int, GuardedLog]]:
    """The reading end, and a log into the other."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as file:
        yield reading, GuardedLog(file)
        try:
            os.close(reading)
        except OSError:
            pass


def test_lines_arrive_as_they_are(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", buffering=1, encoding="ascii") as file:
        log = GuardedLog(file)
        log.write("one\n")
        log.writelines(["two\n", "dr\u00fci\n"])
        log.flush()
    assert (tmp_path / "log").read_text() == "one\ntwo\ndr\\xfci\n"


def test_what_a_full_disk_does_not_take_is_counted_and_said_when_there_is_room_again(tmp_path: Path) -> None:
    with Path("/dev/full").open("w", buffering=1) as file:
        log = GuardedLog(file)
        log.write("one\n")
        log.write("two\nthree\n")
        log.flush()
        assert log.lost == 3
        with (tmp_path / "log").open("w") as room:
            os.dup2(room.fileno(), file.fileno())
        log.write("four\n")
        assert log.lost == 0
    assert (tmp_path / "log").read_text() == "3 lines could not be written here\nfour\n"


def test_a_reader_that_sleeps_is_not_waited_for(pipe: tuple[int, GuardedLog]) -> None:
    reading, log = pipe
    for number in range(2000):
        log.write(f"{number:099}\n")
    assert log.lost > 100
    text = os.read(reading, 1 << 20).decode()
    log.write("awake\n")
    text += os.read(reading, 1 << 20).decode()
    lines = text.splitlines()
    assert lines[-1] == "awake"
    lost = int(lines[-2].removesuffix(" lines could not be written here"))
    assert {len(line) for line in lines[:-2]} == {99}
    assert len(lines) - 2 + lost == 2000


def test_a_terminal_that_is_stopped_is_not_waited_for() -> None:
    window, terminal = os.openpty()
    with os.fdopen(terminal, "w", buffering=1) as file:
        log = GuardedLog(file)
        log.write("before\n")
        assert os.read(window, 99) == b"before\r\n"
        for number in range(5000):
            log.write(f"{number:099}\n")
        assert log.lost > 100
        assert os.get_blocking(terminal)
    os.close(window)


def test_a_reader_that_has_left_is_no_error(pipe: tuple[int, GuardedLog]) -> None:
    reading, log = pipe
    os.close(reading)
    log.write("to nobody\n")
    assert log.lost == 1


def test_any_object_with_a_write_will_do() -> None:
    class Moody:
        lines: list[str]
        fails = True

        def write(self, text: str) -> None:
            if self.fails:
                raise RuntimeError("not in the mood")
            self.lines.append(text)

    file: Any = Moody()
    file.lines = []
    log = GuardedLog(file)
    log.write("one\n")
    file.fails = False
    log.write("two\n")
    assert file.lines == ["1 lines could not be written here\ntwo\n"]
    assert log.lines is file.lines
    memory = io.StringIO()
    GuardedLog(memory).write("kept\n")
    assert memory.getvalue() == "kept\n"


def test_a_closed_file_is_no_error(tmp_path: Path) -> None:
    file = (tmp_path / "log").open("w", buffering=1)
    log = GuardedLog(file)
    file.close()
    log.write("late\n")
    assert log.lost == 1
