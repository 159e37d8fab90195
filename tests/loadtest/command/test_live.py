"""A run is followed by the files it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from parked.loadtest.command import live
from tests.loadtest.runs import write_run

if TYPE_CHECKING:
    from pathlib import Path

ASKED = live.Asked("http://127.0.0.1:8000", 1000, 10, (1.0, 3.0), 2, 8 << 30)


def follow(folder: Path, until_row: int | None = None) -> live.Run:
    """A run as it was when so many of its rows had been written."""
    if until_row is not None:
        lines = (folder / "samples.csv").read_text().splitlines(keepends=True)
        (folder / "samples.csv").write_text("".join(lines[: until_row + 1]))
    run = live.Run(folder, ASKED)
    run.update()
    return run


def test_the_ramp_tells_its_pace_and_the_time_left(tmp_path: Path) -> None:
    run = follow(write_run(tmp_path / "run", ramp_s=10), until_row=6)
    assert run.progress() == (0.6, "600 of 1,000 connections, 100/s, about 0:04 left")


def test_the_hold_tells_the_time_left(tmp_path: Path) -> None:
    run = follow(write_run(tmp_path / "run", ramp_s=2, hold_s=10), until_row=5)
    assert run.progress() == (pytest.approx(0.3), "0:03 of 0:10, 0:07 left")
    assert run.least_in_hold == 1000
    assert run.per_s("requests_total") == pytest.approx(500, rel=0.3)


def test_a_dip_in_the_hold_stays_visible(tmp_path: Path) -> None:
    assert follow(write_run(tmp_path / "run", dip=7)).least_in_hold == 993


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("busy_cores", "1.9", "CPU saturated: 1.90 of 2 cores"),
        ("late_sends_total", "{row}", "client late: 10 requests"),
        ("listen_drops", "{row}", "dropped 10 SYNs"),
        ("memory_available_bytes", "800000000", "memory short"),
    ],
)
def test_what_limits_the_figures_is_named(tmp_path: Path, column: str, value: str, wanted: str) -> None:
    folder = write_run(tmp_path / "run")
    heading, *rows = (folder / "samples.csv").read_text().splitlines()
    place = heading.split(",").index(column)
    changed = [heading]
    for number, row in enumerate(rows):
        cells = row.split(",")
        cells[place] = value.format(row=number)
        changed.append(",".join(cells))
    assert follow(folder).warnings() == []
    (folder / "samples.csv").write_text("\n".join(changed) + "\n")
    (warning,) = follow(folder).warnings()
    assert wanted in warning


def test_half_a_row_is_left_for_later(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    whole = (folder / "samples.csv").read_text()
    (folder / "samples.csv").write_text(whole[:-20])
    run = follow(folder)
    before = run.value("time_s")
    (folder / "samples.csv").write_text(whole)
    assert run.update()
    assert run.value("time_s") == before + 1


def test_another_test_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    run = follow(write_run(tmp_path / "run", dip=3))
    write_run(tmp_path / "run", hold_s=2, ramp_s=3)
    run.update()
    assert run.value("time_s") == 6
    assert run.least_in_hold == 1000
    assert len(run.history) == 6


def test_only_what_matters_of_the_log_is_kept(tmp_path: Path) -> None:
    (tmp_path / "locust.log").write_text(
        "[2026-11-23 04:25:47,158] vm/WARNING/locust.runners: Your selected spawn rate is very high\n"
        "[2026-11-23 04:25:48,158] vm/WARNING/parked.loadtest.master.run: Locust worker pid 7 ended\n"
        "[2026-11-23 04:25:49,158] vm/ERROR/locust.main: it broke \x1b[2J\n"
        "Traceback\n"
    )
    assert list(follow(tmp_path).messages) == [
        "04:25:48 Locust worker pid 7 ended",
        "04:25:49 it broke \\x1b[2J",
    ]


def test_clocks_are_read_at_a_glance() -> None:
    assert [live.clock(seconds) for seconds in (7, 247, 3847, float("inf"))] == [
        "0:07",
        "4:07",
        "1:04:07",
        "?",
    ]
