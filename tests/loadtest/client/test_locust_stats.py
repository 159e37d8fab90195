"""Batched statistics: after folding, Locust's numbers are those of logging each request."""

from __future__ import annotations

import inspect
import random
import time

import pytest
from locust import stats as locust_stats
from locust.env import Environment
from locust.stats import PERCENTILES_TO_REPORT, RequestStats

from parked.loadtest.client.errors import BadStatus, ClosedByPeer
from parked.loadtest.client.locust_stats import BatchedStatistics
from parked.loadtest.client.process import Process

#: (method, name, response time in ms, content length in bytes, failure)
Request = tuple[str, str, float, int, Exception | str | None]


def requests(count: int) -> list[Request]:
    drawn = random.Random(1)
    failures: list[Exception | str | None] = [
        BadStatus("status 500"),
        ClosedByPeer("x"),
        "text",
        None,
        None,
        None,
        None,
    ]
    return [
        (
            drawn.choice(("GET", "POST")),
            drawn.choice(("/a", "/b", "/c")),
            drawn.choice((0.0, 0.49, 99.6, 995.0, drawn.expovariate(1 / 300), drawn.uniform(0, 60_000))),
            drawn.randrange(10_000),
            drawn.choice(failures),
        )
        for _ in range(count)
    ]


def numbers(stats: RequestStats) -> dict[tuple[str, str], dict[str, object]]:
    """All that Locust reports of each entry, except what depends on the time of the test."""
    return {
        (entry.name, entry.method): {
            "requests": entry.num_requests,
            "failures": entry.num_failures,
            "total": pytest.approx(entry.total_response_time),
            "least": entry.min_response_time,
            "most": entry.max_response_time,
            "average": pytest.approx(entry.avg_response_time),
            "median": entry.median_response_time,
            "length": entry.total_content_length,
            "buckets": dict(entry.response_times),
            "percentiles": [entry.get_response_time_percentile(share) for share in PERCENTILES_TO_REPORT],
            "a second": sum(entry.num_reqs_per_sec.values()),
            "failures a second": sum(entry.num_fail_per_sec.values()),
        }
        for entry in [*stats.entries.values(), stats.total]
    }


def errors(stats: RequestStats) -> dict[tuple[str, str, str], int]:
    return {
        (error.method, error.name, str(error.error)): error.occurrences for error in stats.errors.values()
    }


def expected(done: list[Request]) -> RequestStats:
    """As Locust's own listener does it (`Runner.__init__`)."""
    stats = RequestStats()
    for method, name, time_ms, length_bytes, failure in done:
        stats.log_request(method, name, time_ms, length_bytes)  # type: ignore[arg-type]
        if failure:
            stats.log_error(method, name, failure)
    return stats


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_folding_gives_the_numbers_of_logging_each(environment: Environment, batch: int) -> None:
    statistics = BatchedStatistics(environment)
    done = requests(1000)
    for at, request in enumerate(done, 1):
        statistics.log(*request)
        if at % batch == 0:
            statistics.fold()
    statistics.fold()
    assert numbers(environment.stats) == numbers(expected(done))
    assert errors(environment.stats) == errors(expected(done))


def test_failures_are_never_ahead_of_their_requests(environment: Environment) -> None:
    statistics = BatchedStatistics(environment)
    statistics.log("GET", "/", 1.0, 0, BadStatus("status 500"))
    assert environment.stats.total.num_failures == environment.stats.total.num_requests == 1
    assert environment.stats.total.fail_ratio == 1.0


def test_a_fold_with_nothing_changes_nothing(environment: Environment) -> None:
    statistics = BatchedStatistics(environment)
    before = numbers(environment.stats)
    statistics.fold()
    assert numbers(environment.stats) == before
    assert environment.stats.last_request_timestamp is None


