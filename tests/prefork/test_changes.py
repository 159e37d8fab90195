from __future__ import annotations

import os
from pathlib import Path

from parked.prefork import changes
from parked.prefork.changes import Changes
from tests.prefork.test_operations import get, write_app
from tests.support import PATIENCE_S, ServerProcess, eventually


def test_a_change_a_removal_and_a_new_file_are_seen_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    watched = Changes([str(one), str(other)])
    assert watched.look() == ""
    os.utime(one, ns=(1, 1))
    assert watched.look() == str(one)
    assert watched.look() == ""
    other.write_text("2")
    assert watched.look() == str(other)
    one.unlink()
    assert watched.look() == str(one)


def test_what_is_installed_is_not_watched() -> None:
    watched = changes.of_application("/etc/parked.toml")._times
    assert __file__ in watched
    assert "/etc/parked.toml" in watched
    assert os.__file__ not in watched
    assert not any("site-packages" in name for name in watched)


def test_new_code_is_served_as_soon_as_it_is_written(tmp_path: Path) -> None:
    write_app(tmp_path, "version 0")
    with ServerProcess("--app", "versioned:app", "--workers", "1", "--reload", cwd=tmp_path) as server:
        assert get(server) == b"version 0"
        write_app(tmp_path, "version 1 is longer")
        eventually(lambda: get(server) == b"version 1 is longer", "reloaded", 4 * PATIENCE_S)
