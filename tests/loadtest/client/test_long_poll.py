"""LongPollUser: one request that always waits, without a greenlet, answered and asked again."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest
from locust.env import Environment

from parked.loadtest.client import user as user_module
from parked.loadtest.client import waiting as waiting_module
from parked.user import LongPollUser
from tests.loadtest.client.test_user import Run
from tests.loadtest.peers import Peer, Served, eventually, response


@pytest.fixture(autouse=True)
def _without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_module, "START_SPREAD_S", 0.0)
    monkeypatch.setattr(waiting_module.WaitingUser, "_retry_failed_s", 0.05)


class Poller(LongPollUser):
    think_time = (0.2, 0.4)


def polling(environment: Environment, peer: Peer, count: int = 1, **attributes: Any) -> Run:
    return Run(environment, Poller, peer.url, **attributes).start(count)  # type: ignore[arg-type]


def kinds(run: Run) -> dict[str, int]:
    return {kind: count for kind, count in run.process.counters.failures_by_kind.items() if count}


def answer_late(served: Served) -> None:
    """As the demo application: after the seconds that the path says, with the time of sending."""
    while (request := served.read_request()) is not None:
        gevent.sleep(float(request.split(b" ")[1].partition(b"=")[2]))
        served.send(response(b'{"sent": %.6f}' % time.time()))


def test_polls_wait_without_greenlets_and_are_asked_again_when_answered(environment: Environment) -> None:
    with Peer(answer_late) as peer:
        run = polling(environment, peer, 10)
        heard, counters = run.process.heard, run.process.counters
        eventually(lambda: heard.streams == 10)
        eventually(lambda: all(handle.turn is None for handle in run.runner.user_greenlets))
        eventually(lambda: counters.requests >= 50)
        assert (counters.failures, counters.reconnects, len(peer.connections)) == (0, 0, 10)
        assert all(0.1 <= seconds <= 0.4 for seconds in counters.thinks_s)
        assert min(counters.latencies_ms) < 100  # beyond what was asked for, not all of the wait
        assert heard.sample()["deliveries"]
        run.runner.stop_users({"Poller": 10})
        eventually(lambda: run.runner.user_count == 0)
        assert heard.streams == counters.connections == 0
        assert not run.process.open_requests
        assert not run.process.readiness.waiting


def test_a_path_without_seconds_is_asked_as_it_is_and_timed_from_its_sending(
    environment: Environment,
) -> None:
    def serve(served: Served) -> None:
        while served.read_request() is not None:
            gevent.sleep(0.1)
            served.send(response())

    with Peer(serve) as peer:
        run = polling(environment, peer, path="/wait")
        eventually(lambda: run.process.counters.requests == 2)
        assert min(run.process.counters.latencies_ms) >= 100
        assert not run.user_class.draws_think_time()
        assert peer.requests[0].startswith(b"GET /wait HTTP/1.1\r\n")


def test_an_answer_that_does_not_come_times_out_and_is_asked_for_again(environment: Environment) -> None:
    def serve(served: Served) -> None:
        while served.read_request() is not None:
            pass

    with Peer(serve) as peer:
        run = polling(environment, peer, network_timeout=0.1)
        eventually(lambda: kinds(run).get("timeout", 0) >= 2)
        assert set(kinds(run)) == {"timeout"}


def test_a_poll_counts_as_open_once_its_answer_is_due(environment: Environment) -> None:
    with Peer(lambda served: served.read_request() and gevent.sleep(60)) as peer:
        run = polling(environment, peer, think_time=(0.3, 0.3))
        eventually(lambda: run.process.open_requests)
        (due,) = run.process.open_requests.values()
        assert run.process._open_s() == [] or time.perf_counter() >= due
        eventually(lambda: run.process._open_s())
        assert run.process.heard.streams == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (response(status="503 Full"), "status"),
        (b"nonsense", "protocol"),
        (b"", "closed_by_peer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "closed_by_peer"),
    ],
)
def test_an_answer_that_is_none_has_its_kind(environment: Environment, answer: bytes, kind: str) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(answer)

    with Peer(serve) as peer:
        run = polling(environment, peer)
        eventually(lambda: kinds(run).get(kind, 0) >= 2)
        assert set(kinds(run)) == {kind}
        run.runner.stop_users({"Poller": 1})
        eventually(lambda: run.runner.user_count == 0)
        assert not any(run.process.readiness._connections)


def test_an_answer_in_pieces_is_read_to_its_end(environment: Environment) -> None:
    body = response(b"0123456789" * 100)

    def serve(served: Served) -> None:
        while served.read_request() is not None:
            served.send(*(body[at : at + 50] for at in range(0, len(body), 50)), pause_s=0.001)

    with Peer(serve) as peer:
        run = polling(environment, peer)
        eventually(lambda: run.process.counters.requests >= 2)
        assert kinds(run) == {}
        assert set(run.process.counters.lengths) == {1000}


def test_users_that_are_stopped_in_the_middle_of_a_poll_end(environment: Environment) -> None:
    class Leaver(Poller):
        def on_stop(self) -> None:
            gevent.sleep(0.05)

    with Peer(answer_late) as peer:
        run = Run(environment, Leaver, peer.url).start(5)  # type: ignore[arg-type]
        eventually(lambda: run.process.heard.streams == 5)
        run.runner.stop_users({"Leaver": 5})
        eventually(lambda: run.runner.user_count == 0)
        assert run.process.heard.streams == run.process.counters.connections == 0
