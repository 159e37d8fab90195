from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parked.loadtest.report import report, verify
from parked.loadtest.report.goals import FIGURES, Goal, flat
from tests.loadtest.runs import write_run

pytestmark = pytest.mark.usefixtures("no_pictures")

SUMMARY: dict[str, Any] = {
    "hold_rps": 500.0,
    "latency_ms": {"p99": 46.1, "p50": None},
    "failures_by_kind": {"timeout": 3},
    "verdict": "pass",
}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("latency_ms.p99 > 200", ""),
        ("latency_ms.p99>46", "latency_ms.p99 is 46.1"),
        ("hold_rps <= 500", "hold_rps is 500"),
        ("hold_rps < 500", ""),
        ("latency_ms.p50 > 1", "latency_ms.p50 is not known (--fail-if"),
        ("latency_ms.p9 > 1", "did you mean latency_ms.p99?"),
        ("p99 > 1", "did you mean latency_ms.p99?"),
        ("failures_by_kind.timeout > 0", "failures_by_kind.timeout is 3"),
        ("failures_by_kind.status > 0", ""),  # a kind that did not occur
    ],
)
def test_a_goal_that_is_missed_says_so_with_the_figure(text: str, told: str) -> None:
    missed = Goal.parse(text).missed(SUMMARY)
    assert told in missed
    assert bool(missed) is bool(told)


@pytest.mark.parametrize("text", ["", "p99", "p99 = 3", "p99 > x", "a b > 3"])
def test_what_is_no_condition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"latency_ms\.p99 > 200"):
        Goal.parse(text)


@pytest.mark.parametrize("name", ["hold_rps", "heard.delivery_ms.p99", "failures_by_kind.timeout"])
def test_a_figure_that_runs_have_can_be_asked_for_before_one(name: str) -> None:
    assert Goal.checked(f"{name} > 1").name == name


def test_each_figure_that_a_run_has_measured_can_be_asked_for(tmp_path: Path) -> None:
    figures = set(flat(report.make(write_run(tmp_path))))
    no_figures = {name for name in figures if name.startswith("machine.") or name == "started_unix_s"}
    words = {"server.software", "kernel.socket_bytes_from", "heard"}  # null, or a group that is not there
    groups = {name.rpartition(".")[0] for name in FIGURES}
    assert figures - set(FIGURES) - groups - no_figures - words == set()
    assert {name for name in FIGURES if name.partition(".")[0] not in {"heard", *figures}} <= figures


def test_a_missed_goal_fails_the_run_now_and_when_its_figures_are_computed_again(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    summary = report.make(run, fail_if=["latency_ms.p99 > 1", "hold_rps < 1"])
    assert summary["verdict"] == "fail"
    assert len(summary["reasons"]) == 1
    assert "latency_ms.p99 > 1" in summary["reasons"][0]
    assert report.make(run)["reasons"] == summary["reasons"]
    assert verify.verify(run).disagreements == []
