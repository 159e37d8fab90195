"""The words on what limits a run, for runs that were limited by one thing each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parked.loadtest.report import limits
from parked.loadtest.report.record import Record
from parked.loadtest.report.summary import summarise
from tests.loadtest.runs import write_run


def said(folder: Path, columns: dict[str, Any] | None = None, hold: dict[str, Any] | None = None) -> str:
    """The sentences for a run in whose rows these cells are others."""
    record = Record.read(folder)
    for row in record.rows:
        row |= {name: str(value) for name, value in (columns or {}).items()}
    record.facts["hold"] |= hold or {}
    return "\n".join(limits.sentences(record, summarise(record)))


def test_a_run_with_room_says_that_only_the_think_time_limited_it(tmp_path: Path) -> None:
    text = said(write_run(tmp_path))
    assert "not the limit on average: 0.50 of 2 cores" in text
    assert "75% idle" in text
    assert "The client kept up" in text
    assert "limited by the think time alone: 100.0% of the offered 500 requests/s" in text


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"busy_cores": 1.9, "server_cores": 1.2}, "CPU was saturated: 1.90 of 2 cores"),
        ({"busy_cores": 1.9, "server_cores": 1.2}, "the server took most of them"),
        ({"busy_cores": 1.9}, "other programs took most of them"),
        ({"busy_cores": 0.95}, "Other programs used 0.50 cores"),
        ({"loop_lag_max_ms": 300}, "lagged by up to 300 ms"),
        ({"server_loop_lag_max_ms": 150}, "server worker's event loop lagged by up to 150 ms"),
        ({"server_loop_lag_max_ms": 150, "server_gc_pause_max_ms": 140}, "garbage collection took 140 ms"),
        ({"retrans_segs": 7, "listen_drops": 3}, "counted 3 dropped SYNs, 7 retransmits"),
        ({"memory_available_bytes": 1024}, "Memory was short"),
        ({"busy_cores": ""}, "CPU was not measured"),
    ],
)
def test_what_the_rows_show_is_said(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    server_s = 10.0 * columns.get("server_cores", 0.15)
    run = write_run(tmp_path, hold_cpu_s={"server": server_s, "client": 2.5})
    assert told in said(run, columns)
    assert told not in said(run)


def test_late_sends_are_the_clients(tmp_path: Path) -> None:
    assert "100 of 5,000 requests of the hold (2.00%) left more than 100 ms" in said(
        write_run(tmp_path), hold={"late_sends": 100}
    )


def test_a_rate_below_the_offered_is_explained_and_a_run_with_failures_is_not_explained_away(
    tmp_path: Path,
) -> None:
    assert "500 requests/s 80.0% were reached" in said(write_run(tmp_path, requests_per_s=400))
    assert "think time alone" not in said(write_run(tmp_path, failures={"timeout": 1}))


def test_bursts_and_full_workers_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, burst_10ms_max=90)
    facts = json.loads((run / "run.json").read_text())
    facts["workers"][0]["cpu_s"] = 11.5
    (run / "run.json").write_text(json.dumps(facts))
    text = said(run)
    assert "90 within 10 ms at most, where 5 is the mean" in text
    assert "1 Locust workers used a core" in text


def test_a_run_without_a_hold_has_no_figures_to_limit(tmp_path: Path) -> None:
    assert "There was no hold" in said(write_run(tmp_path, hold_s=0, open_=400))


def test_think_times_that_are_not_those_asked_for_are_told(tmp_path: Path) -> None:
    assert "The think times were not drawn evenly from 1 to 4" in said(
        write_run(tmp_path, think_s=[1.0, 4.0], requests_per_s=400)
    )
    assert "think times were not" not in said(write_run(tmp_path))


@pytest.mark.parametrize(
    ("connections", "processes", "told"), [(400_000, 23, True), (20_000, 23, False), (36_000, 4, False)]
)
def test_processes_that_the_limit_of_descriptors_made_are_named(
    tmp_path: Path, connections: int, processes: int, told: bool
) -> None:
    record = Record.read(write_run(tmp_path))
    summary = summarise(record)
    summary["target_connections"], summary["client"]["processes"] = connections, processes
    summary["machine"]["nofile_hard"] = 20_000
    assert ("20,000 descriptors per process made it" in "\n".join(limits.sentences(record, summary))) is told
