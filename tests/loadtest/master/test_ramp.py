"""The ramp's pace, without a load."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from locust import User
from locust.runners import WorkerNode

from parked.loadtest.master.ramp import (
    A_LITTLE_FASTER,
    BACKLOG_S,
    ENOUGH,
    FASTER,
    FULL,
    LATE_S,
    MUCH_FASTER,
    ON_TIME_S,
    PATIENCE_S,
    SAMPLE_S,
    UNASKED,
    Pace,
    PacedDispatcher,
)
from parked.loadtest.terms.histogram import new_histogram


def second(
    latency_s: float = 0.002,
    lag_s: float = 0.0,
    users: int = 1000,
    connections: int = 1000,
    silent_s: float = 0.5,
    streams: int | None = None,
    responses: int = 1,
    slowest_s: float = 0.0,
) -> Any:
    latencies = new_histogram()
    latencies.record_value(round(latency_s * 1e6), responses)
    if slowest_s:
        latencies.record_value(round(slowest_s * 1e6))
    return SimpleNamespace(
        latencies=latencies,
        loop_lag_max_s=lag_s,
        users=users,
        connections=connections,
        silent_s=silent_s,
        heard=None if streams is None else SimpleNamespace(streams=streams),
    )


def machine(dropped: int = 0, busy_cores: float | None = None, others: float = 0.0) -> Any:
    """`others`: share of what is busy that is other programs'."""
    client_cores = (busy_cores or 0.0) * (1 - others)
    return SimpleNamespace(
        listen_overflows=dropped,
        listen_drops=0,
        busy_cores=busy_cores,
        client_cores=client_cores,
        server_cores=None,
        kernel_cores=None,
    )


def test_the_pace_rises_while_all_is_on_time_whatever_it_began_with() -> None:
    pace = Pace(1000)
    pace.observe(second(), machine())
    assert 1000 < pace.per_s < 1200
    for _ in range(30):
        pace.observe(second(), machine())
    assert pace.per_s > 50_000


def test_streams_that_have_not_begun_hold_the_pace_up_as_connections_do() -> None:
    pace = Pace(1000)
    pace.observe(second(users=10_000, connections=10_000, streams=9_500), machine())
    assert pace.per_s > 1000
    before = pace.per_s
    pace.observe(second(users=20_000, connections=20_000, streams=12_000), machine())
    assert pace.per_s < before


def test_a_server_whose_responses_always_take_long_does_not_hold_up_the_ramp() -> None:
    pace = Pace(1000)
    for _ in range(5):
        pace.observe(second(latency_s=4 * LATE_S, responses=ENOUGH), machine())
    assert pace.per_s == pytest.approx(1000 * FASTER**5)
    pace.observe(second(latency_s=5.1 * LATE_S, responses=ENOUGH), machine())
    assert pace.per_s < 1000 * FASTER**5
    for _ in range(PATIENCE_S):
        pace.observe(second(latency_s=0.1, responses=ENOUGH), machine())  # it was slow at the beginning alone
    before = pace.per_s
    pace.observe(second(latency_s=2 * LATE_S, responses=ENOUGH), machine())
    assert pace.per_s < before


def test_a_few_slow_responses_hold_up_the_ramp_however_usual_they_are() -> None:
    pace = Pace(1000)
    for _ in range(PATIENCE_S + 1):
        pace.observe(second(latency_s=0.3, responses=ENOUGH, slowest_s=0.3 + 2 * LATE_S), machine())
    assert pace.per_s < 1000


def test_idle_cores_let_the_pace_rise_at_once_to_what_they_can_do() -> None:
    pace = Pace(1000, cores=2)
    pace.observe(second(), machine(busy_cores=0.1))
    assert pace.per_s == MUCH_FASTER * 1000
    # A connection takes 200 us of the cores, of which a second has FULL * 2: not far beyond that, and slowly.
    asked = before = 1000.0
    for _ in range(7):
        asked, before = pace.per_s, asked
        pace.observe(second(latency_s=0.1), machine(busy_cores=min(2.0, before * 200e-6)))
    assert FULL * 2 / 200e-6 * 0.9 < pace.per_s < FULL * 2 / 200e-6 * 1.2


def test_cores_that_others_keep_busy_do_not_hold_up_a_ramp_in_which_all_is_prompt() -> None:
    pace = Pace(1000, cores=2)
    pace.observe(second(), machine(busy_cores=2.0, others=0.8))
    assert pace.per_s == FASTER * 1000
    while pace.per_s < UNASKED * 1000:  # so far the cores are not asked
        before = pace.per_s
        pace.observe(second(), machine(busy_cores=2.0))
        assert pace.per_s == FASTER * before
    before = pace.per_s
    pace.observe(second(), machine(busy_cores=2.0))
    assert pace.per_s == A_LITTLE_FASTER * before


