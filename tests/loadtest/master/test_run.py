"""What a run writes, fed with samples as workers send them."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from locust import User
from locust.runners import STATE_RUNNING

from parked.loadtest.master import run
from parked.loadtest.master.folder import Folder
from parked.loadtest.report import summary, witnesses
from parked.loadtest.report.record import Record
from parked.loadtest.terms.distribution import Distribution
from parked.user import KeepAliveUser
from tests.loadtest.scene import Scene, sample

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    scene = Scene(tmp_path / "run", monkeypatch)
    yield scene
    scene.run.end()


def test_the_hold_begins_when_all_are_established_and_ends_after_its_time(scene: Scene) -> None:
    scene.second(connections=4, requests=1)
    scene.second(requests=10)
    assert scene.run.over == ""
    scene.runner.state = STATE_RUNNING
    scene.second(requests=20)
    for second in range(1, 4):
        assert scene.run.over == ""
        scene.second(requests=20 + 7 * second)
    assert "held for 3 s" in scene.run.over
    scene.run.stopping()
    scene.second(connections=0, requests=42)
    scene.run.end()
    assert [row["phase"] for row in scene.rows()] == ["ramp"] * 3 + ["hold"] * 3 + ["stop"]
    stop = scene.rows()[-1]
    assert (stop["requests"], stop["latency_p99_ms"]) == ("1", "")  # amid all that is being closed
    assert "p50" not in (scene.folder / "logfile").read_text().splitlines()[-1]
    facts = scene.facts()
    assert (facts["hold_s"], facts["hold"]["requests"]) == (3, 21)
    assert facts["min_connections_in_hold"] == 10
    assert facts["totals"]["requests"] == 42
    assert facts["notes"] == []
    assert (facts["rows"], facts["ended"]) == (7, True)


def test_a_row_has_the_seconds_figures_and_the_log_the_originals_line(scene: Scene) -> None:
    scene.second(requests=5, received_bytes=1024 * 1024)
    scene.second(requests=12, received_bytes=3 * 1024 * 1024, failures=2)
    row = scene.rows()[1]
    assert (row["requests"], row["requests_total"], row["failures"]) == ("7", "12", "2")
    assert row["received_bytes"] == str(2 * 1024 * 1024)
    assert float(row["latency_p50_ms"]) == pytest.approx(2, rel=0.01)
    assert int(row["memory_available_bytes"]) > 0
    last = (scene.folder / "logfile").read_text().splitlines()[-1]
    assert last.startswith(
        "time 2s, concurrency: 10, total requests: 12, throughput: 1.50M/s, 6.00 requests/seconds | ramp 100%"
    )


def test_a_dip_between_two_samples_shows_in_the_minimum(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    scene.second()
    scene.second(connections_min=9, reconnects=1)
    scene.run.end()
    assert scene.facts()["min_connections_in_hold"] == 9


def test_a_run_that_is_asked_for_more_ramps_again_and_its_hold_counts_from_then(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    for second in range(1, 4):
        scene.second(requests=10 * second)
    scene.runner.target_user_count = 20
    scene.second(requests=40, connections_min=10)
    assert scene.run.row["connections_wanted"] == 20
    for second in range(1, 5):
        scene.second(requests=40 + 7 * second, connections=20, connections_min=20, opened=20)
    assert "held for 3 s" in scene.run.over
    scene.run.stopping()
    scene.second(requests=70, connections=0, connections_min=0, opened=20)
    scene.run.end()
    assert [row["phase"] for row in scene.rows()] == [
        "ramp",
        *["hold"] * 2,
        *["ramp"] * 2,
        *["hold"] * 3,
        "stop",
    ]
    facts = scene.facts()
    assert (facts["hold_s"], facts["min_connections_in_hold"], facts["hold"]["requests"]) == (3, 20, 21)
    assert facts["changes"] == [{"time_s": 4, "connections": 20, "think_s": [10, 90]}]
    record = Record.read(scene.folder)
    assert [row["connections"] for row in record.hold()] == ["20"] * 3
    before = record.before_hold()
    assert before is not None
    assert before["time_s"] == "5.0"
    assert not [text for text in witnesses.hear(record).disagreements if "order" in text]
    facts["changes"] = []
    (scene.folder / "run.json").write_text(json.dumps(facts))
    assert "samples.csv: phases not in order" in witnesses.hear(Record.read(scene.folder)).disagreements


def test_who_quits_while_the_last_row_is_made_waits_for_the_facts(scene: Scene) -> None:
    scene.second()
    server: Any = SimpleNamespace(stop=lambda: None, settle=lambda _: gevent.sleep(0.05), gc_pause_s=None)
    scene.run._server = server
    scene.run.second = lambda: None  # type: ignore[method-assign]
    stopping = gevent.spawn(scene.run.end)
    gevent.sleep(0)
    scene.run.end()
    assert scene.facts()["ended"] is True
    stopping.join()


def test_a_run_that_is_asked_for_fewer_holds_those(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    scene.second()
    scene.runner.target_user_count = 4
    scene.second(users=4, connections=4, connections_min=4)
    scene.second(users=4, connections=4, connections_min=4)
    assert [row["phase"] for row in scene.rows()] == ["ramp", "ramp", "hold"]
    assert scene.run.offered_per_s == 4 / 50
    scene.runner.target_user_count = 0
    for _ in range(run.STALLED_S + 2):
        scene.second(connections=0)
    assert scene.run.over == ""  # none is what was asked for


def test_a_hold_of_fewer_begins_when_the_others_are_gone(scene: Scene) -> None:
    """Locust may be done with them before a sample says so."""
    scene.runner.state = STATE_RUNNING
    scene.second(users=10)
    scene.runner.target_user_count = 4
    scene.second(users=10)
    scene.second(users=4, connections=4, connections_min=4)
    scene.second(users=4, connections=4, connections_min=4)
    assert [row["phase"] for row in scene.rows()] == ["ramp", "ramp", "ramp", "hold"]


def test_a_hold_begins_when_all_have_the_think_time_that_is_asked_for(scene: Scene) -> None:
    """Who sleeps wakes after what was drawn of the one before, 90 s at most."""
    scene.runner.state = STATE_RUNNING
    scene.second()
    scene.second()
    thinks = {"think_time": (1.0, 2.0)}
    scene.environment.user_classes = [type("Other", (KeepAliveUser,), thinks)]
    for _ in range(92):
        scene.second()
    phases = [row["phase"] for row in scene.rows()]
    assert phases == ["ramp", "hold", *["ramp"] * 91, "hold"]
    assert scene.run.over == "", "that is no ramp that has stalled"


def test_a_ramp_that_makes_no_progress_is_given_up(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    for _ in range(run.STALLED_S + 2):
        scene.second(connections=7)
    assert "stalled" in scene.run.over
    scene.run.end()
    assert "the ramp stalled at 7 of 10 connections" in scene.facts()["notes"]


def test_a_run_in_which_every_request_fails_is_ended_early(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    for second in range(12):
        scene.second(connections=7, requests=5 * second, failures=5 * second)
    assert "every request fails" in scene.run.over
    scene.run.end()
    assert "ended early: all 55 requests until then have failed" in scene.facts()["notes"]


@pytest.mark.parametrize("good", [{"requests": 100, "failures": 99}, {"others": 1}, {"elsewhere": 1}])
def test_one_good_request_gives_a_run_hope(scene: Scene, good: dict[str, int]) -> None:
    scene.runner.state = STATE_RUNNING
    for _ in range(15):
        scene.second(**{"connections": 7, "requests": 99, "failures": 99} | good)
    assert scene.run.over == ""


def test_what_is_open_at_the_end_of_the_hold_is_kept_and_is_in_each_row(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    ages = Distribution()
    ages.add([0.5, 7.0])
    scene.second()
    for second in range(3):
        scene.second(requests=second, open_s=ages.as_list())
    scene.run.stopping()
    scene.second(requests=9)
    scene.run.end()
    assert Record.read(scene.folder).open_s.most == 7.0
    assert [row["requests_open"] for row in scene.rows()] == ["0", "2", "2", "2", "0"]
    assert scene.rows()[2]["open_oldest_ms"] == "7000.0"


def test_a_worker_that_is_not_heard_at_the_end_of_the_hold_fails_the_run(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    scene.fleet.take("stuck", sample(connections=5))
    for _ in range(12):
        scene.second(connections=5, connections_min=5)
    scene.run.stopping()
    scene.run.end()
    (note,) = scene.facts()["notes"]
    assert re.fullmatch(r"Locust worker pid \d+ was stuck: .* its 5 connections in the last 12 s", note)


def test_a_run_without_a_hold_never_ends_before_locust_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path / "run", monkeypatch, hold=None)
    scene.runner.state = STATE_RUNNING
    for _ in range(2 * run.STALLED_S):
        scene.second(connections=7)
    assert scene.run.over == ""
    scene.run.end()


def test_users_of_other_classes_and_users_that_ended_themselves_are_not_waited_for(scene: Scene) -> None:
    class Stock(User):
        pass

    scene.environment.user_classes = [KeepAliveUser, Stock]
    scene.runner.target_user_classes_count = {"KeepAliveUser": 6, "Stock": 4}
    scene.second(connections=3, users=3)
    scene.runner.state = STATE_RUNNING
    for _ in range(int(run.SETTLED_S) + 1):  # one is not there, nobody knows why
        scene.second(connections=5, connections_min=5, users=5)
    assert scene.run.row["connections_wanted"] == 6
    scene.second(connections=5, connections_min=5, users=5, users_ended=1)  # by StopUser
    assert scene.run.row["connections_wanted"] == 5
    for _ in range(3):
        scene.second(connections=5, connections_min=5, users=5)
    assert "held for 3 s" in scene.run.over
    scene.run.end()
    assert scene.facts()["target_connections"] == 5
    assert scene.facts()["users_ended_themselves"] == 1


def test_the_facts_know_of_all_connections_as_soon_as_these_are_held(scene: Scene) -> None:
    scene.second(connections=3)
    scene.second(connections=5)
    assert scene.facts()["peak_connections"] == 3, "they are written every few seconds"
    scene.runner.state = STATE_RUNNING
    scene.second(connections=10)
    assert (scene.facts()["peak_connections"], scene.facts()["rows"]) == (10, 3)


def test_a_run_whose_users_have_all_ended_themselves_ends(scene: Scene) -> None:
    scene.second(connections=3, users=3)
    scene.runner.state = STATE_RUNNING
    for _ in range(int(run.SETTLED_S)):
        scene.second(connections=0, connections_min=0, users=0, users_ended=10)
        assert scene.run.over == ""
    scene.second(connections=0, connections_min=0, users=0, users_ended=10)
    assert scene.run.over == "all users have ended themselves, ending the test"
    scene.run.stopping()
    scene.run.end()
    made = summary.summarise(Record.read(scene.folder))
    assert made["reasons"][0] == "no user was left before there was a hold"
    assert made["notes"] == []


def test_users_of_a_worker_that_was_lost_are_still_wanted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.runner.state = STATE_RUNNING
    scene.fleet.take("lost", sample(users=6, connections=6))
    scene.second(users=4, connections=4, connections_min=4)
    monkeypatch.setattr("parked.loadtest.master.fleet._may_be_alive", lambda worker, silent_s: False)
    for _ in range(int(run.SETTLED_S) + 5):
        scene.second(users=4, connections=4, connections_min=4)
    assert (scene.run.row["connections_wanted"], scene.run.row["connections"]) == (10, 4)


def test_a_worker_that_ended_is_named_and_its_counts_stay(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.runner.state = STATE_RUNNING
    scene.second(requests=30)
    monkeypatch.setattr("parked.loadtest.master.fleet.time.monotonic", lambda: scene.now + 10)
    monkeypatch.setattr("parked.loadtest.master.fleet._may_be_alive", lambda worker, silent_s: False)
    scene.now += 1
    scene.run.second()
    row = scene.rows()[-1]
    assert (row["connections"], row["requests_total"]) == ("0", "30")
    scene.run.end()
    assert f"Locust worker pid {os.getpid()} ended" in scene.facts()["notes"][0]


def test_a_full_disk_is_noted_once_and_the_run_goes_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.second()
    scene.run.cannot_write(OSError(errno.ENOSPC, "No space left on device"))
    scene.run.cannot_write(OSError(errno.ENOSPC, "No space left on device"))
    scene.second(requests=99)
    assert len(scene.rows()) == 1
    scene.run.end()
    facts = scene.facts()
    assert len([note for note in facts["notes"] if "No space left" in note]) == 1
    assert facts["totals"]["requests"] == 99


def test_a_last_row_that_cannot_be_written_keeps_no_facts_from_being_written(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.second()
    scene.fleet.take("local", sample(requests=99))

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Folder, "write_row", refuse)
    scene.run.end()
    facts = scene.facts()
    assert (facts["ended"], facts["totals"]["requests"]) == (True, 99)
    assert len([note for note in facts["notes"] if "No space left" in note]) == 1


def test_a_rate_is_over_the_time_in_which_its_counts_were_made(scene: Scene) -> None:
    """Samples and rows come once a second each: here the last row has no new sample."""
    scene.runner.state = STATE_RUNNING
    scene.second(requests=20, unix_time_s=500.9)
    scene.second(requests=30, unix_time_s=501.9)
    scene.second(requests=40, unix_time_s=502.9)
    scene.now += 1
    scene.run.second()
    scene.run.end()
    facts = scene.facts()
    assert (facts["hold_s"], facts["hold"]["requests"]) == (3, 20)
    assert facts["hold_counted_s"] == pytest.approx(2)
    assert [row["counted_unix_s"] for row in scene.rows()] == ["500.9", "501.9", "502.9", "502.9"]
    assert summary.summarise(Record.read(scene.folder))["hold_rps"] == pytest.approx(10)


def test_each_worker_keeps_its_longest_lag_of_the_run(scene: Scene) -> None:
    for lag_s in (0.001, 0.25, 0.002):
        scene.second(loop_lag_max_s=lag_s)
    scene.run.end()
    assert scene.facts()["workers"][0]["loop_lag_max_s"] == 0.25
    assert [row["loop_lag_max_ms"] for row in scene.rows()] == ["1.0", "250.0", "2.0"]


def test_facts_are_there_before_the_end(scene: Scene) -> None:
    for second in range(run.FACTS_S + 1):
        scene.second(requests=second)
    facts = scene.facts()
    assert facts["totals"]["requests"] >= run.FACTS_S - 1
    stated = scene.rows()[facts["rows"] - 1]
    assert (int(stated["requests_total"]), facts["ended"]) == (facts["totals"]["requests"], False)


def test_without_results_nothing_is_written_and_the_hold_still_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scene = Scene(tmp_path, monkeypatch, results="")
    scene.runner.state = STATE_RUNNING
    for _ in range(4):
        scene.second()
    assert "held for 3 s" in scene.run.over
    scene.run.end()
    assert list(tmp_path.iterdir()) == []


class OwnWait(KeepAliveUser):
    abstract = True

    def wait_time(self) -> float:
        return 1.0


class OwnThink(KeepAliveUser):
    abstract = True
    think_time = (1.0, 2.0)


@pytest.mark.parametrize(
    "asked", [{}, {"results": None}, {"hold": None}, {"hold": None, "results": None}], ids=repr
)
def test_only_who_asks_for_a_hold_or_results_is_told_that_the_ramp_was_not_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    scene = Scene(tmp_path, monkeypatch, **asked)
    scene.run.stopping()
    assert bool(scene.run._notes) == (len(asked) < 2)
    scene.run.end()


@pytest.mark.parametrize(
    ("classes", "think_s"),
    [
        ([KeepAliveUser], (10.0, 90.0)),
        ([OwnThink], (1.0, 2.0)),
        ([OwnWait], None),
        ([OwnThink, KeepAliveUser], None),
    ],
)
def test_the_offered_rate_is_known_only_where_all_users_think_alike(
    classes: list[type[KeepAliveUser]], think_s: tuple[float, float] | None
) -> None:
    environment: Any = SimpleNamespace(user_classes=classes)
    assert run._think_time_of(environment) == think_s
