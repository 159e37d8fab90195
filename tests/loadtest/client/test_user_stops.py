"""How a KeepAliveUser ends: in a request, at rest, gracefully or at once, and what counts of it."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest
from gevent.pool import Group
from locust import constant, task
from locust.env import Environment

from parked.user import KeepAliveUser
from tests.loadtest.client.users import Base, Getter, Run
from tests.loadtest.peers import Peer, eventually, response

OK = response()


def test_a_stop_in_the_middle_of_a_request_closes_its_connection(environment: Environment) -> None:
    with Peer(lambda served: served.read_request() and gevent.sleep(60)) as silent:
        run = Run(environment, Getter, silent.url).start(3)
        eventually(lambda: len(silent.requests) == 3)
        run.runner.stop_users({"Getter": 3})
        eventually(lambda: run.runner.user_count == 0)
        assert run.process.counters.connections == 0
        assert run.process.readiness.waiting == 0
        assert run.log.count("stop") == 3


def test_a_graceful_stop_lets_the_request_end(environment: Environment) -> None:
    def slow(served: Any) -> None:
        while served.read_request() is not None:
            gevent.sleep(0.1)
            served.send(OK)

    with Peer(slow) as server:
        environment.stop_timeout = 5
        run = Run(environment, Getter, server.url, wait_time=constant(30)).start(3)
        eventually(lambda: len(server.requests) == 3)
        run.runner.stop_users({"Getter": 3})
        eventually(lambda: run.runner.user_count == 0)
        assert run.process.counters.requests == 3
        assert run.process.counters.failures == 0
        assert run.log.count("stop") == 3


def test_none_begins_another_request_while_the_test_is_stopped_and_the_next_begins_anew(
    environment: Environment, peer: Peer
) -> None:
    run = Run(environment, Getter, peer.url, wait_time=constant(0.02)).start(3)
    eventually(lambda: run.process.counters.requests > 10)
    environment.events.test_stopping.fire(environment=environment)
    gevent.sleep(0.1)  # what is on its way
    sent = len(peer.requests)
    gevent.sleep(0.2)
    assert len(peer.requests) == sent
    run.runner.stop()
    run.process.timer.lag_max_s = 0.0
    gevent.sleep(0.3)
    run.start(3)
    eventually(lambda: len(peer.requests) > sent + 10)
    assert run.process.timer.lag_max_s < 0.25, "what had been asleep is nobody's lag"


def test_a_user_that_is_stopped_in_its_on_start_does_not_rest_first(environment: Environment) -> None:
    def slow(served: Any) -> None:
        while served.read_request() is not None:
            gevent.sleep(0.3)
            served.send(OK)

    class Begins(Getter):
        def on_start(self) -> None:
            super().on_start()
            self.client.get("/begin")

    with Peer(slow) as server:
        environment.stop_timeout = 20
        run = Run(environment, Begins, server.url, wait_time=KeepAliveUser.wait_time).start(2)
        eventually(lambda: len(server.requests) == 2)
        began = time.monotonic()
        run.runner.stop_users({"Begins": 2})
        eventually(lambda: run.runner.user_count == 0)
        assert time.monotonic() - began < 10


def test_ending_twice_and_at_rest_is_harmless(environment: Environment, peer: Peer) -> None:
    run = Run(environment, Getter, peer.url, wait_time=constant(30)).start()
    eventually(lambda: len(peer.requests) == 1)
    (user,) = run.users
    handle = user._greenlet
    eventually(lambda: handle.turn is None)
    group = Group([handle])
    handle.kill(block=False)
    handle.kill(block=False)
    handle.join(timeout=2)
    assert (len(group), run.log.count("stop"), run.process.counters.connections) == (0, 1, 0)
    assert run.process.users["Getter"] == 0


class Slow(Base):
    """Takes its time to say good-bye."""

    def on_stop(self) -> None:
        gevent.sleep(0.2)
        self.client.get("/bye")

    @task
    def get(self) -> None:
        self.client.get("/")


@pytest.mark.parametrize("stop_timeout", [None, 5])
def test_the_end_waits_for_on_stop_and_its_requests_count(
    environment: Environment, peer: Peer, stop_timeout: int | None
) -> None:
    environment.stop_timeout = stop_timeout  # type: ignore[assignment]
    run = Run(environment, Slow, peer.url).start(20)
    eventually(lambda: len(peer.requests) >= 20)
    run.runner.stop()
    assert sum(request.startswith(b"GET /bye") for request in peer.requests) == 20
    assert environment.stats.entries["/bye", "GET"].num_requests == 20
    assert run.runner.user_count == 0