def test_rates_are_of_the_time_that_has_passed(environment: Environment) -> None:
    statistics = BatchedStatistics(environment)
    environment.stats.total.start_time = statistics._folded = time.time() - 0.5
    for _ in range(100):
        statistics.log("GET", "/", 1.0, 0, None)
    statistics.fold()
    for entry in (environment.stats.total, environment.stats.get("/", "GET")):
        assert entry.total_rps == pytest.approx(200, rel=0.2)
        assert entry.last_request_timestamp is not None
        assert entry.start_time <= entry.last_request_timestamp


def test_requests_before_a_reset_are_reset_with_it_if_folded(environment: Environment) -> None:
    statistics = BatchedStatistics(environment)
    statistics.log("GET", "/", 1.0, 0, None)
    statistics.fold()
    environment.stats.reset_all()
    statistics.log("GET", "/", 2.0, 5, None)
    statistics.fold()
    assert environment.stats.total.num_requests == 1
    assert environment.stats.total.min_response_time == 2.0
    environment.stats.clear_all()
    statistics.log("GET", "/", 2.0, 5, None)
    statistics.fold()
    assert environment.stats.get("/", "GET").num_requests == 1


def test_who_looks_meets_what_was_done_until_then(environment: Environment) -> None:
    """A task that ends the test after so many requests, or begins the figures anew."""
    statistics, stats = BatchedStatistics(environment), environment.stats
    for failures, look in enumerate(
        (
            lambda: stats.total.num_failures,
            lambda: stats.entries["/", "GET"].num_failures,
            lambda: stats.get("/", "GET").num_failures,
            lambda: stats.num_failures,
            lambda: next(iter(stats.errors.values())).occurrences,
        ),
        1,
    ):
        statistics.log("GET", "/", 1.0, 0, BadStatus("status 500"))
        assert look() == failures
    for begin_anew in (stats.reset_all, stats.clear_all):
        statistics.log("GET", "/", 1.0, 0, None)
        begin_anew()
        statistics.fold()
        assert stats.total.num_requests == 0


def test_a_workers_report_holds_each_request_once(environment: Environment) -> None:
    """A report takes the numbers away (`StatsEntry.get_stripped_report`); folds come at any time between."""
    statistics = BatchedStatistics(environment)
    done = requests(300)
    master = RequestStats()
    named = inspect.signature(locust_stats.StatsEntry.unserialize).parameters
    of = [master] if "stats" in named else []  # older versions make an entry of none
    for at, request in enumerate(done, 1):
        statistics.log(*request)
        if at % 20 == 0:
            statistics.fold()
        if at % 70 == 0 or at == len(done):
            statistics.fold()
            report: dict[str, object] = {}
            locust_stats.setup_distributed_stats_event_listeners(environment.events, environment.stats)
            environment.events.report_to_master.fire(client_id="w", data=report)
            environment.events.report_to_master._handlers.clear()
            environment.events.worker_report._handlers.clear()
            for data in report["stats"]:  # type: ignore[attr-defined]
                entry = locust_stats.StatsEntry.unserialize(data, *of)
                master.entries[entry.name, entry.method].extend(entry)
            master.total.extend(locust_stats.StatsEntry.unserialize(report["stats_total"], *of))  # type: ignore[arg-type]
    assert numbers(master) == numbers(expected(done))


def test_anybody_else_who_listens_is_noticed(environment: Environment) -> None:
    statistics = Process.of(environment).statistics
    assert statistics.only_locust_listens

    def listener(**_: object) -> None: ...

    environment.events.request.add_listener(listener)
    assert not statistics.only_locust_listens
    environment.events.request.remove_listener(listener)
    assert statistics.only_locust_listens


def test_without_a_runner_a_lone_listener_is_not_taken_for_locusts() -> None:
    environment = Environment()
    statistics = BatchedStatistics(environment)
    assert not statistics.only_locust_listens
    environment.events.request.add_listener(lambda **_: None)
    assert not statistics.only_locust_listens
