"""What a process's users share, and requests counted here and in Locust."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from locust import constant, task
from locust.env import Environment

from parked.loadtest.client.errors import BadStatus
from parked.loadtest.client.process import Process, freeze_users
from parked.user import KeepAliveUser
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, answering, eventually, response


def test_a_process_has_one_of_each(environment: Environment) -> None:
    assert Process.of(environment) is Process.of(environment)


def test_users_of_a_class_share_an_origin(new_session: NewSession, process: Process) -> None:
    with Peer(answering(response())) as peer:
        session = new_session(peer.url)
        user: Any = session._user
        again = process.origin(peer.url, user)
        assert again is session._origin
        assert process.origin(peer.url, new_session(peer.url)._user) is not again, (
            "header fields are a class's"
        )


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


def test_the_end_of_a_test_folds_and_reports_what_is_left(
    environment: Environment, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    runner: Any = environment.runner
    monkeypatch.setattr(runner, "send_message", lambda kind, data: sent.append(data))
    user: Any = object()
    process.request_done(user, "GET", "/", 5.0, 10, 100, BadStatus("status 500"), None, 0.0, None)
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
    one, other = (process.origin(f"http://127.0.0.1:{n}", users[0]).sources for n in (2, 3))
    assert one is not other, "each target counts its own ports"


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
