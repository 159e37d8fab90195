"""What workers have heard, added up: seconds, and the broadcasts of a hold over all of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from locust.runners import STATE_RUNNING

from parked.loadtest.client.event_stream import Event
from parked.loadtest.client.heard import HeardByProcess
from parked.loadtest.master import heard as heard_module
from parked.loadtest.master.fleet import Fleet
from parked.loadtest.master.heard import HeardInHold, Listening
from parked.loadtest.master.recorder import _since
from parked.loadtest.terms.histogram import new_histogram
from parked.user import EventsUser
from tests.loadtest.scene import Scene, sample


def told(**changes: Any) -> Any:
    return HeardByProcess().sample() | {"streams": 10, "streams_min": 10} | changes


def deliveries(*took_us: int) -> bytes:
    histogram = new_histogram()
    for value in took_us:
        histogram.record_value(value)
    encoded: bytes = histogram.encode()
    return encoded


def test_a_second_is_the_sum_of_its_workers() -> None:
    fleet = Fleet()
    assert fleet.second().heard is None
    for number, streams in enumerate((10, 30)):
        heard = told(streams=streams, streams_min=streams - 1, events=5, events_lost=number)
        heard |= {"deliveries": deliveries(1000 * (number + 1))}
        fleet.take(f"w{number}", sample(heard=heard))
    second = fleet.second().heard
    assert second is not None
    assert (second.streams, second.streams_min) == (40, 38)
    assert (second.totals["events"], second.totals["events_lost"]) == (10, 1)
    assert second.deliveries.get_total_count() == 2
    later = fleet.second().heard
    assert later is not None
    assert (later.streams_min, later.totals["events"], later.deliveries.get_total_count()) == (40, 10, 0)


def test_what_a_worker_that_ended_had_heard_stays_and_its_streams_are_gone() -> None:
    fleet = Fleet()
    fleet.take("w0", sample(heard=told(events=5)))
    fleet.workers["w0"].lost = True
    second = fleet.second().heard
    assert second is not None
    assert (second.streams, second.streams_min, second.totals["events"]) == (0, 0, 5)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"deliveries": b"nonsense"},
        {"broadcasts": [["1", 1.0, 2.0]]},
        {"broadcasts": [[1, 1.0, 2.0, 3.0, 4]]},
        {"broadcasts": [["1", 1.0, "x", 3.0, 4]]},
        {"broadcasts": [["1", 1.0, 2.0, 3.0, 4]] * 1000},
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_of_it_taken(nonsense: dict[str, Any]) -> None:
    fleet = Fleet()
    with pytest.raises(ValueError):
        fleet.take("w0", sample(heard=told(events=5, **nonsense)))
    assert not fleet.workers
    assert fleet.second().latencies.get_total_count() == 0


def test_a_broadcast_spans_its_first_and_last_client_over_all_workers_and_their_clocks() -> None:
    listening = Listening()
    listening.take("a", told(broadcasts=[["7", 100.0, 100.5, 101.0, 5], ["8", None, 130.0, 130.1, 5]]))
    listening.take("b", told(broadcasts=[["7", 100.0, 90.25, 92.0, 3]]), offset_s=10.0)
    before = Listening().second({"a": told()}, [told()])
    hold = HeardInHold(before, began_unix_s=99.0)
    hold.add(listening.second({"a": told(), "b": told()}, [told(events=13)]))
    facts = hold.facts()
    assert facts["broadcasts"] == [["7", 100.0, 100.25, 102.0, 8], ["8", None, 130.0, 130.1, 5]]
    assert facts["hold"]["events"] == 13
    assert facts["streams_min"] == 10


def test_a_broadcast_that_was_under_way_when_the_hold_began_is_not_of_it() -> None:
    listening = Listening()
    hold = HeardInHold(listening.second({}, []), began_unix_s=100.0)
    for first in (99.5, 100.5):
        listening.take("a", told(broadcasts=[["7", 99.0, first, 101.0, 5]]))
        hold.add(listening.second({}, []))
    assert hold.facts()["broadcasts"] == []


def test_broadcasts_beyond_a_bound_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard_module, "MOST_KEPT", 3)
    listening = Listening()
    hold = HeardInHold(listening.second({}, []), began_unix_s=0.0)
    listening.take("a", told(broadcasts=[[str(number), None, 1.0, 2.0, 1] for number in range(5)]))
    hold.add(listening.second({}, []))
    assert (len(hold.facts()["broadcasts"]), hold.facts()["broadcasts_more"]) == (3, 2)


def test_a_second_run_of_a_web_ui_counts_from_its_own_begin() -> None:
    before: Any = sample(heard=told(events=100, events_lost=2))
    since = _since(before, sample(heard=told(events=130, events_lost=2)))  # type: ignore[arg-type]
    assert (since["heard"]["events"], since["heard"]["events_lost"]) == (30, 0)


def test_rows_and_facts_have_what_was_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch)
    scene.runner.state = STATE_RUNNING
    scene.second(heard=told(events=10))
    process = HeardByProcess()
    for _ in range(10):
        process.take(None, Event(b"1", b"", 1, time.time()))
    scene.second(heard=process.sample() | {"streams": 10, "streams_min": 9, "events": 20})
    scene.run.end()
    row = scene.rows()[-1]
    assert (row["streams"], row["streams_min"], row["events_total"], row["deliveries"]) == (
        "10",
        "9",
        "20",
        "10",
    )
    assert float(row["delivery_max_ms"]) >= 0
    heard = scene.facts()["heard"]
    assert (heard["hold"]["events"], heard["totals"]["events"], heard["streams_min"]) == (10, 20, 9)
    assert [broadcast[4] for broadcast in heard["broadcasts"]] == [10]
    assert scene.facts()["workload"] == "keepalive"


def test_the_hold_of_event_streams_begins_when_all_have_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch)
    scene.environment.user_classes = [EventsUser]
    scene.runner.state = STATE_RUNNING
    scene.second()  # connected, and nothing has been answered
    scene.second(heard=told(streams=9))
    assert scene.run.hold.began is None
    scene.second(heard=told(streams=10))
    assert scene.run.hold.began is not None
    scene.run.end()
    assert scene.facts()["workload"] == "events"
    assert scene.facts()["heard"]["streams_min"] == 10


def test_a_run_without_such_users_has_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch)
    scene.second()
    scene.run.end()
    assert scene.rows()[0]["streams"] == scene.rows()[0]["events_total"] == ""
    assert "heard" not in scene.facts()
