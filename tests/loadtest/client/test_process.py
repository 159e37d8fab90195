"""What a process's users share, and requests counted here and in Locust."""

from __future__ import annotations

import gc
import itertools
import os
import time
from typing import Any, cast

import gevent
import pytest
from locust import constant, task
from locust.env import Environment
from locust.stats import sort_stats

from parked.loadtest.client.errors import BadStatus
from parked.loadtest.client.process import SAMPLE_S, Process, freeze_users
from parked.loadtest.plugin import adjustments
from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.sample import MESSAGE
from parked.user import KeepAliveUser
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, answering, eventually, response

META = {"request_type": "GET", "name": "/", "response_time": 5.0, "response_length": 10}


def test_a_process_has_one_of_each(environment: Environment) -> None:
    assert Process.of(environment) is Process.of(environment)


def test_a_sample_is_sent_each_second_and_says_what_the_server_calls_itself(
    environment: Environment, new_session: NewSession, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    runner: Any = environment.runner
    monkeypatch.setattr(runner, "send_message", lambda kind, data: sent.append(data))
    with Peer(answering(response(b"ok", "Server: mine/1"))) as peer:
        session = new_session(peer.url)
        process.send_sample()
        assert sent[-1]["server"] == ""
        session.get("/")
        count = len(sent)
        eventually(lambda: len(sent) >= count + 2)
    assert sent[-1]["server"] == "mine/1"
    assert sent[-1]["source"].startswith("127.1.0.")
    assert (sent[-1]["requests"], sent[-1]["connections"]) == (1, 1)


def test_no_sample_is_sent_where_nobody_takes_it(
    environment: Environment, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a program that has made its runner itself."""
    assert environment.runner is not None
    del environment.runner.custom_messages[MESSAGE]
    process.send_sample()
    assert caplog.records == []


def test_processes_that_begin_together_count_at_different_moments(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases_s: list[float] = []
    monkeypatch.setattr(gevent, "spawn", lambda _report, phase_s: phases_s.append(phase_s))
    runner: Any = environment.runner
    for number in range(4):
        runner.worker_index = number
        process = Process(environment)
        process.timer.close()
        process.readiness.close()
    assert all(0 <= phase_s < SAMPLE_S for phase_s in phases_s)
    assert min(abs(one - other) for one, other in itertools.combinations(phases_s, 2)) > SAMPLE_S / 10


def test_the_end_of_a_test_folds_and_reports_what_is_left(
    environment: Environment, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    runner: Any = environment.runner
    monkeypatch.setattr(runner, "send_message", lambda kind, data: sent.append(data))
    user: Any = object()
    process.request_done(user, META, 100, BadStatus("status 500"))
    environment.events.test_stop.fire(environment=environment)
    assert environment.stats.total.num_requests == environment.stats.total.num_failures == 1
    assert sent[-1]["requests"] == 1


def test_users_are_spread_evenly_over_several_hosts(environment: Environment) -> None:
    process = Process.of(environment)
    hosts = "http://127.0.0.1:1,http://127.0.0.1:2,http://127.0.0.1:3"
    environment.runner.worker_index = 1
    user_class = type("User", (KeepAliveUser,), {"host": hosts})
    users = [user_class(environment) for _ in range(7)]
    begin = [str(user.host)[-1] for user in users]
    assert begin == ["2", "3", "1", "2", "3", "1", "2"]
    one, other = (process.origin(f"http://127.0.0.1:{n}", users[0]).server.addresses()[0] for n in (2, 3))
    assert one.sources is not other.sources, "each target counts its own ports"


def test_users_are_frozen_without_a_collection_that_would_stop_all_workers_at_once() -> None:
    phases: list[str] = []

    def note(phase: str, _info: dict[str, int]) -> None:
        phases.append(phase)

    gc.callbacks.append(note)
    try:
        before = gc.get_freeze_count()
        freeze_users()
        assert gc.get_freeze_count() > before
    finally:
        gc.callbacks.remove(note)
        gc.unfreeze()
    assert phases == []


def test_a_growing_ramp_is_frozen_with_each_sample(environment: Environment) -> None:
    class Kept(KeepAliveUser):
        wait_time = constant(30)

        @task
        def get(self) -> None:
            self.client.get("/")

    with Peer(answering(response())) as peer:
        environment.user_classes = [Kept]
        Kept.host = peer.url
        process = Process.of(environment)
        try:
            counts = []
            for users in (2, 3, 0):
                environment.runner.spawn_users({"Kept": users})  # type: ignore[union-attr]
                gc.unfreeze()
                process.send_sample()
                counts.append(gc.get_freeze_count())
        finally:
            gc.unfreeze()
    assert counts[0] > 0
    assert counts[1] > 0
    assert counts[2] == 0, "nobody has come"


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise ValueError("no words for it")

    __str__ = __repr__


@pytest.mark.parametrize(
    "values",
    [
        {"response_time": None},
        {"response_time": "fast"},
        {"response_time": float("nan")},
        {"response_time": float("inf")},
        {"response_time": 10**400},
        {"response_time": -1},
        {"response_length": None},
        {"response_length": []},
        {"name": None},
        {"name": 7},
        {"request_type": None},
    ],
)
def test_no_value_that_a_task_sets_ends_more_than_its_own_request(
    environment: Environment, new_session: NewSession, process: Process, values: dict[str, Any]
) -> None:
    with Peer(answering(response())) as peer:
        session = new_session(peer.url)
        with session.get("/", catch_response=True) as answer:
            answer.request_meta.update(values)
        session.get("/")
        process.statistics.fold()
        process.send_sample()
        sort_stats(environment.stats.entries)
    assert process.counters.requests == 2
    assert environment.stats.total.num_requests == 2
    wrong = not isinstance(next(iter(values.values())), str | int) or "response" in next(iter(values))
    assert process.counters.failures == (wrong and "name" not in values and "request_type" not in values)


def test_a_failure_without_words_is_counted(environment: Environment, process: Process) -> None:
    user: Any = object()
    process.request_done(user, META, 100, Unspeakable())
    process.statistics.fold()
    assert [error.occurrences for error in environment.stats.errors.values()] == [1]


def test_who_listens_to_the_end_of_a_test_meets_whole_figures(environment: Environment) -> None:
    seen: list[int] = []
    environment.events.test_stop.add_listener(
        lambda environment, **_: seen.append(environment.stats.total.num_requests)
    )
    process, user = Process.of(environment), cast(Any, object())
    process.request_done(user, META, 100, None)
    environment.events.test_stop.fire(environment=environment)
    assert seen == [1]


def test_requests_that_others_tell_locust_of_are_counted_beside_ours(
    environment: Environment, new_session: NewSession, process: Process
) -> None:
    other = {"request_type": "GRPC", "name": "call", "response_time": 1.0, "response_length": 1}
    with Peer(answering(response())) as peer:
        session = new_session(peer.url)
        session.get("/")
        environment.events.request.fire(**other, exception=None, context={})
        environment.events.request.fire(**other, exception=ValueError(), context={})
        environment.events.request.add_listener(lambda **_: None)
        session.get("/")
    process.statistics.fold()
    told = process.statistics
    assert (told.others, told.others_failed, process.counters.requests) == (2, 1, 2)
    assert environment.stats.total.num_requests == 4


def test_connections_to_other_hosts_are_no_part_of_what_is_held(
    environment: Environment, new_session: NewSession, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    runner: Any = environment.runner
    monkeypatch.setattr(runner, "send_message", lambda kind, data: sent.append(data))
    with Peer(answering(response())) as own, Peer(answering(response())) as other:
        session = new_session(own.url)
        session.get("/")
        session.get(f"{other.url}/")
        process.send_sample()
    assert (sent[-1]["connections"], sent[-1]["opened"], sent[-1]["elsewhere"]) == (1, 1, 1)


def test_requests_under_way_are_told_with_the_age_that_they_have(
    environment: Environment, new_session: NewSession, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    runner: Any = environment.runner
    monkeypatch.setattr(runner, "send_message", lambda kind, data: sent.append(data))
    with Peer(lambda served: served.read_request() and gevent.sleep(5)) as silent:
        session = new_session(silent.url)
        session.due = time.perf_counter() - 2.0
        asking = gevent.spawn(session.get, "/")
        eventually(lambda: silent.requests)
        process.send_sample()
        asking.kill()
        process.send_sample()
    told = Distribution.of(sent[-2]["open_s"])
    assert told.count == 1
    assert 2.0 <= told.most < 5.0
    assert sent[-1]["open_s"] == []


def test_a_process_with_users_does_not_preempt_others_and_one_without_is_as_it_was(
    environment: Environment,
) -> None:
    usual = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        adjustments.apply()
        assert os.sched_getscheduler(0) == os.SCHED_OTHER, "a master stays as it is"
        other = Environment()
        other.create_local_runner()
        made = Process(other)
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        made.timer.close()
        made.readiness.close()
        other.runner.quit()  # type: ignore[union-attr]
    finally:
        os.sched_setscheduler(0, usual, os.sched_param(0))


def test_what_came_before_a_reset_is_not_counted_after_it(environment: Environment, process: Process) -> None:
    events = environment.events
    for reset, said in ((events.spawning_complete, {"user_count": 1}), (events.reset_stats, {})):
        process.statistics.log("GET", "/", 1.0, 1, None)
        reset.fire(**said)
        environment.stats.reset_all()
        process.statistics.fold()
        assert environment.stats.total.num_requests == 0
