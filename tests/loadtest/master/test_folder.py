"""The results folder while a run goes on."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from parked.loadtest.master.folder import Folder
from parked.loadtest.master.rows import COLUMNS

ROW: dict[str, Any] = dict.fromkeys(COLUMNS, 0) | {"phase": "hold", "time_s": 1.0, "connections_wanted": 10}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "results" / "run")
    yield made
    made.close()


def samples(folder: Folder) -> list[dict[str, str]]:
    with (folder.path / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_there_as_soon_as_it_is_written_with_its_line(folder: Folder) -> None:
    assert samples(folder) == []
    folder.write_row(ROW | {"connections": 7})
    (row,) = samples(folder)
    assert (list(row), row["connections"], folder.rows) == (list(COLUMNS), "7", 1)
    assert "concurrency: 7," in (folder.path / "logfile").read_text()


def test_facts_are_written_anew_each_time(folder: Folder) -> None:
    for number in range(2):
        folder.write_facts({"number": number})
        assert json.loads((folder.path / "run.json").read_text()) == {"number": number}
    assert sorted(file.name for file in folder.path.iterdir()) == ["logfile", "run.json", "samples.csv"]


def test_after_giving_up_nothing_more_is_written(folder: Folder) -> None:
    folder.write_row(ROW)
    assert [folder.give_up(), folder.give_up()] == [True, False]
    folder.write_row(ROW)
    assert (len(samples(folder)), folder.rows) == (1, 1)


def test_a_folder_in_which_a_file_is_a_link_is_not_written_to(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples.csv").symlink_to(theirs)
    with pytest.raises(OSError, match=r"samples\.csv is a link"):
        Folder(tmp_path / "run")
    assert theirs.read_text() == "kept"


class FullDisk:
    """A file that takes nothing until the reserve is spent."""

    def __init__(self, folder: Folder, file: TextIO) -> None:
        self.folder, self.file = folder, file
        self.kept = ""

    def write(self, text: str) -> None:
        self.kept += text
        self.flush()

    def flush(self) -> None:
        if not self.folder._reserve.spent:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.file.write(self.kept)
        self.kept = ""

    def close(self) -> None:
        self.file.close()


def test_rows_of_hosts_that_find_the_disk_full_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path / "run", ("host", "connections"))
    assert folder._hosts is not None
    monkeypatch.setattr(folder._hosts, "_file", FullDisk(folder, folder._hosts._file))
    folder.write_row(ROW, [{"host": "a", "connections": 3, "more": 1}, {"host": "b", "connections": 4}])
    folder.write_row(ROW)
    with (folder.path / "hosts.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["host", "connections"], ["a", "3"], ["b", "4"]]
    assert (folder.rows, folder.filled_up()) == (2, True)
    folder.close()
