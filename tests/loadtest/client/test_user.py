"""KeepAliveUser: turns and failures as Locust's own users have them, on real sockets."""

from __future__ import annotations

import gc
import os
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.pool import Group
from locust import TaskSet, constant, tag, task
from locust.env import Environment
from locust.exception import RescheduleTask, RescheduleTaskImmediately, StopTest, StopUser

from parked.loadtest.client import user as user_module
from parked.loadtest.client.process import Process
from parked.user import KeepAliveUser
from tests.loadtest.client.users import Base, Getter, Run
from tests.loadtest.peers import Peer, answering, by_path, eventually, response

OK = response()


def test_a_user_opens_one_connection_and_keeps_it(environment: Environment, peer: Peer) -> None:
    run = Run(environment, Getter, peer.url).start(3)
    assert run.runner.user_count == 3
    eventually(lambda: len(peer.requests) > 15)
    assert len(peer.connections) == 3
    assert run.process.counters.connections == 3
    assert run.runner.user_classes_count == {"Getter": 3}
    run.runner.stop_users({"Getter": 3})
    eventually(lambda: run.runner.user_count == 0)
    assert run.process.counters.connections == 0
    assert (run.log.count("start"), run.log.count("stop")) == (3, 3)
    assert run.errors == []


def test_a_user_at_rest_has_no_greenlet(environment: Environment, peer: Peer) -> None:
    run = Run(environment, Getter, peer.url, wait_time=constant(30)).start(50)
    eventually(lambda: len(peer.requests) == 50)
    eventually(lambda: all(handle.turn is None for handle in run.runner.user_greenlets))
    assert all(user._slot is not None for user in run.users)
    run.runner.stop_users({"Getter": 50})
    eventually(lambda: run.process.counters.connections == 0)


def test_a_task_that_fails_is_reported_and_the_next_runs(environment: Environment, peer: Peer) -> None:
    class Failing(Base):
        @task
        def fail(self) -> None:
            self.log.append("task")
            raise KeyError("mine")

    run = Run(environment, Failing, peer.url).start()
    eventually(lambda: run.log.count("task") >= 3)
    assert {type(error) for error in run.errors} == {KeyError}
    assert run.runner.user_count == 1


def test_rescheduling_ends_a_task_without_an_error(environment: Environment, peer: Peer) -> None:
    class Rescheduling(Base):
        @task
        def one(self) -> None:
            self.log.append("one")
            raise RescheduleTask

        @task
        def two(self) -> None:
            self.log.append("two")
            raise RescheduleTaskImmediately

    run = Run(environment, Rescheduling, peer.url).start()
    eventually(lambda: {"one", "two"} <= set(run.log))
    assert run.errors == []


def test_stop_user_in_a_task_ends_that_user_alone(environment: Environment, peer: Peer) -> None:
    class Stopping(Base):
        @task
        def stop_now(self) -> None:
            self.log.append("task")
            raise StopUser

    run = Run(environment, Stopping, peer.url).start(2)
    eventually(lambda: run.runner.user_count == 0)
    assert sorted(run.log) == ["start", "start", "stop", "stop", "task", "task"]
    assert run.process.counters.connections == 0


