from __future__ import annotations

import importlib.util
import subprocess

import pytest

from tests.support import CHECKOUT


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHECKOUT / "benchmarks/client", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.skipif(importlib.util.find_spec("aiolocust") is not None, reason="it is installed")
def test_a_client_holds_its_connections_and_one_that_is_not_there_has_a_row_that_says_so() -> None:
    ended = compare(
        *("--clients", "KeepAliveUser,aiolocust", "-u", "20"),
        *("--rounds", "1", "--seconds", "1", "--think", "0.1:0.2"),
    )
    assert ended.returncode == 0, ended.stderr
    assert "left out: aiolocust (pip install aiolocust, with a free-threaded Python 3.14)" in ended.stderr
    rows = [line.split(" | ") for line in ended.stdout.splitlines() if line.startswith("| ")]
    names, ours, absent, unpackaged = rows[0], *rows[2:5]
    figures = dict(
        zip((name.strip("| ") for name in names), (cell.strip("| ") for cell in ours), strict=True)
    )
    assert (figures["client"], figures["held"]) == ("KeepAliveUser", "20")
    assert (figures["reconnects"], figures["failed"]) == ("0", "0")
    assert float(figures["requests/s"]) > 0
    assert float(figures["CPU us per request"].replace(",", "")) > 0
    assert absent[2].startswith("not there: pip install aiolocust")
    assert (unpackaged[0], unpackaged[2].startswith("Debian has no package")) == ("| k6", True)


def test_an_unknown_client_is_told_with_those_that_there_are() -> None:
    ended = compare("--clients", "jmeter")
    assert ended.returncode == 2
    assert "unknown: jmeter; there are FastHttpUser, KeepAliveUser, wrk, tsung, aiolocust" in ended.stderr
