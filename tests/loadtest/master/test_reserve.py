"""The space that is kept back for a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from parked.loadtest.master.reserve import Reserve

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """A text file that takes nothing until the reserve is spent, and keeps what it could not write."""

    def __init__(self, reserve: Reserve) -> None:
        self.reserve = reserve
        self.kept = self.written = ""

    def write(self, text: str) -> None:
        self.kept += text
        self.flush()

    def flush(self) -> None:
        if not self.reserve.spent:
            raise FULL
        self.written, self.kept = self.written + self.kept, ""


def test_it_takes_its_space_and_leaves_no_file(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bfree
    reserve = Reserve(tmp_path, 1 << 26)
    taken = (free - os.statvfs(tmp_path).f_bfree) * os.statvfs(tmp_path).f_bsize
    assert taken > 1 << 25  # others use this disk as well
    assert list(tmp_path.iterdir()) == []
    reserve.close()


def test_a_line_that_finds_the_disk_full_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = Reserve(tmp_path)
    disk = FullDisk(reserve)
    lines = reserve.lines(tmp_path / "rows")
    lines.close()
    monkeypatch.setattr(lines, "_file", disk)
    lines.write("one\n")
    lines.write("two\n")
    assert disk.written == "one\ntwo\n"
    assert reserve.spent


def test_another_error_does_not_spend_it(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path)
    assert not reserve.spend(OSError(errno.EIO, "input/output error"))
    assert not reserve.spent
    reserve.close()


def test_a_disk_that_is_full_again_is_an_error(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path)
    assert reserve.spend(FULL)
    assert not reserve.spend(FULL)
