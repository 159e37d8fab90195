"""The page of a run: what stands on it, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parked.loadtest.report import charts, page, report
from parked.loadtest.report.record import Record
from parked.loadtest.report.summary import summarise
from tests.loadtest import browser
from tests.loadtest.runs import a_real_run, write_run

#: The page's own bounds: a size that a mail or an issue takes, and a wait that nobody minds.
PAGE_BYTES = 1_500_000


def made(folder: Path) -> str:
    record = Record.read(folder)
    summary = summarise(record)
    return page.of_run(record, summary, report.sentence(summary))


def data(text: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    loaded: list[dict[str, Any]] = json.loads(found[1])
    return loaded


def test_verdict_and_sentence_come_first(tmp_path: Path) -> None:
    text = made(write_run(tmp_path)).partition("<body>")[2]
    assert text.index("✓ pass") < text.index("1,000 connections held for 10&nbsp;s") < text.index("<figure>")


def test_a_failed_run_says_why_above_all(tmp_path: Path) -> None:
    text = made(write_run(tmp_path, dip=3, failures={"timeout": 2})).partition("<body>")[2]
    assert text.index("✗ fail") < text.index("connections fell to 997 of 1,000") < text.index("<figure>")
    assert "No answer within" in text  # what the kind of failure means


def test_every_chart_has_a_unit_and_a_place(tmp_path: Path) -> None:
    text = made(write_run(tmp_path))
    shown = data(text)
    assert len(shown) == text.count("<figure>") == 12
    assert all(chart["unit"] for chart in shown)
    assert all(len(line["values"]) == len(chart["x"]) for chart in shown for line in chart["lines"])


def test_the_phases_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    spans = charts.phases(Record.read(write_run(tmp_path, ramp_s=3, hold_s=4)))
    assert spans == [("ramp", 0, 3), ("hold", 3, 7), ("stop", 7, 8)]


def test_the_latency_curve_gives_the_percentiles_of_the_summary(tmp_path: Path) -> None:
    record = Record.read(write_run(tmp_path))
    chart, latency = charts.percentiles(record.latencies), summarise(record)["latency_ms"]
    at = dict(zip(chart.x, chart.lines[0].values, strict=True))
    assert (at[10], at[100]) == (latency["p90"], latency["p99"])
    assert chart.lines[0].values[-1] == latency["max"]
    assert charts.percentiles(Record.read(write_run(tmp_path, hold_s=0)).latencies).known is False


def test_lag_and_pauses_of_both_sides_follow_the_latency(tmp_path: Path) -> None:
    shown = data(made(write_run(tmp_path)))
    titles = [chart["title"] for chart in shown]
    latency = titles.index("Latency, from when a request was due")
    lag, pauses = shown[latency + 2 : latency + 4]
    assert lag["title"].startswith("Event-loop lag")
    assert pauses["title"].startswith("Garbage collection")
    for chart, both in ((lag, (4.5, 2.5)), (pauses, (1.5, 0.5))):
        assert [line["name"] for line in chart["lines"]] == ["client", "server"]
        assert tuple(line["values"][3] for line in chart["lines"]) == both


def test_the_workload_as_executed_stands_beside_what_was_asked_for(tmp_path: Path) -> None:
    text = made(write_run(tmp_path))
    assert "think time, s: asked for" in text
    assert re.search(r"body, bytes: measured</td><td class='number'>5,000</td>", text)
    thinks = next(chart for chart in data(text) if chart["title"].startswith("Think times"))
    asked, measured = (line["values"] for line in thinks["lines"])
    for value, expected in zip(measured, asked, strict=True):
        assert value is None or value == pytest.approx(expected, abs=0.3)


def test_a_chart_of_late_requests_is_there_when_there_were_some(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert "over 100 ms late" not in made(run)
    text = (run / "samples.csv").read_text().splitlines()
    late = text[0].split(",").index("late_sends_total")
    last = text[-1].split(",")
    last[late] = "3"
    (run / "samples.csv").write_text("\n".join([*text[:-1], ",".join(last)]) + "\n")
    assert "over 100 ms late" in made(run)


def test_a_server_that_tells_nothing_of_itself_is_told(tmp_path: Path) -> None:
    text = made(write_run(tmp_path, server_metrics=False))
    assert "The server told nothing of itself" in text


def test_what_came_from_outside_is_text(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    text = made(write_run(tmp_path, server_software=evil, notes=[evil], command=evil))
    assert "<img" not in text


def test_data_can_not_end_its_element() -> None:
    title = "<!--<script></script><script>alert(1)</script>"
    text = page.assemble("", "", [charts.Chart(title, "s", [1.0], [charts.Line("a", [1.0], 0)])])
    assert data(text)[0]["title"] == title
    assert "<!--<script" not in text


@pytest.mark.parametrize("changes", [{"hold_s": 0, "open_": 0}, {"server_is_local": False}, {"workers": []}])
def test_runs_that_lack_something_have_a_page_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert "What limits these figures" in made(write_run(tmp_path, **changes))


def test_half_an_hour_makes_a_small_page(tmp_path: Path) -> None:
    run = write_run(tmp_path, ramp_s=100, hold_s=1700, asked_s=1700, requests_per_s=500)
    text = made(run)
    assert 100_000 < len(text.encode()) < PAGE_BYTES


@pytest.fixture
def shown(window: browser.Browser, tmp_path: Path) -> Iterator[browser.Browser]:
    """The page of the real run in a wide, light window."""
    run = Path(shutil.copytree(a_real_run(), tmp_path / "run"))
    window.resize(1300)
    window.prefer("light")
    window.open(run / "index.html")
    yield window
    assert window.console() == []


def rectangle(window: browser.Browser, chart: int) -> tuple[float, float, float, float]:
    window.run(f"charts[{chart}].root.scrollIntoView({{block: 'center'}})")
    window.run(f"window.it = charts[{chart}].over.getBoundingClientRect()")
    x, y, width, height = window.run("return [it.left, it.top, it.width, it.height]")
    return x, y, width, height


def until(window: browser.Browser, script: str) -> Any:
    deadline = time.monotonic() + browser.PATIENCE_S
    while not (value := window.run(f"return {script}")):
        assert time.monotonic() < deadline, script
        time.sleep(0.05)
    return value


def test_it_draws_every_chart_and_loads_nothing(shown: browser.Browser) -> None:
    places = shown.run("return document.querySelectorAll('.chart').length")
    assert places >= 12  # one more where the machine was so busy that requests left late
    assert shown.run("return charts.length") == places
    assert shown.run("return document.querySelectorAll('canvas').length") == places
    assert shown.run("return performance.getEntriesByType('resource').length") == 0


def test_pointing_at_a_chart_shows_the_values_of_all(shown: browser.Browser) -> None:
    x, y, width, height = rectangle(shown, 0)
    shown.drag((x + width * 0.6, y + height / 2), press=False)
    until(shown, "charts[0].legend.idx != null && charts[2].legend.idx === charts[0].legend.idx")
    assert "1,000" in shown.run("return charts[0].root.querySelector('.u-legend').innerText")


def test_dragging_zooms_all_charts_over_time_and_a_double_click_goes_back(shown: browser.Browser) -> None:
    x, y, width, height = rectangle(shown, 0)
    whole = shown.run("return charts[2].scales.x.max - charts[2].scales.x.min")
    shown.drag((x + width * 0.3, y + height / 2), (x + width * 0.6, y + height / 2))
    until(shown, f"charts[2].scales.x.max - charts[2].scales.x.min < {whole * 0.4}")
    shown.run("charts[0].over.dispatchEvent(new MouseEvent('dblclick', {bubbles: true}))")
    until(shown, f"charts[0].scales.x.max - charts[0].scales.x.min === {whole}")


def test_a_chart_that_is_not_over_time_zooms_alone(shown: browser.Browser) -> None:
    place = shown.run("return charts.findIndex(it => it.axes[0].label.startsWith('think times'))")
    x, y, width, height = rectangle(shown, place)
    span = f"charts[{place}].scales.x.max - charts[{place}].scales.x.min"
    whole, time_s = shown.run(f"return [{span}, charts[0].scales.x.max]")
    shown.drag((x + width * 0.3, y + height / 2), (x + width * 0.6, y + height / 2))
    until(shown, f"{span} < {whole * 0.4}")
    assert shown.run("return charts[0].scales.x.max") == time_s


def test_no_label_of_an_axis_is_empty(shown: browser.Browser) -> None:
    assert shown.run("return charts.every(it => it.axes.every(axis => axis.label))")


def test_labels_of_a_million_stay_clear_of_the_title_of_their_axis(
    window: browser.Browser, tmp_path: Path
) -> None:
    run = write_run(tmp_path, target=1_600_000, open_=1_600_000, sockets=3_200_003)
    (run / "index.html").write_text(made(run))
    window.resize(1300)
    window.open(run / "index.html")
    room, longest = window.run("""
        const axis = charts[0].axes[1], ctx = charts[0].ctx;
        ctx.font = axis.font[0];
        const widths = axis._values.map((label) => ctx.measureText(label).width / devicePixelRatio);
        return [axis._size - axis.ticks.size - axis.gap, Math.max(...widths)];
    """)
    assert 0 < longest <= room
    assert window.console() == []


@pytest.mark.parametrize("width", [390, 800, 1300])
def test_nothing_is_wider_than_the_window(shown: browser.Browser, width: int) -> None:
    shown.resize(width)
    until(shown, "charts.every(it => it.root.getBoundingClientRect().right <= innerWidth)")
    assert shown.run("return document.documentElement.scrollWidth") <= width


def test_it_follows_the_dark_scheme(shown: browser.Browser) -> None:
    line = "charts[0].series[2].stroke()"
    light, back = shown.run(f"return [{line}, getComputedStyle(document.body).backgroundColor]")
    shown.prefer("dark")
    until(shown, f"{line} !== '{light}'")
    assert shown.run("return getComputedStyle(document.body).backgroundColor") != back
