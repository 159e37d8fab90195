"""The drills work: each in a form so small that it takes seconds. Their figures are for longer runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PATIENCE_S = 300
#: They mostly wait, but what they wait for has to come in time.
AT_ONCE = 3

SMALL = {
    "slowloris": "--connections 200 --good 50 --rate 100 --seconds 4 --header-timeout 2 --factor 99",
    "reload": "--connections 100 --rate 100 --seconds 24 --reloads 2",
    "worker-killed": "--connections 100 --rate 300 --seconds 4",
    "descriptors": "--connections 300 --descriptors 150 --seconds 1",
    "tls": "--connections 100 --seconds 1",
    "fuzz": "--seconds 20",
    "server-faults": "--connections 50 --rate 50 --seconds 2 pool fork output",
    "waiting-clients": "--clients 40 --at-once 20 --seconds 30",
    "waiting-users": "--users 100 --every 1 --seconds 20 --reloads 1 --kills 1 --undisturbed 0",
    "own-locustfile": "--users 600 --rate 600 --seconds 8 --processes 2",
}


Ended = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Future[Ended]]]:
    """A few at once."""

    def run(name: str) -> Ended:
        command = [HERE / name, *SMALL[name].split()]
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(run, name) for name in SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_drill_passes(running: dict[str, Future[Ended]], name: str) -> None:
    ended = running[name].result()
    assert ended.returncode == 0, ended.stdout
    said = "0 findings" if name == "fuzz" else "ok  "
    assert said in ended.stdout


@pytest.mark.parametrize("name", SMALL)
def test_a_drill_has_help(name: str) -> None:
    shown = subprocess.run(
        [HERE / name, "--help"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert "usage:" in shown.stdout
    assert "--seconds" in shown.stdout
