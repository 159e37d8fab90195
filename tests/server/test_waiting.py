from __future__ import annotations

import contextvars
import io
import weakref
from typing import Any

import gevent
import gevent.event
import gevent.local
import pytest

from parked.server import lingering
from parked.server import waiting as module
from parked.server.handler import KeepAliveWSGIHandler
from parked.server.pending import PendingResponse
from tests.server.desk import POLL, Desk, attended, ended, pending_at
from tests.support import GET, PATIENCE_S, Client, eventually


@pytest.fixture(autouse=True)
def _short_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our clients stay open to see the end, and nobody waits for what they might still send."""
    monkeypatch.setattr(lingering, "LINGER_S", 0.1)
    monkeypatch.setattr(lingering, "HASTY_LINGER_S", 0.1)


NOW = GET.replace(b"/ ", b"/now ")


@pytest.mark.parametrize("way", ["stop", "drain", "retire"])
def test_a_server_that_stops_answers_what_waits_and_ends_streams_in_order(way: str) -> None:
    desk = Desk()
    with attended(desk) as desk, Client(desk.server) as polls, Client(desk.server) as streams:
        polls.send(POLL)
        desk.wait_for(1)
        streams.send(POLL)
        stream = desk.wait_for(2)
        stream.start("200 OK", [])
        stream.write(b"event")
        if way == "drain":
            assert desk.server.drain(5)
        else:
            getattr(desk.server, way)()
        answer = polls.answer()
        assert (answer.status, answer.headers["Connection"]) == (503, "close")
        assert int(answer.headers["Retry-After"]) >= 1
        assert streams.answer().body == b"event"
        assert polls.closed()
        assert streams.closed()
        desk.wait_for_end("shutdown", "shutdown")
        assert desk.server.drained.wait(5)


def test_the_application_says_what_a_stop_means() -> None:
    def goodbye(pending: PendingResponse) -> None:
        if pending.context == "stream":
            pending.write(b"goodbye")
        else:
            pending.send("200 OK", [], b"goodbye")

    desk = Desk(on_shutdown=goodbye)
    with attended(desk) as desk, Client(desk.server) as polls, Client(desk.server) as streams:
        polls.send(POLL)
        desk.wait_for(1)
        streams.send(POLL)
        stream = desk.wait_for(2)
        stream.context = "stream"
        stream.start("200 OK", [])
        desk.server.retire()
        assert polls.answer().body == b"goodbye"
        assert streams.answer().body == b"goodbye"
        assert desk.server.drained.wait(5)
        assert sorted(map(str, desk.ended)) == ["answered", "shutdown"]


def test_a_response_given_for_the_stop_is_sent() -> None:
    desk = Desk(on_shutdown=("200 OK", [("X-Again", "1")], b""))
    with pending_at(desk) as (client, _):
        desk.server.retire()
        answer = client.answer()
        assert (answer.status, answer.headers["X-Again"], answer.headers["Connection"]) == (200, "1", "close")


def test_what_becomes_pending_while_the_server_retires_is_ended_at_once() -> None:
    desk = Desk()
    with attended(desk) as desk, Client(desk.server) as client:
        assert client.ask(NOW).status == 200
        desk.server.retire()
        assert client.ask(POLL).status == 503
        assert client.closed()


def test_a_server_that_stops_waits_for_callbacks() -> None:
    noted: list[PendingResponse] = []

    def note(pending: PendingResponse) -> None:
        gevent.sleep(0.02)
        noted.append(pending)

    desk = Desk(on_close=note)
    with attended(desk) as desk:
        clients = [Client(desk.server) for _ in range(80)]
        for client in clients:
            client.send(POLL)
        desk.wait_for(80)
        desk.server.retire()
        for client in clients:
            assert client.answer().status == 503
            client.__exit__()
        assert desk.server.drained.wait(PATIENCE_S)
        assert len(noted) == 80


def test_many_are_stopped_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOPS_A_TURN", 3)
    desk = Desk()
    with attended(desk) as desk:
        clients = [Client(desk.server) for _ in range(10)]
        for client in clients:
            client.send(POLL)
        desk.wait_for(10)
        assert desk.server.drain(5)
        for client in clients:
            assert client.answer().status == 503
            client.__exit__()


def test_beyond_the_limit_the_client_gets_a_503_and_the_application_one_that_has_ended() -> None:
    desk = Desk()
    with attended(desk, max_pending=1) as desk, Client(desk.server) as first, Client(desk.server) as second:
        first.send(POLL)
        desk.wait_for(1)
        answer = second.ask(POLL)
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert not desk.waiting[1].send("200 OK", [], b"")
        desk.wait_for_end("limit")
        assert second.ask(NOW).body == b"now"
        desk.waiting[0].send("200 OK", [], b"x")
        first.answer()
        second.send(POLL)
        desk.wait_for(3).send("200 OK", [], b"room")
        assert second.answer().body == b"room"


def test_callbacks_that_block_do_not_keep_others_waiting() -> None:
    gate = gevent.event.Event()
    done: list[Any] = []

    def blocks(pending: PendingResponse) -> None:
        gate.wait()
        done.append("blocked")

    desk = Desk(on_close=blocks)
    with attended(desk) as desk, Client(desk.server) as client:
        for number in range(3):
            client.send(POLL)
            pending = desk.wait_for(number + 1)
            if number == 2:
                pending._on_close = lambda pending: done.append("quick")
            pending.send("200 OK", [], b"x")
            client.answer()
        eventually(lambda: done == ["quick"])
        assert client.ask(NOW).status == 200
        gate.set()
        eventually(lambda: len(done) == 3)


def test_nothing_that_a_callback_leaves_on_its_greenlet_meets_the_next_one() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    local = gevent.local.local()
    found: list[Any] = []

    def leave(pending: PendingResponse) -> None:
        found.append((variable.get(), getattr(local, "value", "unset")))
        if len(found) == 4:
            gevent.sleep(0.05)
            found.append("slept")
        variable.set("left")
        local.value = "left"
        gevent.Timeout.start_new(0.01, KeyError("of another callback"))

    log = io.StringIO()
    with attended(Desk(on_close=leave), error_log=log) as desk:
        clients = [Client(desk.server) for _ in range(4)]
        for client in clients:
            client.send(POLL)
        desk.wait_for(4)
        for pending in desk.waiting:
            pending.send("200 OK", [], b"")
        eventually(lambda: len(found) == 5 or log.getvalue())
        for client in clients:
            client.__exit__()
    assert found == [("unset", "unset")] * 4 + ["slept"]
    assert log.getvalue() == ""


def test_callbacks_run_outside_of_the_applications_calls() -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        pending.send("200 OK", [], b"x")
        assert not desk.ended
        client.answer()
        desk.wait_for_end("answered")


def test_a_stream_that_is_begun_at_the_timeout_ends_if_that_fails_in_the_middle() -> None:
    def fails(pending: PendingResponse) -> None:
        pending.start("200 OK", [])
        pending.write(b"some")
        raise RuntimeError("on purpose")

    desk = Desk(timeout=0.05, on_timeout=fails)
    with pending_at(desk, error_log=io.StringIO()) as (client, _):
        assert client.rest().endswith(b"\r\n\r\n4\r\nsome\r\n")
        desk.wait_for_end("error")


def test_it_may_be_kept_wherever_the_application_likes() -> None:
    with pending_at(Desk()) as (_, pending):
        assert pending in weakref.WeakSet([pending])


def test_figures_add_up() -> None:
    desk = Desk()
    with attended(desk) as desk, Client(desk.server) as client:
        client.send(POLL)
        desk.wait_for(1).send("200 OK", [], b"x")
        client.answer()
        client.send(POLL)
        stream = desk.wait_for(2)
        stream.start("200 OK", [])
        stream.write(b"x")
        stream.write(b"y")
        stream.close()
        assert client.answer().body == b"xy"
        pending = desk.server.pending
        assert (pending.count, pending.deferred, pending.messages) == (0, 2, 4)
        assert ended(pending) == {"answered": 1, "closed": 1}


def failing_once(function: Any) -> Any:
    """*function*, whose first call is a fault of ours."""
    calls: list[Any] = []

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("on purpose")
        return function(*arguments)

    return call


@pytest.mark.parametrize("where", ["deadline", "callback", "stop"])
def test_a_fault_in_ending_one_costs_its_client_only_and_is_counted(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PendingResponse, "_give", failing_once(PendingResponse._give))
    options: dict[str, Any] = {
        "deadline": {"timeout": 0.05},
        "callback": {"timeout": 0.05, "on_timeout": lambda pending: None},
        "stop": {},
    }[where]
    desk = Desk(**options)
    with attended(desk) as desk, Client(desk.server) as one, Client(desk.server) as other:
        one.send(POLL)
        other.send(POLL)
        if where == "stop":
            desk.wait_for(2)
            desk.server.stop()
        # What each gets: nothing if it is closed.
        beginnings = sorted(client.sock.recv(12) for client in (one, other))
        assert beginnings == [b"", b"HTTP/1.1 503" if where == "stop" else b"HTTP/1.1 504"]
        reasons = ["error", "shutdown" if where == "stop" else "timeout"]
        eventually(lambda: sorted(map(str, desk.ended)) == reasons)
        assert desk.server.faults == 1
        assert desk.server.pending.count == 0


def test_a_fault_in_telling_of_events_costs_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PendingResponse, "_on_events", failing_once(PendingResponse._on_events))
    with attended(Desk()) as desk, Client(desk.server) as one, Client(desk.server) as other:
        one.send(POLL)
        desk.wait_for(1)
        other.send(POLL)
        pending = desk.wait_for(2)
        one.sock.shutdown(gevent.socket.SHUT_WR)
        assert one.closed()
        desk.wait_for_end("error")
        assert (desk.server.faults, desk.server.pending.count) == (1, 1)
        pending.send("200 OK", [], b"all right")
        assert other.answer().body == b"all right"


def test_a_pending_response_that_cannot_be_logged_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with pending_at(Desk(), log=None) as (client, pending):
        desk: Any = pending._host
        monkeypatch.setattr(desk, "_on_end", failing_once(desk._on_end))
        pending.send("200 OK", [], b"all right")
        assert client.answer().body == b"all right"
        assert client.ask(NOW).body == b"now"
        assert desk.count == 0


def test_an_error_that_cannot_say_what_it_is_costs_its_line_only() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError("not even that")

    def fails(pending: PendingResponse) -> None:
        raise Odd

    with pending_at(Desk(timeout=0.05, on_timeout=fails)) as (client, _):
        assert client.answer().status == 504


def test_a_fault_behind_the_request_ends_its_pending_response_too() -> None:
    class Fails(KeepAliveWSGIHandler):
        def handle_one_response(self) -> None:
            super().handle_one_response()
            raise KeyError("deliberate")

    desk = Desk()
    with attended(desk, handler_class=Fails, error_log=io.StringIO()), Client(desk.server) as client:
        client.send(POLL)
        assert client.closed()
        desk.wait_for_end("client")
        assert (desk.server.pending.count, desk.server.parking.count, desk.server.faults) == (0, 0, 1)
