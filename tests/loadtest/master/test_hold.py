"""The hold: what is counted from when all connections were established."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from parked.loadtest.master.fleet import Fleet, Second
from parked.loadtest.master.hold import Hold
from tests.loadtest.master.test_fleet import WorkerProcess

Next = Callable[[int, int], Second]


@pytest.fixture
def second() -> Next:
    """The next second of one worker, in which so many requests end and so many connections are lost."""
    fleet, worker = Fleet(), WorkerProcess("one")
    for _ in range(10):
        worker.counters.connection_opened(again=False)

    def following(requests: int, lost: int) -> Second:
        worker.work(requests)
        for _ in range(lost):
            worker.counters.connection_closed(by_peer=True)
        fleet.take(worker.name, worker.sample())
        return fleet.second()

    return following


def machine(server_s: float | None, client_s: float) -> Any:
    return SimpleNamespace(server_cpu_seconds=server_s, client_cpu_seconds=client_s)


def test_one_that_has_not_begun_has_held_nothing() -> None:
    hold = Hold()
    facts = hold.facts()
    assert (hold.began, hold.seconds) == (None, 0.0)
    assert (facts["hold"], facts["min_connections_in_hold"]) == ({}, None)
    assert facts["hold_cpu_s"] == {"server": None, "client": None}


def test_it_counts_from_the_second_in_which_all_were_established(second: Next) -> None:
    hold = Hold()
    hold.begin(100.0, 1000.5, second(7, 0), machine(1.0, 2.0))
    hold.add(101.0, 1001.5, second(3, 0), machine(1.5, 3.0))
    hold.add(102.5, 1002.5, second(4, 0), machine(1.75, 5.0))
    facts = hold.facts()
    assert (hold.began, hold.seconds, facts["hold_counted_s"]) == (100.0, 2.5, 2.0)
    assert facts["hold"]["requests"] == 7
    assert hold.latencies.get_total_count() == 7
    assert facts["hold_cpu_s"] == {"server": 0.75, "client": 3.0}


def test_the_fewest_connections_of_any_second_are_what_was_held(second: Next) -> None:
    hold = Hold()
    hold.begin(0.0, 0.0, second(0, 0), None)
    hold.add(1.0, 1.0, second(0, 3), None)
    hold.add(2.0, 2.0, second(0, 0), None)
    assert hold.facts()["min_connections_in_hold"] == 7


def test_processor_time_that_nobody_could_see_is_none(second: Next) -> None:
    hold = Hold()
    hold.begin(0.0, 0.0, second(0, 0), machine(None, 1.0))
    hold.add(1.0, 1.0, second(0, 0), machine(2.0, 3.0))
    assert hold.facts()["hold_cpu_s"] == {"server": None, "client": 2.0}
