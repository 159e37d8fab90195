from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
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
    flags += ["--apps", "falcon"]
    for number in (1, 2):
        ended = compare(*flags, "--data", str(data), "--output", str(output))
        assert ended.returncode == 0, ended.stderr
        assert f"Medians of {number} rounds" in ended.stdout
    figures = json.loads(data.read_text())["ours"]
    assert len(figures["rates"]["10"]) == 2
    assert all(rate > 100 for rate in figures["rates"]["10"])
    (row,) = [line for line in output.read_text().splitlines() if line.startswith("| this server | falcon ")]
    assert row.count("|") == 13
    assert figures["alive"] == [50]


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
def test_memory_over_tls_is_compared_with_nginx() -> None:
    command = [CHECKOUT / "benchmarks/tls", "--idle", "20", "--versions", "1.3"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "FAILED" not in ended.stderr, ended.stderr  # so few connections say nothing of the goal
    rows = [line.split(" | ") for line in ended.stdout.splitlines() if " | 1.3 | " in line]
    assert [row[0] for row in rows] == ["| this server", "| nginx"]
    assert rows[1][3] == "1.00x |"


def test_what_options_cost_is_printed() -> None:
    ended = subprocess.run(
        [CHECKOUT / "benchmarks/options", "--turns", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(" us per request ") == 1
    assert ended.stdout.count("\n| ") == 2 + 10  # a heading, and its options
    assert "| `--request-id` | " in ended.stdout


def test_an_unknown_server_is_one_line() -> None:
    ended = compare("--servers", "apache")
    assert ended.returncode == 2
    assert ended.stderr.startswith("unknown servers: apache; there are ours, pywsgi")


def test_goals_are_judged_by_medians_of_what_there_is() -> None:
    code = """
from benchmarks.compare_servers import Figures, goals
rates = {"ours": [90, 110, 100], "granian": [100], "bjoern": [200], "ours/bare": [1]}
print(*goals({name: Figures(rates={100: rate}) for name, rate in rates.items()}), sep="\\n")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.splitlines()[-2:] == [
        "- 1.00x granian, WSGI at 100; goal 1.05x: missed",
        "- 0.50x bjoern at 100; goal 0.75x: missed",
    ]


@pytest.mark.skipif(importlib.util.find_spec("socketify") is not None, reason="it is installed")
def test_what_is_not_installed_is_left_out_with_a_line() -> None:
    ended = compare("--servers", "socketify", "--rounds", "0", "--idle", "0", "--connections", "1")
    assert "left out: socketify, WSGI (benchmarks/requirements.txt)" in ended.stderr
