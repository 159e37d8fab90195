"""Users of other classes are stopped so that each of their requests is counted, in a measurement only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.pool import Group
from locust import User, constant, task
from locust.env import Environment
from locust.user.task import LOCUST_STATE_WAITING

from parked.loadtest.plugin import exact_stops
from parked.user import KeepAliveUser
from tests.loadtest.peers import DEADLINE_S, eventually

#: Seconds that a user waits, and what else the event loop has to do before it ends: more callbacks than
#: gevent works off before it looks at timers again, and seconds for each.
WAIT_S, CALLBACKS, CALLBACK_S = 0.5, 60, 0.015


stand_still = monkey.get_original("time", "sleep")


class Kept(KeepAliveUser):
    host = "http://127.0.0.1:1"


class Stock(User):
    """Its task begins what takes a moment, as a request does."""

    wait_time = constant(WAIT_S)
    begun = finished = left = 0

    @task
    def ask(self) -> None:
        self.begun += 1
        gevent.sleep(0.01)
        self.finished += 1

    def on_stop(self) -> None:
        self.left += 1


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(User, "stop", User.stop)  # put back at the end
    exact_stops.stop_who_waits()


def environment(results: str | None = "results", *kinds: type[User]) -> Environment:
    made = Environment(user_classes=list(kinds or (Stock, Kept)))
    made.parsed_options = SimpleNamespace(results=results)  # type: ignore[assignment]
    return made


def waiting(kind: type[Any] = Stock) -> Any:
    user = kind(environment())
    user.start(Group())
    eventually(lambda: user._state == LOCUST_STATE_WAITING)
    return user


def test_one_whose_wait_ends_as_it_is_stopped_finishes_its_task() -> None:
    def stop_in_a_busy_process() -> None:
        for _ in range(CALLBACKS):
            gevent.get_hub().loop.run_callback(stand_still, CALLBACK_S)
        user.stop()

    user = waiting()
    gevent.spawn(stop_in_a_busy_process)
    user.greenlet.join(DEADLINE_S)
    assert user.greenlet.dead
    assert user.begun == user.finished
    assert user.left == 1


def test_one_that_waits_for_long_ends_at_once() -> None:
    class Slow(Stock):
        wait_time = constant(1000.0)

    user = waiting(Slow)
    assert user.stop()
    assert user.greenlet.dead
    assert (user.begun, user.finished, user.left) == (1, 1, 1)
    assert not user.group.dying


def test_two_who_stop_one_user_both_see_it_end() -> None:
    user = waiting()
    both = [gevent.spawn(user.stop) for _ in range(2)]
    assert len(gevent.joinall(both, DEADLINE_S)) == 2
    assert user.left == 1


def test_one_in_a_task_and_one_that_has_to_end_are_left_to_locust() -> None:
    user = waiting()
    user._state = "running"
    assert not user.stop()
    assert user._state == "stopping"
    assert user.stop(force=True)
    assert user.greenlet.dead


@pytest.mark.parametrize(
    "stranger",
    [environment(None), environment("results", Stock), Environment(user_classes=[Stock, Kept])],
    ids=["no --results", "no KeepAliveUser", "made by a program"],
)
def test_a_run_that_is_no_measurement_of_ours_is_left_to_locust(stranger: Environment) -> None:
    assert not exact_stops.is_measured(stranger)
    assert exact_stops.is_measured(environment())
