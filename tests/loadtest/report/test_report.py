"""The verdict, from folders as the recorder writes them."""

from __future__ import annotations

import csv
import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest

from parked.loadtest.master.rows import COLUMNS
from parked.loadtest.report import report
from parked.loadtest.report.record import Record
from parked.loadtest.report.summary import summarise
from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.histogram import merge, new_histogram
from tests.loadtest.runs import PROJECT, write_run


def summarised(folder: Path) -> dict[str, Any]:
    return summarise(Record.read(folder))


def test_a_run_that_held_everything_passes_with_its_figures(tmp_path: Path) -> None:
    summary = summarised(write_run(tmp_path))
    assert (summary["verdict"], summary["reasons"]) == ("pass", [])
    assert (summary["offered_rps"], summary["hold_rps"]) == (500, 500)
    assert summary["hold_mib_per_second"] == 5
    assert summary["kernel"]["sockstat_tcp_inuse_peak"] == 2003
    assert summary["server"]["cpu_seconds_in_hold"] == 1.5
    latency = summary["latency_ms"]
    assert latency["p50"] == pytest.approx(5 * (1 + 9 * 0.5**8), rel=0.01)
    assert latency["p99"] == pytest.approx(5 * (1 + 9 * 0.99**8), rel=0.02)
    assert latency["max"] == pytest.approx(50, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hold_s": 0, "open_": 400}, "only 400 of 1,000 connections"),
        ({"hold_s": 5}, "held for 5 s of 10 s"),
        ({"dip": 1}, "connections fell to 999 of 1,000"),
        ({"requests_per_s": 470}, "470 requests/s reached of 500 offered"),
        ({"failures": {"timeout": 2}}, "2 failed requests (2 x timeout)"),
        ({"reconnects": 1}, "1 reconnects"),
        ({"closed": 7}, "7 connections closed by the server"),
        ({"sockets": 1500}, "the kernel saw 1,500 TCP sockets"),
        ({"notes": ["worker 3 ended"]}, "worker 3 ended"),
        ({"peak_connections": 999}, "witnesses disagree: peak connections"),
    ],
)
def test_each_fault_is_a_reason_of_its_own(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    summary = summarised(write_run(tmp_path, **changes))
    assert summary["verdict"] == "fail"
    assert len(summary["reasons"]) == 1
    assert reason in summary["reasons"][0]


@pytest.mark.parametrize(("reached", "verdict"), [(4, "pass"), (3, "pass"), (2, "fail")])
def test_a_rate_fails_a_run_only_if_chance_does_not_explain_it(
    tmp_path: Path, reached: int, verdict: str
) -> None:
    """40 requests were due: 21 are three standard deviations fewer."""
    run = write_run(tmp_path, target=8, open_=8, sockets=19, requests_per_s=reached, think_s=[1, 3])
    summary = summarised(run)
    assert (summary["offered_rps"], summary["verdict"]) == (4, verdict)
    assert summary["remarks"] == [
        "about 40 requests were due in the hold: chance alone may make it 47% fewer"
    ]
    if verdict == "fail":
        assert summary["reasons"] == [f"{reached} requests/s reached of 4 offered"]


def test_who_ends_a_run_as_the_hold_begins_is_not_told_that_connections_were_missing(tmp_path: Path) -> None:
    (reason,) = summarised(write_run(tmp_path, hold_s=0))["reasons"]
    assert reason == "ended as soon as 1,000 connections were established, before there was a hold"


def test_the_sentence_tells_of_the_hold_or_that_there_was_none(tmp_path: Path) -> None:
    held = report.sentence(summarised(write_run(tmp_path / "held")))
    assert held.startswith(
        "1,000 connections held for 10 s at 500 requests/s, p50 5.17 ms, p99 45.9 ms, server"
    )
    ramp = report.sentence(summarised(write_run(tmp_path / "ramp", hold_s=0, open_=400)))
    assert ramp == "400 of 1,000 connections were established in 2 s; there was no hold"


def test_sockets_of_a_server_elsewhere_are_not_expected_here(tmp_path: Path) -> None:
    run = write_run(tmp_path, server_is_local=False, sockets=1002)
    assert summarised(run)["verdict"] == "pass"


@pytest.mark.usefixtures("no_pictures")
def test_what_only_the_caller_knows_fails_a_run_now_and_when_its_report_is_made_again(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert report.make(run, ["the master was killed"])["reasons"] == ["the master was killed"]
    assert report.make(run, ["the master was killed"])["reasons"] == ["the master was killed"]
    assert report.make(run)["reasons"] == ["the master was killed"]


@pytest.mark.usefixtures("no_pictures")
def test_users_that_ended_themselves_are_told_of(tmp_path: Path) -> None:
    summary = report.make(write_run(tmp_path, users_ended_themselves=250))
    assert summary["verdict"] == "pass"
    (remark,) = summary["remarks"]
    assert remark.startswith("250 of 1,250 users that were asked for have ended themselves")


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupt_explains_a_failed_run_and_does_not_fail_one_that_was_complete(tmp_path: Path) -> None:
    complete = report.make(write_run(tmp_path / "complete"), if_failed=["interrupted"])
    assert (complete["verdict"], complete["reasons"]) == ("pass", [])
    ramp = report.make(write_run(tmp_path / "ramp", hold_s=0, open_=756), if_failed=["interrupted"])
    assert ramp["reasons"] == ["only 756 of 1,000 connections were established", "interrupted"]
    assert "756 of 1,000 at the peak; there was no hold" in report.lines(ramp, tmp_path)[0]


@pytest.mark.usefixtures("no_pictures")
def test_what_is_not_known_of_a_server_elsewhere_is_null_and_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, server_is_local=False, hold_cpu_s={"server": None, "client": 2.5}, think_s=None,
                    length=None)  # fmt: skip
    rows = list(csv.DictReader((run / "samples.csv").read_text().splitlines()))
    columns = ("server_cores", "server_pss_bytes", "server_processes")
    with (run / "samples.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | dict.fromkeys(columns, "") for row in rows)
    summary = report.make(run)
    assert summary["verdict"] == "pass", summary["reasons"]
    server = summary["server"]
    assert [server[name] for name in ("processes", "pss_peak_bytes", "cpu_seconds_in_hold")] == [None] * 3
    assert summary["offered_rps"] is None
    text = "\n".join(report.lines(summary, run))
    assert "not on this machine" in text
    assert "offered" not in text
    page = (run / "index.html").read_text()
    assert "server 0.00" not in page
    assert "time asked for" not in page
    assert '"asked for"' not in page


def test_the_command_writes_summary_histogram_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert report.main([str(run)]) == 0
    assert "verdict      pass" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["verdict"] == "pass"
    merged = new_histogram()
    merge(merged, (run / "latencies.hdr").read_text().strip().encode())
    assert merged.get_total_count() == 5000
    plots = {"connections.png", "throughput.png", "latency.png", "cpu.png", "memory.png"}
    assert plots <= {file.name for file in run.iterdir()}


@pytest.mark.usefixtures("no_pictures")
def test_the_command_says_in_its_exit_code_that_a_run_failed(tmp_path: Path) -> None:
    assert report.main([str(write_run(tmp_path, dip=1))]) == 1


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("content", [None, ""])
def test_rows_without_their_facts_are_a_report_that_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    run = write_run(tmp_path)
    (run / "run.json").unlink()
    if content is not None:
        (run / "run.json").write_text(content)
    with (run / "samples.csv").open("a") as file:
        file.write("14.0,99")  # killed while it wrote
    assert report.main([str(run)]) == 1
    assert "run.json is " in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["min_connections_in_hold"], summary["hold_rps"]) == (1000, 500)
    assert summary["latency_ms"]["p99"] is None
    assert (summary["verdict"], len(summary["reasons"])) == ("fail", 1)
    assert (run / "index.html").exists()


def test_figures_are_told_and_what_can_be_is_written_where_a_file_can_not_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    for name in ("summary.json", "index.html"):
        (run / name).mkdir()
    assert report.main([str(run)]) == 2
    told = capsys.readouterr()
    assert "verdict      pass" in told.out
    assert told.err.splitlines() == [f"report: cannot write to {run}: Is a directory"]
    assert (run / "latencies.hdr").exists()


def test_a_page_that_a_full_disk_has_no_place_for_is_not_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = write_run(tmp_path)
    monkeypatch.setattr(report.files, "replace", full)
    assert report.main([str(run)]) == 2
    told = capsys.readouterr()
    assert "verdict      pass" in told.out
    assert "index.html" not in told.out
    assert told.err.splitlines() == [f"report: cannot write to {run}: No space left on device"]


@pytest.mark.parametrize("content", [None, "", "not json", "[]", "{}"])
def test_a_folder_without_a_run_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path) in error


