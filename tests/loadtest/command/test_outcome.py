from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from parked.loadtest.command import outcome
from parked.loadtest.report import report
from parked.loadtest.terms import checkout
from tests.loadtest.runs import write_run

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_each_condition_is_a_test_for_a_build_server(tmp_path: Path) -> None:
    goals = ("hold_rps < 1", "latency_ms.p99 > 1")
    summary = report.make(write_run(tmp_path, reconnects=1), fail_if=goals)
    outcome.write_junit(tmp_path / "junit.xml", summary, goals)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    failed = {case.get("name"): case.find("failure") for case in suite}
    assert failed["hold_rps < 1"] is None
    assert "1 reconnects" in (failed["the run itself"].get("message") or "")  # type: ignore[union-attr]
    assert failed["latency_ms.p99 > 1"] is not None


def test_what_a_server_or_a_task_says_leaves_the_file_xml(tmp_path: Path) -> None:
    summary = report.make(write_run(tmp_path, notes=["\x1b[2J\x00 <failure> \ud800"], host="http://\x00"))
    outcome.write_junit(tmp_path / "junit.xml", summary, ())
    (failure,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("failure")
    assert "\\x1b[2J\\x00 <failure> \\ud800" in (failure.text or "")


def test_the_last_runs_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "results", lambda: tmp_path)
    folders = [write_run(tmp_path / name) for name in ("b", "a")]
    outcome.point_latest_to(folders[0])
    outcome.point_latest_to(folders[1])
    assert (tmp_path / "latest").resolve() == folders[1].resolve()
    assert [checkout.run_folder(word) for word in ("last", "previous", "b")] == [*folders[::-1], Path("b")]
    outcome.point_latest_to(tmp_path.parent)  # kept elsewhere
    assert (tmp_path / "latest").resolve() == folders[1].resolve()


def test_a_place_where_the_verdict_could_not_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    assert outcome.unwritable(tmp_path / "junit.xml") == ""
    assert outcome.unwritable(tmp_path) == "Is a directory"
    assert outcome.unwritable(tmp_path / "none" / "junit.xml") == "there is no such folder"
