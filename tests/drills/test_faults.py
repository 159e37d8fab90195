"""The drills of runs under faults: every one has help and a row in the table. What they find is tested where
it was mended."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def names() -> list[str]:
    """As `all` lists them."""
    wide = os.environ | {"COLUMNS": "1000"}
    shown = subprocess.run([HERE / "all", "--help"], capture_output=True, text=True, check=True, env=wide)
    listed = " ".join(shown.stdout.split()).partition("NAME of ")[2].partition(" [all]")[0]
    return listed.split(", ")


@pytest.mark.parametrize("name", names())
def test_a_drill_of_a_fault_has_help_and_a_row_in_the_table(name: str) -> None:
    shown = subprocess.run([HERE / name, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--connections" in shown
    assert f"`{name}`" in (HERE.parents[1] / "docs/reliability.md").read_text()


def test_all_says_which_drill_it_does_not_know() -> None:
    done = subprocess.run([HERE / "all", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no drill: nonsense" in done.stderr
