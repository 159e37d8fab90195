from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import CHECKOUT

pytestmark = pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk")


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHECKOUT / "benchmarks/server", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_servers_are_compared_and_rounds_add_up(tmp_path: Path) -> None:
    data, output = tmp_path / "data.json", tmp_path / "table.md"
    flags = ["--servers", "ours", "--rounds", "1", "--duration", "1", "--connections", "10", "--idle", "50"]
    for number in (1, 2):
        ended = compare(*flags, "--data", str(data), "--output", str(output))
        assert ended.returncode == 0, ended.stderr
        assert f"Medians of {number} rounds" in ended.stdout
    figures = json.loads(data.read_text())["ours"]
    assert len(figures["rates"]["10"]) == 2
    assert all(rate > 100 for rate in figures["rates"]["10"])
    (row,) = [line for line in output.read_text().splitlines() if line.startswith("| this server | 10 ")]
    assert row.count("|") == 11


def test_an_unknown_server_is_one_line() -> None:
    ended = compare("--servers", "apache")
    assert ended.returncode == 2
    assert ended.stderr.startswith("unknown servers: apache; there are ours, pywsgi")
