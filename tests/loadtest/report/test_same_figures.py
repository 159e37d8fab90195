"""One run has one figure for each thing: on terminal, page and pictures, in JSON and in CSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import fmean

import pytest

from parked.loadtest.report import charts, page, plots, report
from parked.loadtest.report.record import Record
from tests.loadtest.runs import write_run


def test_no_figure_differs_between_terminal_page_pictures_json_and_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    panels = plots._panels
    monkeypatch.setattr(
        plots, "_panels", lambda *args, **more: titles.append(args[2]) or panels(*args, **more)
    )
    run = write_run(tmp_path, requests_per_s=503, hold_cpu_s={"server": 1.47, "client": 2.52})
    summary = report.make(run)
    record = Record.read(run)
    terminal = "\n".join(report.lines(summary, run))
    shown = page.of_run(record, summary, report.sentence(summary)).partition("<script")[0]
    pictures = "\n".join(titles)
    with (run / "samples.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == "hold"]

    everywhere = {
        "503": fmean(int(row["requests"]) for row in rows),
        "1,000": min(int(row["connections_min"]) for row in rows),
        "0.15": fmean(float(row["server_cores"]) for row in rows),
        "0.25": fmean(float(row["client_cores"]) for row in rows),
    }
    for text, of_rows in everywhere.items():
        for place, said in (("terminal", terminal), ("page", shown), ("pictures", pictures)):
            assert re.search(rf"(?<![\d.]){re.escape(text)}(?![\d.]*\d)", said), (text, place)
        assert float(text.replace(",", "")) == pytest.approx(of_rows, rel=0.05)
    p99 = f"{summary['latency_ms']['p99']:.3g}"
    assert f"p99 {p99} " in terminal
    assert p99 in shown
    assert p99 in pictures
    assert summary["cores_in_hold"]["busy"] == pytest.approx(fmean(float(row["busy_cores"]) for row in rows))


def test_the_hold_begins_at_the_same_second_in_the_pictures_and_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    record = Record.read(run)
    drawn = plots._Run(
        {"time_s": plots.np.array([float(row["time_s"]) for row in record.rows])},
        [row["phase"] for row in record.rows],
        {},
    )
    assert list(drawn.spans()) == charts.phases(record)
    assert charts.phases(record)[1] == ("hold", record.facts["ramp_s"], record.facts["ramp_s"] + 10)
