from __future__ import annotations

import json
from pathlib import Path

import pytest

from parked.loadtest.report import report
from tests.loadtest.runs import write_run

pytestmark = pytest.mark.usefixtures("no_pictures")

STATS = """Type,Name,Request Count,Failure Count,50%,90%,99%,100%
GET,/orders/N,90,3,5,9,22,31.5
POST,sign in,10,0,7,7,7,7
,Aggregated,100,3,5,9,22,31.5
"""
FAILURES = """Method,Name,Error,Occurrences
GET,/orders/N,"CatchResponseError('<b>sold out</b>')",3
"""
EXCEPTIONS = """Count,Message,Traceback,Nodes
12,"'KeepAliveSession' object has no attribute 'gett'","Traceback
  line",local
"""


def test_requests_have_names_failures_their_texts_and_exceptions_of_tasks_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path, failures={"other": 3}, sockets=2003)
    (run / "locust_stats.csv").write_text(STATS)
    (run / "locust_failures.csv").write_text(FAILURES)
    (run / "locust_exceptions.csv").write_text(EXCEPTIONS)
    summary = report.make(run)
    assert [row["name"] for row in summary["requests_by_name"]] == ["/orders/N", "sign in"]
    assert summary["requests_by_name"][0]["latency_ms"] == {"p50": 5, "p90": 9, "p99": 22, "max": 31.5}
    told = "; ".join(summary["reasons"])
    assert "3 times GET /orders/N: CatchResponseError('<b>sold out</b>')" in told
    assert "12 exceptions in tasks, 12 times 'KeepAliveSession' object has no attribute 'gett'" in told
    page = (run / "index.html").read_text()
    for heading in ("Requests by name", "Failures by text", "Exceptions in tasks"):
        assert heading in page
    assert "<b>sold out" not in page


def test_what_a_failure_or_a_figure_says_ends_neither_its_row_nor_the_report(tmp_path: Path) -> None:
    run = write_run(tmp_path, failures={"other": 6})
    (run / "locust_stats.csv").write_text(
        "Type,Name,Request Count,Failure Count,50%,90%,99%,100%\nGET,Aggregated,90,6,nan,inf,-1e400,3\n"
        ",Aggregated,nan,6,1,1,1,1\n"
    )
    body = "<p>" + 50_000 * "all of it "
    (run / "locust_failures.csv").write_text(
        f"Method,Name,Error,Occurrences\nGET,/,{body},3\nGET,/,a\u2028b\x0bc,2\nGET,/late,'\0',1\n"
    )
    summary = report.make(run)
    assert [row["count"] for row in summary["failures_by_text"]] == [3, 2, 1]
    (named,) = summary["requests_by_name"]
    assert named["latency_ms"] == {"p50": None, "p90": None, "p99": None, "max": 3}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((run / "summary.json").read_text(), parse_constant=refuse)


def test_files_that_are_cut_off_or_not_there_are_no_statistics(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "locust_stats.csv").write_text(STATS[:100])
    (run / "locust_failures.csv").write_text("Method\nGET\n")
    summary = report.make(run)
    assert summary["failures_by_text"] == summary["task_exceptions"] == []
    assert summary["verdict"] == "pass"
