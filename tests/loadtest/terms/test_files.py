"""Files in folders that others may have prepared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parked.loadtest.terms import files


def test_a_link_in_the_place_of_a_file_is_replaced_and_what_it_names_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "page").symlink_to(tmp_path / "precious")
    files.replace(tmp_path / "page", "written")
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "page").read_text() == "written"
    assert not (tmp_path / "page").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "precious"]


def test_a_new_file_takes_the_place_of_whatever_has_its_name(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "hard").hardlink_to(precious)
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "hard", "dangling", "pipe", "nothing"):
        with files.new(tmp_path / name) as file:
            file.write("written")
        assert (tmp_path / name).read_text() == "written"
    assert precious.read_text() == "kept"
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        files.new(tmp_path / "folder")


def test_what_can_not_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page").write_text("before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        files.replace(tmp_path / "page", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    assert (tmp_path / "page").read_text() == "before"


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x" * 10)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("pipe", "link", "nothing", "."):
        with pytest.raises(OSError):
            files.read_text(tmp_path / name)
    with pytest.raises(OSError, match="larger"):
        files.read_text(tmp_path / "file", 9)
    assert files.read_text(tmp_path / "file", 10) == "x" * 10
    assert files.links(tmp_path) == ["link"]
