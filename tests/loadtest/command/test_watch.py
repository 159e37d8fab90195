"""A run that has failed already is known as such by what it has written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from parked.loadtest.command import live
from parked.loadtest.command.watch import Watch
from tests.loadtest.runs import write_run

if TYPE_CHECKING:
    from pathlib import Path

ASKED = live.Asked("http://127.0.0.1:8000", 1000, 60, (1.0, 3.0), 2, 8 << 30)


@pytest.mark.parametrize(
    ("run", "goals", "wanted"),
    [
        ({}, (), ""),
        ({"failures": {"status": 3}}, (), "3 failed requests (3 x status)"),
        ({}, ("latency_ms.p99 > 200",), ""),
        ({}, ("latency_ms.p99 > 2",), "latency_ms.p99 is"),
        # Too few so far may become enough.
        ({}, ("hold_requests < 1000000",), ""),
        ({"hold_s": 5}, ("latency_ms.p99 > 2",), ""),
    ],
    ids=range(6),
)
def test_only_what_can_not_get_better_ends_a_run(
    tmp_path: Path, run: dict[str, Any], goals: tuple[str, ...], wanted: str
) -> None:
    folder = write_run(tmp_path / "run", **{"asked_s": 60, "hold_s": 12, "ended": False} | run)
    why = Watch(folder, ASKED, goals).why()
    assert wanted in why
    assert bool(why) is bool(wanted)


def test_a_run_without_anything_written_has_not_failed(tmp_path: Path) -> None:
    assert Watch(tmp_path, ASKED, ("latency_ms.p99 > 2",)).why() == ""