def test_the_guide_to_results_explains_every_figure_and_column(tmp_path: Path) -> None:
    guide = set(re.findall(r"`([^`\n]+)`", (PROJECT / "results" / "README.md").read_text()))
    summary = summarised(write_run(tmp_path))
    figures = (
        set(summary) - {"kernel"} | {f"kernel.{name}" for name in summary["kernel"]} | set(summary["server"])
    )
    figures |= set(summary["latency_ms"]) | set(summary["workload"])
    explained = guide | {f"kernel.{name}" for name in guide}
    assert figures - explained == set()
    assert set(COLUMNS) - guide == set()


def test_connections_that_are_spread_unevenly_over_the_workers_fail_a_run(tmp_path: Path) -> None:
    def held(*connections: int) -> dict[str, Any]:
        run = write_run(tmp_path)
        facts = json.loads((run / "run.json").read_text())
        (worker,) = facts["workers"]
        none = {name: 0 for name, value in worker.items() if type(value) is int}
        facts["workers"] = [
            (none if number else {}) | {**worker, **(none if number else {})} | {"connections_at_hold": count}
            for number, count in enumerate(connections)
        ]
        (run / "run.json").write_text(json.dumps(facts))
        return summarised(run)

    even = held(334, 333, 333)
    assert even["verdict"] == "pass"
    assert even["client"]["connections_a_worker"] == {"least": 333, "mean": 333.3, "most": 334}
    for connections in ((400, 300, 300), (260, 370, 370)):
        uneven = held(*connections)
        assert uneven["verdict"] == "fail"
        assert any("unevenly spread" in reason for reason in uneven["reasons"])


