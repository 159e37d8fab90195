"""What was heard, from a real run's folder to its figures, reasons and witnesses."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parked.loadtest.report import heard as heard_module
from parked.loadtest.report import report, verify
from parked.loadtest.report.comparison import Run, other_workloads
from tests.commands import free_port
from tests.loadtest.runs import NO_PICTURES, REAL_RUN_S, write_run

pytestmark = pytest.mark.usefixtures("no_pictures")

PROJECT = Path(__file__).resolve().parents[3]


@functools.cache
def real(workload: str) -> tuple[Path, str]:
    """The folder of a small real run of such users, and what it printed; made once."""
    folder = Path(tempfile.mkdtemp(prefix="waiting-of-the-tests-")) / workload
    atexit.register(shutil.rmtree, folder.parent)
    options = {"events": ("--path", "/events?every=1"), "longpoll": ("--think", "1:2")}[workload]
    command = [
        *(sys.executable, "-m", "loadtest", "--workload", workload, *options, "-c", "300", "--hold", "5s"),
        *("--results", str(folder), "--master-port", str(free_port())),
        *("--host", f"http://127.0.0.1:{free_port()}", "--start-server"),
    ]
    ended = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=REAL_RUN_S,
        env=os.environ | {"PYTHONPATH": NO_PICTURES},
        check=False,
    )
    assert ended.returncode in (0, 1), (
        ended.stdout
    )  # on a machine that is busy with other things it may be late
    return folder, ended.stdout


@pytest.mark.parametrize("workload", ["events", "longpoll"])
def test_a_real_run_tells_what_was_heard_and_its_witnesses_agree(workload: str) -> None:
    folder, said = real(workload)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["failures"], summary["reconnects"]) == (0, 0), summary["reasons"]
    assert summary["workload"]["kind"] == workload
    heard = summary["heard"]
    assert heard["deliveries"] >= 300
    assert 0 < heard["delivery_ms"]["p50"] <= heard["delivery_ms"]["max"]
    assert "sending to arrival" in said
    if workload == "events":
        assert heard["streams_least_in_hold"] == 300
        assert (heard["lost"], heard["repeated"], heard["disordered"], heard["unnumbered"]) == (0, 0, 0, 0)
        assert heard["broadcasts"]["number"] >= 1
        assert heard["broadcasts"]["incomplete"] == 0
        assert heard["broadcasts"]["first_to_last_max_s"] > 0
        assert "300 waiting" in said
    else:
        assert summary["offered_rps"] == 200
        assert summary["workload"]["executed"]["think_s"]["count"] > 100
    hearing = verify.verify(folder)
    assert hearing.disagreements == []
    assert "the server's own counters" not in hearing.absent


def _change(name: str) -> Callable[[dict[str, Any]], None]:
    def deliveries(heard: dict[str, Any]) -> None:
        heard["deliveries"] = json.loads((real("longpoll")[0] / "run.json").read_text())["heard"][
            "deliveries"
        ]

    def broadcasts(heard: dict[str, Any]) -> None:
        heard["broadcasts"][1][4] += 100_000

    def order(heard: dict[str, Any]) -> None:
        heard["broadcasts"][1][2:4] = heard["broadcasts"][1][3] + 1, heard["broadcasts"][1][2]

    def streams(heard: dict[str, Any]) -> None:
        heard["streams_min"] -= 1

    def lost(heard: dict[str, Any]) -> None:
        heard["totals"]["events_lost"] += 1

    def events(heard: dict[str, Any]) -> None:
        heard["hold"]["events"] -= 1

    changes: dict[str, Callable[[dict[str, Any]], None]] = {
        it.__name__: it for it in (deliveries, broadcasts, order, streams, lost, events)
    }
    return changes[name]


@pytest.mark.parametrize("name", ["deliveries", "broadcasts", "order", "streams", "lost", "events"])
def test_a_record_that_was_changed_is_found_out(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(real("events")[0], folder)
    facts = json.loads((folder / "run.json").read_text())
    _change(name)(facts["heard"])
    (folder / "run.json").write_text(json.dumps(facts))
    summary = report.make(folder)
    assert summary["verdict"] == "fail"
    assert any("witnesses disagree" in reason for reason in summary["reasons"])


@pytest.mark.parametrize(
    ("arrivals", "told"),
    [
        ([300, 300], None),
        ([300, 299], None),  # a reason of its own
        ([300, 100], None),  # under way at the end
        ([210, 210, 209], "2 of 2 events of the hold came to a part of the 300 streams, 210 at most"),
        ([300, 210, 200, 300], "2 of 4 events of the hold came to a part of the 300 streams, 210 at most"),
        ([], "no event came in the hold"),
    ],
)
def test_streams_that_hear_nothing_are_remarked_on(arrivals: list[int], told: str | None) -> None:
    """A worker that has lost its broker, say: nothing is missing between two numbers."""
    came = [[str(number), None, float(number), number + 0.5, some] for number, some in enumerate(arrivals)]
    record: Any = SimpleNamespace(facts={"heard": {"broadcasts": came, "streams_min": 300}})
    summary = {"heard": {"hold_events": sum(arrivals), "deliveries": 1, "broadcasts": {}}}
    found = heard_module.remarks(record, summary)
    assert [said.partition(":")[0] for said in found] == ([told] if told else [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lost": 2}, "2 events were lost"),
        ({"repeated": 3}, "3 events came twice"),
        ({"disordered": 1}, "1 events came behind later ones"),
        ({"streams_least_in_hold": 299}, "event streams fell to 299 of 300"),
        ({"broadcasts": {"incomplete": 1, "fewest_streams": 298}}, "did not come to all streams, one to 298"),
    ],
)
def test_what_was_not_heard_as_it_should_be_is_a_reason(change: dict[str, Any], reason: str) -> None:
    heard: dict[str, Any] = {
        **dict.fromkeys(("events", "lost", "repeated", "disordered"), 0),
        "streams_least_in_hold": 300,
        "broadcasts": {"incomplete": 0, "fewest_streams": 300},
    }
    summary = {"target_connections": 300, "heard": heard}
    assert heard_module.reasons(summary) == []
    (found,) = heard_module.reasons(summary | {"heard": heard | change})
    assert reason in found


def test_an_event_that_came_to_few_is_no_broadcast_and_the_last_may_be_under_way() -> None:
    whole = [["1", 1.0, 1.1, 1.5, 300], ["topic", 1.0, 1.2, 1.3, 20], ["2", 3.0, 3.1, 3.3, 300]]
    last = ["3", 5.0, 5.1, 5.2, 290]
    facts = {"streams_min": 300, "broadcasts": [*whole, last]}
    found = heard_module._broadcasts(facts)
    assert (found["number"], found["incomplete"]) == (2, 0)
    assert (found["first_to_last_max_s"], found["sent_to_last_max_s"]) == (0.4, 0.5)
    facts["broadcasts"] = [whole[0], ["9", 1.5, 1.6, 1.7, 299], whole[2]]
    assert heard_module._broadcasts(facts)["incomplete"] == 1


def test_runs_whose_users_do_other_things_are_not_compared(tmp_path: Path) -> None:
    runs = [
        Run.read("A", real("events")[0]),
        Run.read("B", real("longpoll")[0]),
        Run.read("C", write_run(tmp_path / "run")),
    ]
    assert len(other_workloads(runs)) == 2
    assert "events" in other_workloads(runs)[0]
    assert other_workloads([runs[0], runs[0]]) == []
    assert runs[0].figures["heard.broadcasts.first_to_last_max_s"] is not None


def test_the_page_shows_what_was_heard() -> None:
    page = (real("events")[0] / "index.html").read_text()
    for text in ("What was sent to those who wait", "From sending to arrival", "first to last client"):
        assert text in page
