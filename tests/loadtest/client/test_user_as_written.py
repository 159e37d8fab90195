"""Users as scripts write and change them: waits, ends, and other things in place of their client."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import gevent
import pytest
from locust import constant, task
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment
from locust.exception import StopUser

from parked.loadtest.client.counters import Counters
from tests.loadtest.client.users import Base, Getter, Run
from tests.loadtest.peers import Peer, answering, eventually, response


def test_a_turn_that_thinking_ends_is_due_when_its_slot_is(
    environment: Environment, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first request of a turn counts from there; the very first of a user has no such time."""
    late_s: list[float] = []
    monkeypatch.setattr(Counters, "sent_late", lambda self, seconds: late_s.append(seconds))
    run = Run(environment, Getter, peer.url).start()
    eventually(lambda: len(late_s) >= 3)
    assert run.log.count("get") > len(late_s)


class Thrice(Base):
    @task
    def ask(self) -> None:
        self.log.append("ask")
        self.client.get("/")
        if self.log.count("ask") == 3:
            raise StopUser


def test_a_wait_time_may_be_a_users_own(environment: Environment, peer: Peer) -> None:
    """Its class waits for 10 to 90 s."""

    class Own(Thrice):
        wait_time = Base.__mro__[1].wait_time

        def on_start(self) -> None:
            self.wait_time = lambda: 0.01

    run = Run(environment, Own, peer.url).start()
    eventually(lambda: run.runner.user_count == 0)
    assert len(peer.requests) == 3


def test_the_waits_of_old_scripts_count(environment: Environment, peer: Peer) -> None:
    run = Run(environment, Thrice, peer.url, wait_time=None, min_wait=10, max_wait=30).start()
    eventually(lambda: run.runner.user_count == 0)
    assert len(peer.requests) == 3


@pytest.mark.parametrize(
    "seconds", [Decimal("0.01"), Decimal("0.03"), Fraction(1, 30), -1, 0, math.nan], ids=repr
)
def test_any_number_is_a_wait(environment: Environment, peer: Peer, seconds: Any) -> None:
    run = Run(environment, Thrice, peer.url, wait_time=lambda self: seconds).start()
    eventually(lambda: run.runner.user_count == 0)
    assert len(peer.requests) == 3
    assert all(0 <= wait_s < math.inf for wait_s in run.process.counters.thinks_s)
    run.process.send_sample()


@pytest.mark.parametrize("seconds", [math.inf, 1e300])
def test_a_wait_for_ever_is_one_that_a_user_can_be_ended_in(
    environment: Environment, peer: Peer, seconds: float
) -> None:
    run = Run(environment, Getter, peer.url, wait_time=lambda self: seconds).start()
    eventually(lambda: "get" in run.log and run.users[0]._slot is not None)
    run.runner.stop_users({"Getter": 1})
    assert (run.runner.user_count, run.log) == (0, ["start", "get", "stop"])


