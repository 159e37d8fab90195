"""The verification: a real run passes, and no tampered copy of it does."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parked.loadtest.report import report, verify, witnesses
from parked.loadtest.report.record import Record
from parked.loadtest.report.summary import summarise
from parked.loadtest.terms.histogram import merge, new_histogram
from tests.loadtest.runs import IS_SDIST, PROJECT, STARTED_UNIX_S, a_real_run, write_run

pytestmark = pytest.mark.usefixtures("no_pictures")

Rows = list[dict[str, str]]


#: Of this version, and of the ones before it; none in a source distribution.
REFERENCES = sorted(
    folder for kept in ("reference", "before-1.0") for folder in (PROJECT / "results" / kept).glob("*")
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(a_real_run(), tmp_path / "run"))


@pytest.fixture(params=["a run of now", "a committed run"])
def any_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run of the present code, or the first of those that came with it."""
    if request.param != "a run of now" and IS_SDIST:
        pytest.skip("no run came with a source distribution")
    folder = a_real_run() if request.param == "a run of now" else REFERENCES[0]
    return Path(shutil.copytree(folder, tmp_path / "run"))


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


#: The same in what older runs do not have.
TOLD: dict[str, Callable[[Path], object]] = {
    "an answer that the server never gave": lambda run: change_rows(
        run, lambda rows: rows[-1].update(server_requests_total=str(int(rows[-1]["requests_total"]) - 1))
    ),
    "a server that lags in the hold": lambda run: change_rows(
        run, lambda rows: in_hold(rows)[-1].update(server_requests_total="1000")
    ),
    "connections that the server does not have": lambda run: change_rows(
        run, lambda rows: in_hold(rows)[5].update(server_connections="990")
    ),
    "a length less": lambda run: change_json(
        run / "run.json", lambda it: it["hold_lengths"][3][5].__setitem__(1, it["hold_lengths"][3][5][1] - 1)
    ),
    "longer think times": lambda run: change_json(
        run / "run.json", lambda it: it["hold_thinks_s"].__setitem__(0, it["hold_thinks_s"][0] * 1.1)
    ),
    "a worker that held more": lambda run: change_json(
        run / "run.json", lambda it: it["workers"][0].update(connections_at_hold=1001)
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


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_the_committed_runs_are_true(folder: Path) -> None:
    assert verify.verify(folder).disagreements == []


@pytest.mark.parametrize("change", SHOWN)
def test_a_changed_summary_is_found(any_run: Path, change: str) -> None:
    change_json(any_run / "summary.json", SHOWN[change])
    found = verify.verify(any_run).disagreements
    assert found
    assert all("summary.json says" in text for text in found)


@pytest.mark.parametrize("change", RECORDED)
def test_a_changed_record_is_found_and_can_not_pass(any_run: Path, change: str) -> None:
    can_not_pass(any_run, RECORDED[change])


@pytest.mark.parametrize("change", TOLD)
def test_what_the_server_or_the_workload_says_otherwise_is_found(tmp_path: Path, change: str) -> None:
    run = write_run(tmp_path)
    report.make(run)
    assert verify.main([str(run)]) == 0
    can_not_pass(run, TOLD[change])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[-1].update(server_requests_total=str(int(rows[-1]["requests_sent_total"]) + 1)),
         "the server answered 1 more requests than the clients sent"),
        (lambda rows: in_hold(rows)[5].update(server_connections="1010"),
         "up to 9 connections that are not of this run"),
    ],
)  # fmt: skip
def test_what_others_ask_of_the_server_is_told_and_fails_nothing(
    tmp_path: Path, change: Callable[[Rows], object], told: str
) -> None:
    run = write_run(tmp_path)
    change_rows(run, change)
    summary = report.make(run)
    assert (summary["verdict"], len(summary["remarks"])) == ("pass", 1)
    assert told in summary["remarks"][0]
    assert told in " ".join(report.lines(summary, run))
    assert told[1:] in (run / "index.html").read_text()  # a sentence there


@pytest.mark.parametrize(("lag_ms", "agrees"), [("2.5", False), ("2000", True)])
def test_a_server_whose_event_loop_was_late_may_be_behind_by_as_much(
    tmp_path: Path, lag_ms: str, agrees: bool
) -> None:
    def behind(rows: Rows) -> None:
        *_, last = before = in_hold(rows)[:-5]
        for row in in_hold(rows)[len(before) :]:
            row.update(
                server_requests_total=last["server_requests_total"],
                server_sent_bytes_total=last["server_sent_bytes_total"],
                server_loop_lag_max_ms=lag_ms,
            )

    run = write_run(tmp_path, hold_s=12)
    change_rows(run, behind)
    report.make(run)
    assert (witnesses.hear(Record.read(run)).disagreements == []) is agrees


def can_not_pass(run: Path, change: Callable[[Path], object]) -> None:
    change(run)
    assert verify.main([str(run)]) == 1
    summary = summarise(Record.read(run))
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


def kill(run: Path, *, sockets: int, heard: float = 5.4, noticed: float = 8.5) -> None:
    """Half of the connections' worker is killed 5.5 s after the start of a made-up run; the kernel has only
    so many sockets in the rows until that is noticed."""
    lost = {"worker": 1, "lost": True, "pid": 7, "source": "", "connections": 500}
    lost |= {
        "connections_at_hold": 0,
        "heard_unix_s": STARTED_UNIX_S + heard,
        "lost_unix_s": STARTED_UNIX_S + noticed,
    }

    def change(facts: dict[str, Any]) -> None:
        facts["workers"].append(dict.fromkeys(facts["workers"][0], 0) | lost)

    def gone(rows: Rows) -> None:
        for row in rows:
            if heard < float(row["time_s"]) < noticed:
                row.update(sockstat_tcp_inuse=str(sockets), server_connections="500")

    change_json(run / "run.json", change)
    change_rows(run, gone)


def test_connections_of_a_killed_worker_are_told_until_its_end_was_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    kill(run, sockets=1003)
    report.make(run)
    assert verify.main([str(run)]) == 0
    told = capsys.readouterr().out
    assert "known: 500 connections of worker 1, pid 7, count as open from its last sample at 5.4 s" in told
    assert "until its end was noticed at 8.5 s" in told


@pytest.mark.parametrize("changes", [{"sockets": 900}, {"sockets": 1003, "noticed": 8.5, "heard": 6.5}])
def test_more_that_is_missing_than_a_killed_worker_had_is_a_disagreement(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = write_run(tmp_path)
    kill(run, **changes)
    if "heard" in changes:  # a second before it could be the killed worker
        change_rows(run, lambda rows: rows[5].update(sockstat_tcp_inuse="1003"))
    found = witnesses.hear(Record.read(run)).disagreements
    assert any("the kernel saw" in text for text in found)


def test_a_worker_that_was_killed_may_have_told_locust_less(run: Path) -> None:
    stats = run / "locust_stats.csv"
    count = json.loads((run / "run.json").read_text())["totals"]["requests"]
    stats.write_text(stats.read_text().replace(f",{count},", f",{count - 300},"))
    assert verify.main([str(run)]) == 1
    change_json(run / "run.json", lambda it: it["workers"][0].update(lost=True))
    report.make(run)  # requests by name come from Locust's file
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
