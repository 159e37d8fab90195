"""Counters and the samples made of them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from parked.loadtest.client import counters as counters_module
from parked.loadtest.client.counters import LATE_SEND_S, Counters
from parked.loadtest.client.errors import KINDS, ClosedByPeer, RequestFailure
from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.histogram import RANGE_US, add, checked, new_histogram
from parked.loadtest.terms.sample import PARTS_A_SECOND


def sample(counters: Counters, lag_s: float = 0.0) -> dict[str, Any]:
    return counters.sample(SimpleNamespace(lag_max_s=lag_s), "127.1.0.1", 3)  # type: ignore[arg-type]


def latencies(message: dict[str, Any]) -> Any:
    histogram = new_histogram()
    add(histogram, checked(message["latencies"]))
    return histogram


def test_connections_are_a_gauge_with_its_least_since_the_last_sample() -> None:
    counters = Counters()
    for again in (False, False, True):
        counters.connection_opened(again)
    first = sample(counters)
    assert (first["connections"], first["opened"], first["reconnects"]) == (3, 3, 1)
    counters.connection_closed(by_peer=True)
    counters.connection_opened(again=True)
    second = sample(counters)
    assert (second["connections"], second["connections_min"], second["closed_by_peer"]) == (3, 2, 1)
    assert sample(counters)["connections_min"] == 3


def test_counts_grow_and_latencies_begin_anew_with_each_sample() -> None:
    counters = Counters()
    counters.request_done(10.0, 90, 100, None)
    counters.request_done(20.0, 40, 50, ClosedByPeer("x"))
    first = sample(counters)
    assert (first["requests"], first["failures"], first["received_bytes"]) == (2, 1, 150)
    assert first["failures_by_kind"] == {"closed_by_peer": 1}
    histogram = latencies(first)
    assert histogram.get_total_count() == 2
    assert histogram.get_value_at_percentile(100) == pytest.approx(20_000, rel=0.001)
    counters.request_done(30.0, 1, 1, None)
    second = sample(counters)
    assert (second["requests"], second["failures"]) == (3, 1)
    assert latencies(second).get_total_count() == 1
    assert sample(counters)["latencies"] == []


@pytest.mark.parametrize("latency_ms", [0.0, 0.0001, -1.0, 5e9])
def test_a_latency_outside_of_the_histogram_is_counted_at_its_edge(latency_ms: float) -> None:
    counters = Counters()
    counters.request_done(latency_ms, 0, 0, None)
    histogram = latencies(sample(counters))
    assert histogram.get_total_count() == 1
    edge = RANGE_US[latency_ms > 1]
    assert histogram.get_value_at_percentile(100) == pytest.approx(edge, rel=0.001)


def test_a_failure_of_a_tasks_own_kind_is_counted() -> None:
    class Mine(RequestFailure):
        kind = "mine"

    counters = Counters()
    for failure in (Mine("x"), ValueError("y"), "text"):
        counters.request_done(1.0, 0, 0, failure)
    assert sample(counters)["failures_by_kind"] == {"mine": 1, "other": 2}
    assert "other" in KINDS


def test_sends_are_counted_in_hundredths_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters()
    for now in (1000.004, 1000.009, 1000.015, 1000.999, 1001.0):
        monkeypatch.setattr(counters_module.time, "time", lambda now=now: now)
        counters.request_sent(10)
    message = sample(counters)
    assert message["sent_bytes"] == 50
    assert [(part, count) for part, count in enumerate(message["sends"]) if count] == [
        (0, 3),
        (1, 1),
        (99, 1),
    ]
    assert len(message["sends"]) == PARTS_A_SECOND
    assert sum(sample(counters)["sends"]) == 0


def test_a_send_is_late_only_beyond_the_bound() -> None:
    counters = Counters()
    for late_s in (0.0, LATE_SEND_S, LATE_SEND_S + 0.001):
        counters.sent_late(late_s)
    assert sample(counters)["late_sends"] == 1


def test_a_sample_says_who_sends_it_and_resets_the_lag() -> None:
    timer = SimpleNamespace(lag_max_s=0.25)
    message = Counters().sample(timer, "127.1.0.1-127.1.0.2", 7)  # type: ignore[arg-type]
    assert (message["pid"], message["users"], message["source"]) == (os.getpid(), 7, "127.1.0.1-127.1.0.2")
    assert message["loop_lag_max_s"] == 0.25
    assert timer.lag_max_s == 0.0
    assert message["cpu_s"] > 0


def test_think_times_and_lengths_are_of_one_sample_and_lengths_of_good_responses() -> None:
    counters = Counters()
    counters.thinks_s += [10.0, 90.0]
    counters.request_done(1.0, 5000, 5200, None)
    counters.request_done(1.0, 7, 5200, ClosedByPeer("x"))
    message = sample(counters)
    thinks, lengths = Distribution.of(message["thinks_s"]), Distribution.of(message["lengths"])
    assert (thinks.count, thinks.least, thinks.most, thinks.mean) == (2, 10.0, 90.0, 50.0)
    assert (lengths.count, lengths.sum) == (1, 5000)
    assert sample(counters)["thinks_s"] == sample(counters)["lengths"] == []


def test_requests_that_were_sent_add_up_over_samples() -> None:
    counters = Counters()
    for total in (2, 4):
        counters.request_sent(10)
        counters.request_sent(10)
        assert sample(counters)["requests_sent"] == total
    counters.sent_late(0.002)
    counters.sent_late(0.5)
    assert sample(counters)["send_delay_s"] == pytest.approx(0.502)