ENDS: dict[str, Callable[[Any], object]] = {
    "stop": lambda user: user.stop(force=True),
    "kill": lambda user: user.greenlet.kill(),
    "without waiting": lambda user: user.greenlet.kill(block=False),
    "its group": lambda user: user.group.killone(user.greenlet),
    "its runner": lambda user: user.environment.runner.stop_users({type(user).__name__: 1}),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_task_may_end_its_own_user(environment: Environment, peer: Peer, how: str) -> None:
    class Ends(Base):
        @task
        def end(self) -> None:
            self.client.get("/before")
            ENDS[how](self)
            gevent.sleep(0)
            self.client.get("/after")

    run = Run(environment, Ends, peer.url).start()
    eventually(lambda: run.runner.user_count == 0)
    assert [request.split()[1] for request in peer.requests] == [b"/before"]
    assert run.log == ["start", "stop"]


def test_who_asks_for_it_hears_of_a_users_end(environment: Environment, peer: Peer) -> None:
    run = Run(environment, Thrice, peer.url).start()
    handle = run.users[0].greenlet
    handle.link(lambda ended: run.log.append((ended is handle, ended.successful())))
    eventually(lambda: (True, True) in run.log)
    assert (handle.started, handle.value, handle.exception) == (True, None, None)


class Wrapper:
    """Has what the script calls, and nothing else."""

    __slots__ = ("_beneath",)

    def __init__(self, beneath: Any) -> None:
        self._beneath = beneath

    def get(self, path: str) -> Any:
        return self._beneath.get(path)


def stock(user: Any) -> FastHttpSession:
    return FastHttpSession(user.host, user.environment.events.request, user)


REPLACES: dict[str, Callable[[Any], object]] = {
    "wrapped": lambda user: setattr(user, "client", Wrapper(user.client)),
    "stock": lambda user: setattr(user, "client", stock(user)),
    "nothing": lambda user: setattr(user, "client", None),
    "deleted": lambda user: delattr(user, "client"),
}


@pytest.mark.parametrize("where", ["__init__", "on_start", "task", "on_stop"])
@pytest.mark.parametrize("how", REPLACES)
def test_a_script_may_have_something_else_as_client(
    environment: Environment, peer: Peer, how: str, where: str
) -> None:
    class Other(Base):
        def __init__(self, environment: Environment) -> None:
            super().__init__(environment)
            self.replace("__init__")

        def replace(self, place: str) -> None:
            if place == where:
                self.log.append("replaced")
                REPLACES[how](self)

        def on_start(self) -> None:
            self.replace("on_start")

        def on_stop(self) -> None:
            self.replace("on_stop")

        @task
        def ask(self) -> None:
            if "replaced" not in self.log:
                self.replace("task")
            if getattr(self, "client", None):
                self.client.get("/")
            self.log.append("asked")

    run = Run(environment, Other, peer.url).start()
    eventually(lambda: run.log.count("asked") >= 3)
    run.runner.stop_users({"Other": 1})
    assert (run.errors, run.runner.user_count) == ([], 0)
    assert run.process.counters.connections == 0
    assert run.process.counters.opened == 1
    eventually(lambda: all(served.sock.fileno() < 0 for served in peer.connections[:1]))


@pytest.mark.parametrize("host", ["127.0.0.1:9", "", "ftp://127.0.0.1", "http://", "http://[::1/"])
def test_a_host_that_is_none_is_a_failure_to_connect(environment: Environment, host: str) -> None:
    run = Run(environment, Getter, host).start()
    eventually(lambda: run.process.counters.failures)
    run.process.statistics.fold()
    (error,) = environment.stats.errors.values()
    assert f"host {host!r} is not" in str(error.error)
    assert run.log == []
    run.runner.stop_users({"Getter": 1})


def test_listeners_are_given_a_response_of_a_connection_that_failed(
    environment: Environment, fired: list[Any]
) -> None:
    run = Run(environment, Getter, "http://127.0.0.1:9").start()
    eventually(lambda: fired)
    told = fired[0]
    assert (told["request_type"], told["url"]) == ("CONNECT", "http://127.0.0.1:9")
    assert told["response"].status_code == 0
    assert told["response"].error is told["exception"]
    run.runner.stop_users({"Getter": 1})


def test_the_servers_name_is_that_of_the_first_answer(environment: Environment) -> None:
    with Peer(answering(response(b"ok", "Server: mine"))) as peer:
        run = Run(environment, Getter, peer.url)
        user = run.user_class(environment)
        user.client.get("http://127.0.0.1:9/")
        assert run.process.server_software is None
        user.client.get("/")
        assert run.process.server_software == "mine"
        user.client.close()


def test_a_script_may_call_its_own_what_it_likes(environment: Environment, peer: Peer) -> None:
    class Own(Thrice):
        def on_start(self) -> None:
            self.slot = self.session = self.turn = self.due = "mine"

        def end(self) -> None:
            raise AssertionError("nobody has called it")

        wake = process = connect = close = start_turn = end

    run = Run(environment, Own, peer.url, wait_time=constant(0.03)).start()
    eventually(lambda: run.runner.user_count == 0)
    assert (len(peer.requests), run.errors) == (3, [])


@pytest.mark.parametrize("name", ["connection_timeout", "network_timeout", "total_timeout"])
def test_a_timeout_may_be_none(environment: Environment, peer: Peer, name: str) -> None:
    user: Any = type("Patient", (Getter,), {"host": peer.url, name: None})(environment)
    assert user.client.get("/").status_code == 200
    assert user.client.get("/", timeout=30.0).status_code == 200
    user.client.close()


@pytest.mark.parametrize("where", ["on_start", "task"])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_who_ends_itself_at_once_does_nothing_more(
    environment: Environment, peer: Peer, where: str, end: str
) -> None:
    class Ends(Base):
        def end(self, place: str) -> None:
            if place == where:
                self.stop(force=True) if end == "stop" else self.greenlet.kill()
                self.log.append("not ended")

        def on_start(self) -> None:
            self.end("on_start")

        @task
        def ask(self) -> None:
            self.end("task")

    run = Run(environment, Ends, peer.url).start()
    eventually(lambda: run.runner.user_count == 0)
    assert (run.log, run.errors) == (["stop"], [])
