from __future__ import annotations

import json
import time
from collections.abc import Iterator

import falcon.testing
import gevent
import pytest

from app import pending as module
from app.wsgi import create_app
from parked.server.server import KeepAliveWSGIServer
from tests.support import GET, Client, eventually, serving


@pytest.fixture
def server() -> Iterator[KeepAliveWSGIServer]:
    with serving(create_app()) as server:
        yield server


def request(path: str, *fields: bytes) -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return GET.replace(b"/ ", path.encode() + b" ").replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n")


def events(client: Client, count: int) -> list[tuple[int, dict[str, float]]]:
    """Number and data of the next events of a stream."""
    found: list[tuple[int, dict[str, float]]] = []
    number = 0
    while len(found) < count:
        line = client.file.readline()
        assert line
        if line.startswith(b"id: "):
            number = int(line[4:])
        elif line.startswith(b"data: "):
            found.append((number, json.loads(line[6:])))
    return found


def test_a_poll_is_answered_after_the_seconds_asked_for_and_its_connection_kept(
    server: KeepAliveWSGIServer,
) -> None:
    with Client(server) as client:
        began = time.monotonic()
        answer = client.ask(request("/poll?seconds=0.3"))
        assert answer.status == 200
        assert time.monotonic() - began >= 0.3
        assert abs(float(answer.body) - time.time()) < 5
        assert client.ask().status == 200
        assert server.pending.endings["timeout"] == 1


def test_a_poll_is_answered_early_when_the_server_reloads(server: KeepAliveWSGIServer) -> None:
    with Client(server) as client:
        client.send(request("/poll?seconds=100"))
        eventually(lambda: server.pending.count == 1)
        server.retire()
        answer = client.answer()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")


def test_everybody_gets_the_same_events_one_after_the_other(server: KeepAliveWSGIServer) -> None:
    with Client(server) as one, Client(server) as other:
        one.send(request("/events?every=0.2"))
        other.send(request("/events?every=0.2"))
        first, second = events(one, 4), events(other, 4)
        numbers = [number for number, _ in first]
        assert numbers == list(range(numbers[0], numbers[0] + 4))
        same = dict(first).keys() & dict(second).keys()
        assert len(same) >= 3
        for number in same:
            assert dict(first)[number] == dict(second)[number]
            assert dict(first)[number]["number"] == number
            assert dict(first)[number]["sent"] >= number * 0.2


def test_sockets_are_looked_at_in_the_middle_of_a_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        context = 0

        def write(self, event: bytes) -> bool:
            polls.append(gevent.get_hub().loop.iteration)
            return True

    polls: list[int] = []
    monkeypatch.setattr(module, "STREAMS_A_TURN", 2)
    broadcast = module.Broadcast(60)
    broadcast._streams = {Stream() for _ in range(8)}
    broadcast._tell(1)
    assert [polls.count(poll) for poll in sorted(set(polls))] == [2, 2, 2, 2]


def test_a_broadcast_is_spread_and_hurries_when_that_took_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(gevent, "sleep", pauses.append)
    streams = list(range(10 * module.STREAMS_A_TURN + 1))
    assert list(module._in_turns(streams)) == streams
    assert len(pauses) == 10
    assert min(pauses) >= module.PAUSE_S
    pauses.clear()
    clock = iter([0.0, 0.0, 3600.0])  # stopped for an hour in the first turn
    with monkeypatch.context() as stopped:
        stopped.setattr(module.time, "monotonic", lambda: next(clock, 3600.0))
        assert list(module._in_turns(streams)) == streams
    assert max(pauses) <= 2 * module.MAX_PAUSE_S
    pauses.clear()
    monkeypatch.setattr(module, "SPREAD_S", -1.0)  # over before it begins
    streams = list(range(2 * module.STREAMS_WHEN_LATE + 1))
    assert list(module._in_turns(streams)) == streams
    assert len(pauses) == 2
    assert min(pauses) >= module.PAUSE_WHEN_LATE_S


def test_who_comes_back_gets_what_was_missed_once(server: KeepAliveWSGIServer) -> None:
    with Client(server) as client:
        client.send(request("/events?every=0.2"))
        last = events(client, 1)[0][0]
    eventually(lambda: server.pending.count == 0)
    time.sleep(0.5)
    with Client(server) as client:
        client.send(request("/events?every=0.2", b"Last-Event-ID: %d" % last))
        assert [number for number, _ in events(client, 5)] == list(range(last + 1, last + 6))


@pytest.mark.parametrize("last", [b"9" * 5_000, b"9" * 18, b"-1", b"x", b""])
def test_who_comes_back_with_nonsense_gets_the_next_event(server: KeepAliveWSGIServer, last: bytes) -> None:
    with Client(server) as client:
        client.send(request("/events?every=0.2", b"Last-Event-ID: " + last))
        numbers = [number for number, _ in events(client, 2)]
        assert numbers[1] == numbers[0] + 1


def test_the_broadcast_ends_with_its_last_stream(server: KeepAliveWSGIServer) -> None:
    for _ in range(2):
        with Client(server) as client:
            client.send(request("/events?every=0.1", b"Last-Event-ID: nonsense"))
            assert events(client, 2)
        eventually(lambda: server.pending.count == 0)


@pytest.mark.parametrize(
    "query", ["", "seconds=", "seconds=x", "seconds=-1", "seconds=0", "seconds=1e9", "seconds=nan"]
)
def test_seconds_that_make_no_sense_are_a_clear_problem(query: str) -> None:
    client = falcon.testing.TestClient(create_app())
    assert client.simulate_get("/poll", query_string=query).status_code == 400
    assert client.simulate_get("/events", query_string=query.replace("seconds", "every")).status_code == 400


def test_another_server_says_that_it_cannot() -> None:
    client = falcon.testing.TestClient(create_app())
    for path in ("/poll?seconds=1", "/events?every=1"):
        assert client.simulate_get(path).status_code == 501
