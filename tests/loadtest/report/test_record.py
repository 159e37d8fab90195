"""Reading a run's folder back, whole, cut off or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from parked.loadtest.report.record import NoRun, Record, number, per_second
from tests.loadtest.runs import write_run


def test_a_run_is_read_with_its_phases(tmp_path: Path) -> None:
    record = Record.read(write_run(tmp_path, ramp_s=3, hold_s=4))
    assert [row["time_s"] for row in record.hold()] == ["4.0", "5.0", "6.0", "7.0"]
    begin = record.before_hold()
    assert begin is not None
    assert begin["time_s"] == "3.0"
    assert record.latencies.get_total_count() == 2000


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    samples = run / "samples.csv"
    whole = len(Record.read(run).rows)
    samples.write_text(samples.read_text() + "14.0,1700000014.0,st")
    assert len(Record.read(run).rows) == whole


def test_rows_after_the_last_facts_are_no_statement(tmp_path: Path) -> None:
    record = Record.read(write_run(tmp_path, rows=5))
    assert (len(record.stated), len(record.rows)) == (5, 13)


def test_a_rate_is_over_the_time_in_which_the_workers_counted() -> None:
    totals = [100.0, 300.0, 300.0, 1100.0, None, 1200.0]
    counted = [1000.9, 1002.9, 1002.9, 1006.9, 1007.9, 1008.9]
    times = [1.0, 3.1, 3.9, 7.0, 8.0, 9.0]
    assert per_second(totals, counted, times) == pytest.approx([100, 100, None, 200, None, 50])


def test_a_rate_without_the_time_of_counting_is_over_the_rows() -> None:
    unknown = [math.nan, None, None]
    assert per_second([10.0, 30.0, 90.0], unknown, [1.0, 2.0, 4.0]) == [10, 20, 30]


@pytest.mark.parametrize("cell", ["", "nan", "inf", "12x"])
def test_a_cell_that_is_no_finite_number_is_unknown(cell: str) -> None:
    assert number({"cell": cell}, "cell") is None
    assert number({}, "cell") is None


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("run.json", "drop hold_s", "run.json lacks hold_s"),
        ("run.json", "spoil hold_latencies", "no latency histogram"),
        ("samples.csv", "drop the heading", "samples.csv lacks the column"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path: Path, name: str, damage: str, told: str) -> None:
    file = write_run(tmp_path) / name
    if name == "run.json":
        facts = json.loads(file.read_text())
        if damage.startswith("drop"):
            del facts["hold_s"]
        else:
            facts["hold_latencies"] = "HISTFAAA"
        file.write_text(json.dumps(facts))
    else:
        file.write_text(file.read_text().partition("\n")[2])
    with pytest.raises(NoRun, match=told):
        Record.read(tmp_path)