def test_what_was_drawn_is_told_with_its_distance_to_what_was_asked_for(tmp_path: Path) -> None:
    drawn = summarised(write_run(tmp_path))["workload"]["executed"]
    assert drawn["length_bytes"] == {
        "count": 5000, "min": 1024, "mean": 3523.5, "p50": pytest.approx(3524, rel=0.022), "max": 6023,
        "distance": pytest.approx(1 - 5000 / 9217, abs=0.01),
    }  # fmt: skip
    assert drawn["think_s"]["distance"] < 0.002
    exact = summarised(write_run(tmp_path, think_grain_s=0.0))["workload"]["executed"]
    assert exact["think_s"]["distance"] > drawn["think_s"]["distance"]
    older = summarised(write_run(tmp_path, hold_thinks_s=None, hold_lengths=None))
    assert older["workload"]["executed"] == {"think_s": None, "length_bytes": None}


def test_requests_that_are_never_answered_are_in_the_figures_and_fail_the_run(tmp_path: Path) -> None:
    ages = Distribution()
    ages.add([0.004] * 20 + [9.5] * 100)
    run = write_run(tmp_path, hold_open_s=ages.as_list())
    summary = summarised(run)
    assert summary["open_at_end"] == {"requests": 120, "oldest_s": 9.5, "bound_s": 5.0, "too_old": 100}
    assert summary["verdict"] == "fail"
    assert "100 requests were unanswered at the end of the hold for longer than 5 s" in summary["reasons"][0]
    assert summary["latency_ms"]["max"] == pytest.approx(9500, rel=0.001), "of the oldest it is known"
    assert summary["latency_ms"]["p99"] == pytest.approx(9500, rel=0.03)
    assert "a lower bound" in "\n".join(report.lines(summary, run))


def test_what_was_just_asked_at_the_end_of_the_hold_is_no_reason(tmp_path: Path) -> None:
    ages = Distribution()
    ages.add([0.004, 0.2])
    summary = summarised(write_run(tmp_path, hold_open_s=ages.as_list()))
    assert (summary["verdict"], summary["open_at_end"]["too_old"]) == ("pass", 0)
