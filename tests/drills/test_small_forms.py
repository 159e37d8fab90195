"""The drills work: each in a form so small that it takes seconds. Their figures are for longer runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PATIENCE_S = 100

SMALL = {
    "slowloris": "--connections 200 --good 50 --rate 100 --seconds 4 --header-timeout 2 --factor 99",
    "reload": "--connections 100 --rate 200 --seconds 10 --reloads 2",
    "worker-killed": "--connections 100 --rate 300 --seconds 4",
    "descriptors": "--connections 300 --descriptors 150 --seconds 1",
    "tls": "--connections 100 --seconds 1",
    "fuzz": "--seconds 5",
    "server-faults": "--connections 50 --rate 50 --seconds 2 pool fork output",
    "waiting-clients": "--clients 40 --at-once 20 --seconds 30",
    "own-locustfile": "--users 600 --rate 600 --seconds 8 --processes 2",
}


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All at once, for they mostly wait."""
    processes = {
        name: subprocess.Popen(
            [HERE / name, *flags.split()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name, flags in SMALL.items()
    }
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", SMALL)
def test_a_small_drill_passes(running: dict[str, subprocess.Popen[str]], name: str) -> None:
    output = running[name].communicate(timeout=PATIENCE_S)[0]
    assert running[name].returncode == 0, output
    assert name == "fuzz" or "ok  " in output


@pytest.mark.parametrize("name", SMALL)
def test_a_drill_has_help(name: str) -> None:
    shown = subprocess.run(
        [HERE / name, "--help"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert "usage:" in shown.stdout
    assert "--seconds" in shown.stdout