@pytest.mark.parametrize("exception", [StopUser(), StopTest("x"), ValueError("x")])
def test_an_exception_in_on_start_ends_the_user(
    environment: Environment, peer: Peer, exception: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def on_start(self: Base) -> None:
        self.log.append("start")
        raise exception

    run = Run(environment, Getter, peer.url, on_start=on_start)
    handled: list[Any] = []
    run.process.hub.handle_error = lambda *details: handled.append(details[1])
    try:
        run.start()
        eventually(lambda: run.runner.user_count == 0)
    finally:
        del run.process.hub.handle_error
    assert "get" not in run.log
    assert run.process.counters.connections == 0
    assert run.errors == ([exception] if isinstance(exception, ValueError) else [])


def test_a_nested_task_set_keeps_its_greenlet_and_runs_to_its_end(
    environment: Environment, peer: Peer
) -> None:
    class Nested(Base):
        @task
        class Inner(TaskSet):
            wait_time = constant(0.01)

            def on_start(self) -> None:
                self.user.log.append("inner start")
                self.left = 2

            @task
            def step(self) -> None:
                self.client.get("/")
                self.user.log.append("step")
                self.left -= 1
                if not self.left:
                    self.interrupt()

    run = Run(environment, Nested, peer.url).start()
    eventually(lambda: run.log.count("inner start") >= 2)
    assert run.log[:4] == ["start", "inner start", "step", "step"]
    run.runner.stop_users({"Nested": 1})
    eventually(lambda: run.runner.user_count == 0)
    assert run.errors == []


def test_a_tasks_own_wait_and_sleep_go_on_afterwards(environment: Environment, peer: Peer) -> None:
    class Sleeping(Base):
        @task
        def sleep(self) -> None:
            self.wait()
            self.log.append("waited")
            gevent.sleep(0.01)
            self.log.append("slept")

    run = Run(environment, Sleeping, peer.url).start()
    eventually(lambda: run.log.count("slept") >= 2)
    assert run.log[1:5] == ["waited", "slept"] * 2


def test_tags_choose_the_tasks(environment: Environment, peer: Peer) -> None:
    class Tagged(Base):
        @tag("yes")
        @task
        def chosen(self) -> None:
            self.log.append("chosen")

        @tag("no")
        @task(100)
        def left_out(self) -> None:
            self.log.append("left out")

    run = Run(environment, Tagged, peer.url)
    environment.tags = ["yes"]
    environment.user_classes = [run.user_class]
    environment._filter_tasks_by_tags()
    run.start()
    eventually(lambda: run.log.count("chosen") >= 3)
    assert "left out" not in run.log


def test_a_user_that_cannot_connect_tries_again_and_says_so(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeepAliveUser, "_retry_connect_s", 0.02)
    server = Peer(answering(OK))
    server.listener.close()
    run = Run(environment, Getter, server.url).start()
    eventually(lambda: run.process.counters.failures >= 2)
    assert run.process.counters.failures_by_kind["connect"] == run.process.counters.failures
    assert (run.process.counters.connections, run.log) == (0, [])
    run.process.statistics.fold()
    assert environment.stats.get("", "CONNECT").num_failures >= 2
    run.runner.stop_users({"Getter": 1})
    eventually(lambda: run.runner.user_count == 0)


def test_a_think_time_is_left_out_before_the_first_request_unless_it_is_the_built_in_one() -> None:
    class Thinking(KeepAliveUser):
        abstract = True
        think_time = (10.0, 90.0)

    class Own(Thinking):
        abstract = True
        wait_time = constant(5)

    assert Own.first_wait_time(Own.__new__(Own)) == 0.0
    user = Thinking.__new__(Thinking)
    drawn = sorted(user.first_wait_time() for _ in range(20_000))
    assert 0 <= drawn[0] < 0.1
    assert 80 < drawn[-1] <= 90
    # What is left of a think time into which one looks at random: E[T^2] / (2 E[T]) = 30.33 s here.
    assert statistics.fmean(drawn) == pytest.approx((10**2 + 10 * 90 + 90**2) / 3 / (2 * 50), rel=0.03)
    assert all(10 <= user.wait_time() <= 90 for _ in range(1000))


def test_a_class_of_ones_own_works_with_a_listener(environment: Environment) -> None:
    events: list[Any] = []
    environment.events.request.add_listener(lambda **event: events.append(event))

    class Shopper(Base):
        def on_start(self) -> None:
            self.client.post("/login", json={"user": 1})

        def context(self) -> dict[str, Any]:
            return {"shop": 1}

        @task
        def browse(self) -> None:
            with self.client.get("/page", catch_response=True, context={"page": 1}) as answer:
                if answer.text != "other":
                    answer.failure("wrong page")

    with Peer(by_path({"/login": OK, "/page": response(b"page")})) as server:
        run = Run(environment, Shopper, server.url).start()
        eventually(lambda: len(events) >= 3)
        run.runner.stop_users({"Shopper": 1})
    assert (events[0]["request_type"], events[0]["name"]) == ("POST", "/login")
    assert events[1]["context"] == {"shop": 1, "page": 1}
    assert str(events[1]["exception"]) == "wrong page"
    assert environment.stats.total.num_requests == len(events)
    assert run.process.counters.requests == len(events)


def test_a_user_without_a_host_stops_the_test(environment: Environment) -> None:
    with pytest.raises(StopTest, match="no host"):
        type("Nowhere", (KeepAliveUser,), {})(environment)


@pytest.mark.parametrize(
    "attributes",
    [{"proxy_host": "127.0.0.1"}, {"concurrency": 2}, {"max_retries": 1}, {"client_pool": object()}],
)
def test_a_setting_that_one_connection_has_no_place_for_is_refused(
    environment: Environment, attributes: dict[str, Any]
) -> None:
    with pytest.raises(StopTest, match=next(iter(attributes))):
        type("Pooled", (KeepAliveUser,), {"host": "http://127.0.0.1:1", **attributes})(environment)


class Nowhere(Base):
    @task
    def get(self) -> None:
        self.client.get("/")

    def wait_time(self) -> Any:  # type: ignore[override]
        self.log.append("wait")


def test_a_wait_time_that_is_none_is_an_error_as_in_locust(environment: Environment, peer: Peer) -> None:
    run = Run(environment, Nowhere, peer.url).start()
    eventually(lambda: run.runner.user_count == 0)
    assert isinstance(run.errors[0], TypeError)
    assert run.process.counters.connections == 0


def test_a_wait_of_nothing_is_nothing(environment: Environment, peer: Peer) -> None:
    class Eager(Base):
        wait_time = constant(0)

        @task
        def get(self) -> None:
            self.client.get("/")

    run = Run(environment, Eager, peer.url).start()
    eventually(lambda: peer.requests)
    began = time.perf_counter()
    eventually(lambda: len(peer.requests) >= 300)
    assert time.perf_counter() - began < 2.0, "slots of 10 ms would take 3 s"
    run.runner.stop()
    assert run.log[-1] == "stop"


class Quick(TaskSet):
    wait_time = constant(0.02)

    @task
    def get(self) -> None:
        self.client.get("/")


class Within(TaskSet):
    @task
    class Nested(TaskSet):
        wait_time = constant(0.02)

        @task
        def get(self) -> None:
            self.client.get("/")


@pytest.mark.parametrize("tasks", [[Quick], [Within]])
def test_a_task_set_with_waits_of_its_own_is_not_kept_waiting_by_the_users(
    environment: Environment, peer: Peer, tasks: list[Any]
) -> None:
    user_class: Any = type("Waits", (KeepAliveUser,), {"host": peer.url, "tasks": tasks})
    assert not user_class.draws_think_time()
    environment.user_classes = [user_class]
    environment.runner.spawn_users({"Waits": 1})  # type: ignore[union-attr]
    eventually(lambda: len(peer.requests) >= 2)


def test_a_host_that_has_no_address_is_a_failure_to_connect_and_tried_again(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_module, "RETRY_CONNECT_FIRST_S", 0.05)
    monkeypatch.setattr(KeepAliveUser, "_retry_connect_s", 0.05)
    run = Run(environment, Getter, "http://no-such-host.invalid").start()
    eventually(lambda: run.process.counters.failures_by_kind["connect"] >= 2)
    assert run.runner.user_count == 1


SINGLE = """
from locust import run_single_user, task
from locust.exception import StopUser
from parked.user import KeepAliveUser

class Single(KeepAliveUser):
    host = {url!r}
    @task
    def get(self):
        print("got", self.client.get("/").text)
        raise StopUser

if __name__ == "__main__":
    run_single_user(Single)
"""


def test_a_single_user_runs_in_a_debugger(peer: Peer, tmp_path: Path) -> None:
    script = tmp_path / "single.py"
    script.write_text(SINGLE.format(url=peer.url))
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, str(script)], env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert "got ok" in done.stdout, done.stderr
    assert "GET" in done.stdout, "Locust's listener prints each request"
    assert done.returncode == 0


def test_a_user_at_rest_takes_little_memory(environment: Environment) -> None:
    """What all have in common is made once: links to the group, the slot; the task set is its turn's."""
    count, batches = 300, 3

    class Resting(KeepAliveUser):
        think_time = (5000.0, 5000.0)  # none has its first request meanwhile, which would not be answered

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(batches * count + 10)  # the kernel shakes hands, and nobody here has any of it
        Resting.host = f"http://127.0.0.1:{listener.getsockname()[1]}"
        group, counters = Group(), Process.of(environment).counters
        Resting(environment).start(group)  # what is there once
        eventually(lambda: counters.connections == 1)
        tracemalloc.start()
        try:
            each = []
            for batch in range(1, batches + 1):
                before = tracemalloc.get_traced_memory()[0]
                for _ in range(count):
                    Resting(environment).start(group)
                eventually(lambda: counters.connections == batch * count + 1)  # noqa: B023
                gc.collect()
                each.append((tracemalloc.get_traced_memory()[0] - before) / count)
            # The least: what is made each second, such as a sample, may fall into one of them.
            assert min(each) < (720 if sys.version_info[:2] == (3, 11) else 1000), "bytes, by objects' sizes"

        finally:
            tracemalloc.stop()
            group.kill()
