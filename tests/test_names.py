"""One name everywhere: nothing is called as it was before the library was `parked`."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
#: As of environment variables, metrics and commands.
OLD = r"keepalive(_|-(server|loadtest))[a-z_]*"
#: nginx' directives, and Linux' settings of TCP.
OTHERS = re.compile(r"keepalive[_](timeout|requests|time|intvl|probes|disable)")


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="no checkout: git knows the project's own files")
def test_no_old_name_is_left() -> None:
    command = ["git", "grep", "--only-matching", "-IinE", OLD, "--", ".", ":!CHANGELOG.md"]
    found = subprocess.run(
        command,
        cwd=CHECKOUT,
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert found.returncode in (0, 1)
    lines = found.stdout.splitlines()
    assert [line for line in lines if not OTHERS.fullmatch(line.rpartition(":")[2])] == []
