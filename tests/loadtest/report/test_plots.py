"""Plots: the five pictures of runs as they happen, complete or cut short."""

from __future__ import annotations

import csv
import math
import random
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from parked.loadtest.report import plots

NAMES = ["connections.png", "throughput.png", "latency.png", "cpu.png", "memory.png"]

COLUMNS = """
    time_s,unix_time_s,phase,users,connections_wanted,connections,connections_min,opened_total,
    reconnects_total,requests_total,failures_total,late_sends_total,received_bytes_total,requests,failures,
    reconnects,received_bytes,latency_p50_ms,latency_p90_ms,latency_p99_ms,latency_max_ms,burst_10ms_max,
    loop_lag_max_ms,server_cores,client_cores,kernel_cores,busy_cores,server_pss_bytes,client_pss_bytes,
    slab_bytes,memory_available_bytes,sockstat_tcp_inuse,sockstat_tcp_tw,sockstat_tcp_mem_bytes,
    listen_overflows,listen_drops,retrans_segs,server_processes,client_processes
""".replace(",", " ").split()


def seconds_of_a_run(
    connections: int = 100_000, ramp_s: int = 55, hold_s: int = 60, stop_s: int = 4, bad: bool = False
) -> Iterator[dict[str, object]]:
    """What a run of that size might have measured, a row per second."""
    chance = random.Random(7)
    totals = dict.fromkeys(("requests", "failures", "reconnects", "received_bytes"), 0)
    for second in range(1, ramp_s + hold_s + stop_s + 1):
        phase = "ramp" if second <= ramp_s else "hold" if second <= ramp_s + hold_s else "stop"
        wanted = min(connections, connections * second // ramp_s) if phase != "stop" else 0
        lost = connections // 20 if bad and second in range(ramp_s + 20, ramp_s + 26) else 0
        there = max(0, int(wanted * (0.985 if phase == "ramp" else 1)) - lost)
        ramping = 1.5 if phase == "ramp" else 1.0
        requests = int(there / 50 * chance.uniform(0.97, 1.03))
        now = {
            "requests": requests,
            "failures": lost // 3,
            "reconnects": lost // 5,
            "received_bytes": requests * 5_800,
        }
        for name, value in now.items():
            totals[name] += value
        busy = requests / 2_000
        base = math.exp(chance.gauss(0, 0.12)) * ramping * (8 if lost else 1)
        server, client = 0.21 * busy * ramping + 0.01, 0.17 * busy * ramping + 0.04
        kernel = 0.05 * busy * ramping + 0.01
        row: dict[str, object] = dict.fromkeys(COLUMNS, 0)
        row |= now | {f"{name}_total": total for name, total in totals.items()}
        row |= {
            "time_s": second,
            "unix_time_s": 1_800_000_000 + second,
            "phase": phase,
            "connections_wanted": wanted,
            "connections": there,
            "latency_p50_ms": round(11 * base, 2),
            "latency_p90_ms": round(42 * base, 2),
            "latency_p99_ms": round(140 * base, 2),
            "latency_max_ms": round(420 * base * chance.uniform(1, 2), 2),
            "server_cores": server,
            "client_cores": client,
            "kernel_cores": kernel,
            "busy_cores": server + client + kernel + chance.uniform(0.02, 0.06),
            "server_pss_bytes": 50_000_000 + 500 * there,
            "client_pss_bytes": 150_000_000 + 8_500 * there,
            "slab_bytes": 110_000_000 + 10_000 * there,
            "memory_available_bytes": 24_000_000_000 - 19_000 * there,
            "sockstat_tcp_inuse": 2 * there + 40,
            "sockstat_tcp_tw": 3,
            "sockstat_tcp_mem_bytes": 4096 * requests,
            "listen_drops": 0 if second < ramp_s + 22 or not bad else 17,
        }
        yield row


def write(path: Path, rows: Iterator[dict[str, object]] | list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def summary_of(connections: int = 100_000, **changes: Any) -> dict[str, Any]:
    return {
        "target_connections": connections,
        "peak_connections": connections,
        "min_connections_in_hold": connections,
        "ramp_seconds": 55.2,
        "hold_seconds": 60.0,
        "requests": 178_321,
        "failures": 0,
        "reconnects": 0,
        "offered_rps": connections / 50,
        "hold_rps": connections / 50 * 0.998,
        "hold_mib_per_second": connections / 50 * 5_800 / (1 << 20),
        "latency_ms": {"p50": 11.2, "p90": 42.0, "p99": 141.3, "p999": 300.0, "max": 823.4},
        "server": {"processes": 7, "pss_peak_bytes": 100_400_000},
        "client": {"processes": 8, "pss_peak_bytes": 1_000_400_000},
        "machine": {"cpu_count": 2},
        "verdict": "pass",
    } | changes


def assert_pictures(paths: list[Path], folder: Path) -> None:
    assert [path.name for path in paths] == NAMES
    for path in paths:
        data = (folder / path.name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", data[16:24]) == (1200, 675)
        assert len(data) <= 150_000, f"{path.name} has {len(data):,} bytes"


def test_a_run_becomes_five_pictures_of_readme_size(tmp_path: Path) -> None:
    samples = write(tmp_path / "samples.csv", seconds_of_a_run())
    assert_pictures(plots.draw(samples, tmp_path, summary_of()), tmp_path)


def test_half_an_hour_is_drawn_in_seconds(tmp_path: Path) -> None:
    samples = write(tmp_path / "samples.csv", seconds_of_a_run(400_000, ramp_s=104, hold_s=1_690, stop_s=6))
    started = time.process_time()
    paths = plots.draw(samples, tmp_path, summary_of(400_000, hold_seconds=1690.0))
    assert time.process_time() - started < 5
    assert_pictures(paths, tmp_path)


def test_a_run_that_failed_is_drawn_too(tmp_path: Path) -> None:
    samples = write(tmp_path / "samples.csv", seconds_of_a_run(bad=True))
    summary = summary_of(verdict="fail", min_connections_in_hold=95_000, failures=9_996)
    assert_pictures(plots.draw(samples, tmp_path, summary), tmp_path)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_run_of_a_few_seconds_without_a_hold_is_drawn(tmp_path: Path, rows: int) -> None:
    samples = write(tmp_path / "samples.csv", list(seconds_of_a_run())[:rows])
    summary = summary_of(min_connections_in_hold=None, latency_ms=None, hold_rps=None, hold_seconds=0)
    assert_pictures(plots.draw(samples, tmp_path, summary), tmp_path)


def test_empty_cells_and_an_empty_summary_are_drawn(tmp_path: Path) -> None:
    rows = list(seconds_of_a_run())[40:70]
    for number, row in enumerate(rows):
        for column in COLUMNS[3:]:
            if number % 3 == 0 or column.startswith(("server", "latency")):
                row[column] = ""
    samples = write(tmp_path / "samples.csv", rows)
    assert_pictures(plots.draw(samples, tmp_path, {}), tmp_path)


def test_nothing_but_times_is_drawn_as_not_measured(tmp_path: Path) -> None:
    rows = [{"time_s": str(second), "phase": "ramp"} for second in range(5)]
    samples = write(tmp_path / "samples.csv", rows)
    assert_pictures(plots.draw(samples, tmp_path, {}), tmp_path)


def test_a_row_that_was_cut_off_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    samples = write(tmp_path / "samples.csv", list(seconds_of_a_run())[:9])
    text = samples.read_text()
    samples.write_text(text[: text.rindex("ramp") + 9])
    assert_pictures(plots.draw(samples, tmp_path, summary_of()), tmp_path)


def test_no_second_means_no_picture(tmp_path: Path) -> None:
    samples = write(tmp_path / "samples.csv", [])
    assert plots.draw(samples, tmp_path, summary_of()) == []


def test_global_settings_of_matplotlib_stay_as_they_were(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    plots.draw(write(tmp_path / "samples.csv", seconds_of_a_run()), tmp_path, summary_of())
    assert dict(mpl.rcParams) == before


def _titles(
    tmp_path: Path, summary: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, rows: int | None = None
) -> list[str]:
    """The first text of each picture."""
    titles = []

    def remember(figure: Figure, path: Path) -> None:
        titles.append(figure.texts[0].get_text())

    monkeypatch.setattr(plots, "_save", remember)
    samples = write(tmp_path / "samples.csv", list(seconds_of_a_run())[:rows])
    plots.draw(samples, tmp_path, summary)
    return titles


def test_titles_are_the_result_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = _titles(tmp_path, summary_of(), monkeypatch)
    assert titles[0] == "100,000 connections held for 60 s, opened in 55 s"
    assert titles[1] == "1,996 requests/s answered of 2,000 offered, 11.1 MiB/s received"
    assert "99 % within 141 ms" in titles[2]
    assert "of 2 cores busy in the hold: server 0.2" in titles[3]
    assert "server 96 MiB, client 954 MiB, kernel" in titles[4]


def test_titles_of_streams_tell_of_their_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = {"events_per_s": 13_335.3, "delivery_ms": {"p50": 6_115.3, "p99": 12_410.9, "max": 12_828.7}}
    unasked = dict.fromkeys(("p50", "p90", "p99", "p999", "max"))
    titles = _titles(tmp_path, summary_of(heard=heard, latency_ms=unasked, offered_rps=None), monkeypatch)
    assert titles[1] == "13,335 events/s arrived, 11.1 MiB/s received"
    assert (
        titles[2]
        == "In the hold half of the events came within 6,115 ms, 99 % within 12,411 ms, the last in 12,829 ms"
    )


def test_titles_of_a_failed_run_say_so_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = summary_of(verdict="fail", min_connections_in_hold=95_000)
    titles = _titles(tmp_path, summary, monkeypatch)
    assert all(title.startswith("FAILED: ") for title in titles)
    assert (
        titles[0] == "FAILED: 100,000 of 100,000 connections at the peak, 95,000 at the least during the hold"
    )


def test_titles_of_a_run_without_a_hold_claim_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = summary_of(
        peak_connections=17_000, min_connections_in_hold=None, latency_ms=None, hold_rps=None
    )
    titles = _titles(tmp_path, summary, monkeypatch, rows=10)
    assert titles[0] == "17,000 of 100,000 connections were open at the peak; there was no hold"
    assert titles[1].endswith("requests/s answered at the end; there was no hold")
    assert not any("in the hold" in title for title in titles)


def test_names_that_would_overlap_are_moved_apart_and_stay_inside() -> None:
    placed = plots._apart([0.2, 0.21, 0.99, 1.0], 0.1)
    assert placed == pytest.approx([0.2, 0.3, 0.9, 1.0])
    assert np.diff(plots._apart([0.98, 0.99, 1.0], 0.05)).min() == pytest.approx(0.05)
