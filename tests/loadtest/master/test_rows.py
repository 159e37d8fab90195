"""Rows of samples.csv: what was counted in a second, and what the machine was like."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from parked.loadtest.master import rows
from parked.loadtest.master.fleet import Fleet
from tests.loadtest.master.test_fleet import WorkerProcess


@pytest.fixture
def worker() -> WorkerProcess:
    return WorkerProcess("one")


def row(worker: WorkerProcess, fleet: Fleet, before: dict[str, float], phase: str = "hold") -> dict[str, Any]:
    fleet.take(worker.name, worker.sample())
    return rows.counted(fleet.second(), before, phase)


def test_totals_are_since_the_start_and_the_rest_since_the_row_before(worker: WorkerProcess) -> None:
    fleet = Fleet()
    worker.work(5)
    first = row(worker, fleet, {})
    assert (first["requests_total"], first["requests"]) == (5, 5)
    worker.work(3)
    second = row(worker, fleet, {"requests": 5, "received_bytes": first["received_bytes_total"]})
    assert (second["requests_total"], second["requests"]) == (8, 3)
    assert second["received_bytes"] == second["received_bytes_total"] - first["received_bytes_total"] > 0


def test_a_second_has_its_percentiles_if_anything_was_answered_in_it(worker: WorkerProcess) -> None:
    fleet = Fleet()
    worker.work(10, latency_ms=5.0)
    cells = row(worker, fleet, {})
    assert cells["latency_p50_ms"] == cells["latency_max_ms"] == pytest.approx(5.0, rel=0.01)
    assert "latency_p50_ms" not in row(worker, fleet, {})


def test_what_is_answered_while_all_is_being_closed_has_no_latency(worker: WorkerProcess) -> None:
    worker.work(10)
    cells = row(worker, Fleet(), {}, phase="stop")
    assert cells["requests"] == 10
    assert not [name for name in cells if name.startswith("latency")]


def test_every_cell_has_a_column(worker: WorkerProcess) -> None:
    worker.work(1)
    assert set(row(worker, Fleet(), {})) <= set(rows.COLUMNS)
    assert len(set(rows.COLUMNS)) == len(rows.COLUMNS)


def test_what_the_kernel_does_not_show_is_an_empty_cell() -> None:
    sample: Any = SimpleNamespace(**dict.fromkeys(rows.MACHINE_COLUMNS))
    sample.busy_cores, sample.slab_bytes = 1.23456, 7
    cells = rows.measured(sample)
    assert (cells["busy_cores"], cells["slab_bytes"], cells["server_cores"]) == (1.235, 7, None)
