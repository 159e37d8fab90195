from __future__ import annotations

import os
from pathlib import Path

import pytest

from parked.prefork.access_log import LogError, LogFile


def test_a_pipe_may_be_a_log_whenever_its_reader_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    log = LogFile(str(path))
    log.open()
    log.write("before\n")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 99) == b"before\n"
    log.reopen()
    os.close(reader)
    log.write("to nobody\n")
    assert log.lost == 1
    log.reopen()
    log.write("after\n")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 99) == b"1 lines could not be written here\nafter\n"
    os.close(reader)
    log.close()


def test_what_is_no_file_is_an_error_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"cannot open .*: Is a directory"):
        LogFile(str(tmp_path)).open()
