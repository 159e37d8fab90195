"""The line a second keeps the original's form."""

from __future__ import annotations

import re
from typing import Any

import pytest

from parked.loadtest.terms import console

ROW: dict[str, Any] = {
    "time_s": 104.0,
    "phase": "hold",
    "connections": 400_000,
    "connections_wanted": 400_000,
    "requests_total": 646_431,
    "received_bytes_total": 31.26 * 1024 * 1024 * 104,
    "requests": 8000,
    "failures": 0,
    "reconnects": 2,
    "latency_p50_ms": 12.4,
    "latency_p99_ms": 99.6,
}


def test_the_first_part_is_the_originals() -> None:
    original, _, now = console.line(ROW).partition(" | ")
    assert original == (
        "time 104s, concurrency: 400000, total requests: 646431, "
        "throughput: 31.26M/s, 6215.68 requests/seconds"
    )
    assert now == "hold 100%, 8000 requests, p50/p99 12/100 ms, 0 failures, 2 reconnects"


@pytest.mark.parametrize("changes", [{"time_s": 0.0}, {"connections_wanted": 0, "connections": 0}])
def test_the_first_second_divides_by_nothing(changes: dict[str, Any]) -> None:
    assert re.match(r"time 0s|time 104s", console.line(ROW | changes))


def test_a_second_without_responses_has_no_percentiles() -> None:
    row = {name: value for name, value in ROW.items() if not name.startswith("latency")}
    assert "p50" not in console.line(row)
