"""The verdict, from folders as the recorder writes them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from loadtest import report
from loadtest.counters import new_histogram
from loadtest.recorder import FLEET_COLUMNS, MACHINE_COLUMNS

MIB = 1024 * 1024


def write_run(folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """A run that passes, but for the changes."""
    latencies = new_histogram()
    for milliseconds in range(1, 1001):
        latencies.record_value(milliseconds * 1000)
    totals = {"requests": 9000, "failures": 0, "reconnects": 0, "closed_by_peer": 0, "late_sends": 0}
    facts: dict[str, Any] = {
        "host": "http://127.0.0.1:8000",
        "target_connections": 1000,
        "started_unix_s": 1_700_000_000.0,
        "think_s": [1.0, 3.0],
        "length": [1024, 10240],
        "hold_asked_s": 10,
        "ramp_s": 2.0,
        "hold_s": 10.0,
        "peak_connections": 1000,
        "min_connections_in_hold": 1000,
        "totals": totals,
        "hold": {"requests": 5000, "received_bytes": 50 * MIB},
        "hold_cpu_s": {"server": 1.5, "client": 2.5},
        "burst_10ms_max": 12,
        "failures_by_kind": {},
        "workers": [],
        "server_software": "",
        "server_is_local": True,
        "machine": {},
        "versions": {},
        "command": "./run_test",
        "notes": [],
        "hold_latencies": latencies.encode().decode(),
    }
    facts["totals"] |= changes.pop("totals", {})
    facts |= changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts))
    with (folder / "samples.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FLEET_COLUMNS + MACHINE_COLUMNS)
        writer.writeheader()
        for second, row in enumerate(rows or [{"sockstat_tcp_inuse": 1500}, {"sockstat_tcp_inuse": 2003}]):
            writer.writerow({"time_s": second, "phase": "hold", "connections": 1000} | row)
    return folder


def test_a_run_that_held_everything_passes_with_its_figures(tmp_path: Path) -> None:
    summary = report.summarise(write_run(tmp_path))
    assert (summary["verdict"], summary["reasons"]) == ("pass", [])
    assert (summary["offered_rps"], summary["hold_rps"]) == (500, 500)
    assert summary["hold_mib_per_second"] == 5
    assert summary["kernel"]["sockstat_tcp_inuse_peak"] == 2003
    assert summary["server"]["cpu_seconds_in_hold"] == 1.5
    latency = summary["latency_ms"]
    assert latency["p50"] == pytest.approx(500, rel=0.01)
    assert latency["p99"] == pytest.approx(990, rel=0.01)
    assert latency["max"] == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hold_s": 0.0, "hold": {}, "peak_connections": 400}, "only 400 of 1,000 connections"),
        ({"hold_s": 5.0, "hold": {"requests": 2500, "received_bytes": 1}}, "held for 5 s of 10 s"),
        ({"min_connections_in_hold": 999}, "connections fell to 999 of 1,000"),
        ({"hold": {"requests": 4700, "received_bytes": 1}}, "470 requests/s reached of 500 offered"),
        ({"totals": {"failures": 2}, "failures_by_kind": {"timeout": 2}}, "2 failed requests (timeout 2)"),
        ({"totals": {"reconnects": 1}}, "1 reconnects"),
        ({"totals": {"closed_by_peer": 7}}, "7 connections closed by the server"),
        ({"rows": [{"sockstat_tcp_inuse": 1500}]}, "the kernel saw 1,500 TCP sockets"),
        ({"notes": ["worker 3 ended"]}, "worker 3 ended"),
    ],
)
def test_each_fault_is_a_reason_of_its_own(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    summary = report.summarise(write_run(tmp_path, **changes))
    assert summary["verdict"] == "fail"
    assert len(summary["reasons"]) == 1
    assert reason in summary["reasons"][0]


def test_sockets_of_a_server_elsewhere_are_not_expected_here(tmp_path: Path) -> None:
    run = write_run(tmp_path, server_is_local=False, rows=[{"sockstat_tcp_inuse": 1002}])
    assert report.summarise(run)["verdict"] == "pass"


def test_what_only_the_caller_knows_fails_a_run_too(tmp_path: Path) -> None:
    summary = report.summarise(write_run(tmp_path), ["the master was killed"])
    assert summary["reasons"] == ["the master was killed"]


def test_the_command_writes_summary_histogram_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert report.main([str(run)]) == 0
    assert "verdict      pass" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["verdict"] == "pass"
    merged = new_histogram()
    merged.decode_and_add((run / "latencies.hdr").read_text().strip().encode())
    assert merged.get_total_count() == 1000
    plots = {"connections.png", "throughput.png", "latency.png", "cpu.png", "memory.png"}
    assert plots <= {file.name for file in run.iterdir()}


def test_the_command_says_in_its_exit_code_that_a_run_failed(tmp_path: Path) -> None:
    assert report.main([str(write_run(tmp_path, min_connections_in_hold=1))]) == 1


@pytest.mark.parametrize("content", [None, "", "not json"])
def test_a_folder_without_a_run_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path) in error
