"""The verification: a real run passes, and no tampered copy of it does."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadtest import report, verify
from loadtest.histogram import merge, new_histogram
from tests.loadtest.runs import a_real_run, write_run

Rows = list[dict[str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(a_real_run(), tmp_path / "run"))


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_rows(run: Path, change: Callable[[Rows], object]) -> None:
    with (run / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0])
    change(rows)
    with (run / "samples.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def in_hold(rows: Rows) -> Rows:
    return [row for row in rows if row["phase"] == "hold"]


def faster(facts: dict[str, Any]) -> None:
    """As many latencies, all of a tenth."""
    old, new = new_histogram(), new_histogram()
    merge(old, facts["hold_latencies"].encode())
    for item in old.get_recorded_iterator():
        new.record_value(max(1, item.value_iterated_to // 10), item.count_at_value_iterated_to)
    facts["hold_latencies"] = new.encode().decode()


def all_bytes_in_mib(rows: Rows) -> None:
    for row in rows:
        row["received_bytes"] = str(int(row["received_bytes"]) // 1024**2)


#: Changes of one figure where it is shown: in summary.json.
SHOWN: dict[str, Callable[[dict[str, Any]], object]] = {
    "a request more": lambda it: it.update(requests=it["requests"] + 1),
    "a better percentile": lambda it: it["latency_ms"].update(p99=it["latency_ms"]["p99"] - 0.001),
    "MB for MiB": lambda it: it.update(hold_mib_per_second=round(it["hold_mib_per_second"] * 1.048576, 2)),
    "kilobytes for bytes": lambda it: it["server"].update(
        pss_peak_bytes=it["server"]["pss_peak_bytes"] // 1024
    ),
    "another machine": lambda it: it["machine"].update(cpu_count=64),
    "a figure less": lambda it: it.pop("reconnects"),
    "a figure of our own": lambda it: it.update(stars=5),
    "true for 1": lambda it: it.update(failures=False),
}
#: Changes in what it is made of. The summary is made anew afterwards, as a careful forger would.
RECORDED: dict[str, Callable[[Path], object]] = {
    "a total in run.json": lambda run: change_json(
        run / "run.json", lambda it: it["totals"].update(requests=it["totals"]["requests"] + 1)
    ),
    "one worker's requests": lambda run: change_json(
        run / "run.json", lambda it: it["workers"][0].update(requests=it["workers"][0]["requests"] - 1)
    ),
    "a shorter hold": lambda run: change_json(
        run / "run.json", lambda it: it.update(hold_s=it["hold_s"] - 1)
    ),
    "a higher peak": lambda run: change_json(run / "run.json", lambda it: it.update(peak_connections=1001)),
    "less CPU": lambda run: change_json(run / "run.json", lambda it: it["hold_cpu_s"].update(client=-2.0)),
    "faster answers": lambda run: change_json(run / "run.json", faster),
    "a hidden dip": lambda run: change_rows(run, lambda rows: in_hold(rows)[2].update(connections_min="998")),
    "a dropped row": lambda run: change_rows(run, lambda rows: rows.remove(in_hold(rows)[1])),
    "two rows swapped": lambda run: change_rows(run, lambda rows: rows.insert(3, rows.pop(4))),
    "requests of a second": lambda run: change_rows(run, lambda rows: rows[3].update(requests="1")),
    "another unit": lambda run: change_rows(run, all_bytes_in_mib),
    "fewer sockets": lambda run: change_rows(
        run, lambda rows: in_hold(rows)[0].update(sockstat_tcp_inuse="1900")
    ),
    "a line of the log": lambda run: (run / "logfile").write_text(
        (run / "logfile").read_text().replace("concurrency: 1000", "concurrency: 2000", 1)
    ),
    "Locust's count": lambda run: (run / "locust_stats.csv").write_text(
        (run / "locust_stats.csv").read_text().replace("Aggregated,", "Aggregated,1")
    ),
}


def test_a_real_run_is_true_and_all_witnesses_were_heard(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(run)]) == 0
    told = capsys.readouterr().out
    assert "all agree" in told
    assert "not there to be asked" not in told
    assert verify.verify(run).compared > 100


@pytest.mark.parametrize("change", SHOWN)
def test_a_changed_summary_is_found(run: Path, change: str) -> None:
    change_json(run / "summary.json", SHOWN[change])
    found = verify.verify(run).disagreements
    assert found
    assert all("summary.json says" in text for text in found)


@pytest.mark.parametrize("change", RECORDED)
def test_a_changed_record_is_found_and_can_not_pass(run: Path, change: str) -> None:
    RECORDED[change](run)
    assert verify.main([str(run)]) == 1
    summary = report.summarise(report.Record.read(run))
    assert summary["verdict"] == "fail"
    assert any("witnesses disagree" in reason for reason in summary["reasons"])
    (run / "summary.json").write_text(json.dumps(summary))
    assert verify.main([str(run)]) == 1


def test_a_forged_verdict_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, dip=1)
    report.make(run)
    assert verify.main([str(run)]) == 0  # a failed run can be true
    change_json(run / "summary.json", lambda it: it.update(verdict="pass", reasons=[]))
    assert verify.main([str(run)]) == 1
    assert "verdict: summary.json says pass, recomputed is fail" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "", new_histogram().encode().decode()])
def test_a_histogram_file_that_is_missing_or_another_is_found(run: Path, content: str | None) -> None:
    file = run / "latencies.hdr"
    file.unlink() if content is None else file.write_text(content)
    assert any("latencies.hdr" in text for text in verify.verify(run).disagreements)


def test_a_run_whose_master_was_killed_is_judged_by_what_it_had_stated(run: Path) -> None:
    """run.json is written every few seconds: rows may have come since, and the log's last without its row."""
    change_json(run / "run.json", lambda it: it.update(ended=False))
    with (run / "samples.csv").open("a") as file:
        file.write("99.9,1795398")
    with (run / "logfile").open("a") as file:
        file.write("time 99s, concurrency: 1\n")
    assert verify.main([str(run)]) == 0


def test_a_worker_that_was_killed_may_have_told_locust_less(run: Path) -> None:
    stats = run / "locust_stats.csv"
    count = json.loads((run / "run.json").read_text())["totals"]["requests"]
    stats.write_text(stats.read_text().replace(f",{count},", f",{count - 300},"))
    assert verify.main([str(run)]) == 1
    change_json(run / "run.json", lambda it: it["workers"][0].update(lost=True))
    assert verify.main([str(run)]) == 0


def test_several_folders_are_judged_each_and_one_without_a_run_is_exit_code_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(run), str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "all agree" in told.out
    assert told.err.count("\n") == 1
    (run / "summary.json").unlink()
    assert verify.main([str(run)]) == 2