def test_the_pace_waits_for_a_first_connection() -> None:
    pace = Pace(1000, cores=2)
    pace.observe(second(users=0, connections=0), machine(busy_cores=0.1))
    assert pace.per_s == 1000


def test_the_pace_falls_while_ever_more_users_wait_for_their_connections() -> None:
    pace = Pace(1000)
    waiting = round(BACKLOG_S * 1000) + 1000
    pace.observe(second(users=waiting, connections=0), machine())
    slowed = pace.per_s
    assert slowed < 1000
    for _ in range(PATIENCE_S + 1):  # fewer than before: they are on their way
        waiting -= 100
        pace.observe(second(users=waiting, connections=0), machine())
    assert pace.per_s == slowed


@pytest.mark.parametrize(
    "late",
    [
        second(latency_s=LATE_S * 2),
        second(lag_s=LATE_S * 2),
        second(silent_s=SAMPLE_S + LATE_S * 2),  # so late that it has not even said so
    ],
)
def test_the_pace_falls_when_a_response_or_an_event_loop_is_late(late: Any) -> None:
    pace = Pace(1000)
    pace.observe(late, machine())
    assert pace.per_s < 1000
    for _ in range(100):
        pace.observe(late, machine())
    assert pace.per_s > 0


def test_between_on_time_and_late_the_pace_rises_slowly_once_the_late_ones_are_through() -> None:
    pace = Pace(1000)
    between = second(latency_s=(ON_TIME_S + LATE_S) / 2)
    pace.observe(second(latency_s=LATE_S * 2), machine())
    slowed = pace.per_s
    for _ in range(PATIENCE_S - 1):
        pace.observe(between, machine())
        assert pace.per_s == slowed
    pace.observe(between, machine())
    assert slowed < pace.per_s < slowed * FASTER


def test_the_pace_falls_once_for_requests_that_were_late_together() -> None:
    pace = Pace(1000)
    late = second(latency_s=LATE_S * 2)
    seen = []
    for _ in range(PATIENCE_S + 1):
        pace.observe(late, machine())
        seen.append(pace.per_s)
    assert len(set(seen[:PATIENCE_S])) == 1
    assert seen[PATIENCE_S] < seen[0] < 1000


def test_a_dropped_syn_halves_the_pace_once() -> None:
    pace = Pace(1000)
    pace.observe(second(), machine(dropped=3))
    assert pace.per_s == 500
    pace.observe(second(), machine(dropped=3))
    assert pace.per_s > 500


def test_the_pace_needs_no_monitor_and_no_requests() -> None:
    pace = Pace(1000)
    quiet = SimpleNamespace(
        latencies=new_histogram(), loop_lag_max_s=0.0, users=9, connections=9, silent_s=0.0, heard=None
    )
    pace.observe(quiet, None)  # type: ignore[arg-type]
    assert pace.per_s > 1000


def test_locusts_dispatcher_spawns_what_the_pace_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Visitor(User):
        pass

    monkeypatch.setattr("gevent.sleep", lambda seconds: None)
    monkeypatch.setattr(PacedDispatcher, "pace", Pace(100.0))
    dispatcher = PacedDispatcher([WorkerNode("a_1"), WorkerNode("a_2")], [Visitor])
    dispatcher.new_dispatch(target_user_count=1000, spawn_rate=100)
    seen = []
    for dispatched in itertools.islice(dispatcher, 3):
        seen.append(sum(users["Visitor"] for users in dispatched.values()))
        PacedDispatcher.pace.per_s *= 2  # type: ignore[union-attr]
    assert seen == [100, 300, 700]
    dispatcher.new_dispatch(target_user_count=1000, spawn_rate=100)  # as when a worker joins
    assert PacedDispatcher.pace.per_s == 800  # type: ignore[union-attr]


def test_a_rate_that_is_edited_in_the_run_is_where_the_pace_goes_on() -> None:
    pace = Pace(1000)
    pace.begin(50)
    pace.observe(second(), machine())
    assert pace.per_s == FASTER * 50


def test_the_dispatcher_keeps_one_object_for_all_users_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Visitor(User):
        pass

    monkeypatch.setattr("gevent.sleep", lambda seconds: None)
    dispatcher = PacedDispatcher([WorkerNode("a_1"), WorkerNode("a_2")], [Visitor])
    dispatcher.new_dispatch(target_user_count=1000, spawn_rate=1000)
    list(dispatcher)
    assert len(dispatcher._active_users) == 1000
    assert len({id(item) for item in dispatcher._active_users}) == 2
    dispatcher.new_dispatch(target_user_count=300, spawn_rate=1000)
    assert sum(users["Visitor"] for users in list(dispatcher)[-1].values()) == 300
