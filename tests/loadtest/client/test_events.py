"""EventsUser: streams held without greenlets, coming back with Last-Event-ID, and failures with names."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import greenlet
import pytest
from locust.env import Environment

from parked.loadtest.client import user as user_module
from parked.loadtest.client import waiting as waiting_module
from parked.loadtest.client.events import EventStream
from parked.user import EventsUser
from tests.loadtest.client.test_user import Run
from tests.loadtest.peers import Peer, Served, eventually, response, server_tls

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def event(number: int) -> bytes:
    return b'id: %d\ndata: {"number": %d, "sent": %.6f}\n\n' % (number, number, time.time())


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture(autouse=True)
def _without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_module, "START_SPREAD_S", 0.0)
    monkeypatch.setattr(waiting_module.WaitingUser, "_retry_failed_s", 0.05)


class Listener(EventsUser):
    path = "/events"
    retry_s = 0.05


def listening(environment: Environment, peer: Peer, count: int = 1, **attributes: Any) -> Run:
    return Run(environment, Listener, peer.url, **attributes).start(count)  # type: ignore[arg-type]


def kinds(run: Run) -> dict[str, int]:
    return {kind: count for kind, count in run.process.counters.failures_by_kind.items() if count}


def stay(served: Served) -> None:
    served.read_request()  # the end of the connection


class Broadcaster:
    """Serves streams that stay open; `tell` writes to all of them."""

    def __init__(self, head: bytes = CHUNKED, chunks: bool = True) -> None:
        self._head, self._chunks = head, chunks
        self.streams: list[Served] = []

    def __call__(self, served: Served) -> None:
        if served.read_request():
            served.send(self._head)
            self.streams.append(served)
            stay(served)

    def tell(self, data: bytes) -> None:
        for served in self.streams:
            served.send(chunk(data) if self._chunks else data)


@pytest.mark.parametrize("chunks", [True, False])
def test_streams_are_held_without_greenlets_and_events_counted(
    environment: Environment, chunks: bool
) -> None:
    serve = Broadcaster(CHUNKED if chunks else HEAD + b"\r\n", chunks)
    with Peer(serve) as peer:
        run = listening(environment, peer, 20)
        heard = run.process.heard
        eventually(lambda: heard.streams == len(serve.streams) == 20)
        eventually(lambda: all(handle.turn is None for handle in run.runner.user_greenlets))
        for number in (5, 6, 7):
            serve.tell(event(number))
        serve.tell(b":\n\n")
        eventually(lambda: heard.events == 60 and heard.comments == 20)
        assert (heard.lost, heard.repeated, heard.disordered, heard.unnumbered) == (0, 0, 0, 0)
        broadcasts = {broadcast[0]: broadcast for broadcast in heard.sample()["broadcasts"]}
        assert [broadcasts[id_][4] for id_ in ("5", "6", "7")] == [20, 20, 20]
        assert all(sent <= first <= last for _, sent, first, last, _ in broadcasts.values())
        counters = run.process.counters
        assert (counters.requests, counters.failures, counters.reconnects) == (20, 0, 0)
        assert counters.received_bytes > 20 * 3 * len(event(5))
        run.runner.stop_users({"Listener": 20})
        eventually(lambda: run.runner.user_count == 0)
        assert heard.streams == counters.connections == 0


def test_bytes_that_come_with_the_head_and_in_pieces_are_one_stream(environment: Environment) -> None:
    data = chunk(event(1)) + chunk(event(2)[:9]) + chunk(event(2)[9:]) + chunk(event(3))

    def serve(served: Served) -> None:
        served.read_request()
        served.send(
            CHUNKED + data[:20], *(data[at : at + 7] for at in range(20, len(data), 7)), pause_s=0.001
        )
        stay(served)

    with Peer(serve) as peer:
        run = listening(environment, peer)
        eventually(lambda: run.process.heard.events == 3)
        assert run.process.heard.lost == 0
        assert kinds(run) == {}


def test_a_stream_over_tls_is_read_as_well(environment: Environment, tmp_path: Path) -> None:
    serve = Broadcaster()
    with Peer(serve, tls=server_tls(tmp_path)) as peer:
        run = listening(environment, peer, 2, insecure=True)
        eventually(lambda: len(serve.streams) == run.process.heard.streams == 2)
        for number in range(1, 51):
            serve.tell(event(number))
        eventually(lambda: run.process.heard.events == 100)
        assert (run.process.heard.lost, kinds(run)) == (0, {})


def test_more_than_one_receive_takes_at_once_is_read_to_its_end(environment: Environment) -> None:
    serve = Broadcaster()
    with Peer(serve) as peer:
        run = listening(environment, peer)
        eventually(lambda: serve.streams)
        serve.tell(b"".join(b"id: %d\ndata: %b\n\n" % (number, b"x" * 1000) for number in range(1000)))
        eventually(lambda: run.process.heard.events == 1000)
        assert run.process.heard.lost == 0


def test_a_stream_that_ends_comes_back_with_its_last_id_and_the_servers_patience(
    environment: Environment,
) -> None:
    def serve(served: Served) -> None:
        request = served.read_request()
        if served.number == 0:
            served.send(CHUNKED + chunk(b"retry: 10\n\n" + event(1) + event(2)) + b"0\r\n\r\n")
        else:
            assert request is not None
            served.send(CHUNKED + chunk(event(2) + event(3) + event(4)))
            stay(served)

    with Peer(serve) as peer:
        run = listening(environment, peer, retry_s=3600.0)
        eventually(lambda: run.process.heard.events == 5)
        first, second = peer.requests
        assert b"last-event-id" not in first.lower()
        assert b"\r\nlast-event-id: 2\r\n" in second.lower()
        assert b"\r\naccept: text/event-stream\r\n" in second.lower()
        heard = run.process.heard
        assert (heard.lost, heard.repeated) == (0, 1)  # 2 came twice, and counts once
        assert kinds(run) == {"stream_ended": 1}
        assert run.process.counters.reconnects == run.process.counters.closed_by_peer == 1


@pytest.mark.parametrize("id_", ["\u20ac", "\u00e9", "a b"])
def test_an_id_of_any_characters_goes_back_as_it_came(environment: Environment, id_: str) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        if served.number == 0:
            served.send(CHUNKED + chunk(f"retry: 10\nid: {id_}\ndata: x\n\n".encode()) + b"0\r\n\r\n")
        stay(served)

    with Peer(serve) as peer:
        listening(environment, peer)
        eventually(lambda: len(peer.requests) == 2)
        assert f"\r\nLast-Event-ID: {id_}\r\n".encode() in peer.requests[1]


def test_a_kind_of_content_that_the_server_has_made_up_is_not_told(environment: Environment) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(b"HTTP/1.1 200 OK\r\nContent-Type: x/%d\r\nContent-Length: 0\r\n\r\n" % served.number)

    with Peer(serve) as peer:
        listening(environment, peer)
        eventually(lambda: len(peer.requests) >= 3)
        environment.parked_process.statistics.fold()  # type: ignore[attr-defined]
        assert {str(error.error) for error in environment.stats.errors.values()} == {
            "content type of another kind, no event stream"
        }


@pytest.mark.parametrize(
    ("head", "body", "kind"),
    [
        (CHUNKED, chunk(event(1)) + b"0\r\n\r\n", "stream_ended"),
        (HEAD + b"Connection: close\r\n\r\n", event(1), "stream_ended"),
        (HEAD + b"Content-Length: 5\r\n\r\n", b": abc", "stream_ended"),
        (CHUNKED, chunk(event(1)) + b"5\r\nda", "closed_by_peer"),
        (CHUNKED, chunk(event(1)), "closed_by_peer"),
        (HEAD + b"Content-Length: 500\r\n\r\n", b": abc", "closed_by_peer"),
        (CHUNKED, chunk(event(1)) + b"nonsense\r\n", "protocol"),
        (CHUNKED, chunk(b"data: " + b"x" * 200_000), "too_large"),
        (CHUNKED, chunk(b"data: x\n" * 20_000), "too_large"),
        (CHUNKED, chunk(b":" + b"x" * 200_000), "too_large"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n", b"ok", "no_events"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok", "no_events"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", b"", "no_events"),
        (b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n", b"", "status"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n", b"", "protocol"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"", "protocol"),
        (b"", b"", "closed_by_peer"),
    ],
)
def test_each_thing_that_can_be_wrong_has_its_kind_and_leaves_nothing(
    environment: Environment, head: bytes, body: bytes, kind: str
) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(head, body)

    with Peer(serve) as peer:
        run = listening(environment, peer, max_event_bytes=100_000)
        eventually(lambda: kinds(run).get(kind, 0) >= 3, f"{kind}: {kinds(run)}")
        assert set(kinds(run)) == {kind}
        run.runner.stop_users({"Listener": 1})
        eventually(lambda: run.runner.user_count == 0)
        assert run.process.heard.streams == run.process.counters.connections == 0
        assert not any(run.process.readiness._connections)


def test_a_flood_of_comments_and_events_without_ids_are_counted_and_no_failure(
    environment: Environment,
) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(
            CHUNKED, chunk(b":\n" * 50_000), chunk(b"data: a\n\n" + event(1) + b"data: b\n\n" + event(2))
        )
        stay(served)

    with Peer(serve) as peer:
        run = listening(environment, peer)
        heard = run.process.heard
        eventually(lambda: heard.events == 4)
        assert (heard.comments, heard.unnumbered, heard.lost) == (50_000, 2, 0)
        assert kinds(run) == {}


def test_a_line_of_very_many_bytes_is_given_up_early(environment: Environment) -> None:
    sent = [0]

    def serve(served: Served) -> None:
        served.read_request()
        served.send(CHUNKED + b"40000000\r\ndata: ")
        for _ in range(1 << 14):  # 1 GiB
            served.send(b"x" * 65_536)
            sent[0] += 65_536

    with Peer(serve) as peer:
        run = listening(environment, peer, retry_s=3600.0)
        eventually(lambda: kinds(run) == {"too_large": 1})
        assert sent[0] < 64 << 20


def test_a_204_ends_the_user_for_good(environment: Environment) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        stay(served)

    with Peer(serve) as peer:
        run = listening(environment, peer, 3)
        eventually(lambda: run.runner.user_count == 0)
        assert kinds(run) == {"no_events": 3}
        assert len(peer.requests) == 3


def test_a_reader_of_ones_own_that_raises_is_told_once_and_counted(
    environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(data: bytes) -> float | None:
        raise KeyError("mine")

    serve = Broadcaster()
    with Peer(serve) as peer:
        run = listening(environment, peer, retry_s=3600.0, sent_at=staticmethod(wrong))
        eventually(lambda: serve.streams)
        serve.tell(event(1))
        eventually(lambda: kinds(run) == {"other": 1})
        assert "KeyError: 'mine'" in capsys.readouterr().err


def test_a_class_with_tasks_is_refused(environment: Environment) -> None:
    class Mixed(Listener):
        def task(self) -> None: ...

        tasks = [task]  # noqa: RUF012

    with pytest.raises(Exception, match="has tasks"):
        Mixed(environment)


def test_users_that_end_while_a_turn_is_on_its_way_do_not_come_back(environment: Environment) -> None:
    serve = Broadcaster()
    with Peer(serve) as peer:
        run = listening(environment, peer, 10, retry_s=0.0)
        eventually(lambda: run.process.heard.streams == 10)
        for served in serve.streams:
            served.send(b"0\r\n\r\n")
        gevent.sleep(0.001)
        run.runner.stop_users({"Listener": 10})
        eventually(lambda: run.runner.user_count == 0)
        gevent.sleep(0.05)
        assert run.process.counters.connections == run.process.heard.streams == 0


def alive() -> tuple[int, int, int]:
    gc.collect()
    objects = gc.get_objects()
    streams = sum(isinstance(found, EventStream) for found in objects)
    greenlets = sum(isinstance(found, greenlet.greenlet) and not found.dead for found in objects)
    return len(list(Path("/proc/self/fd").iterdir())), streams, greenlets


@pytest.fixture
def _collected() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_collected")
def test_streams_that_end_and_come_back_very_often_leave_nothing(environment: Environment) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(
            (CHUNKED + chunk(event(1)) + b"0\r\n\r\n", response(b"no"), CHUNKED + b"x")[served.number % 3]
        )

    with Peer(serve) as peer:
        run = listening(environment, peer, 5, retry_s=0.0, _retry_failed_s=0.0)
        eventually(lambda: len(peer.connections) > 40)
        before = alive()
        eventually(lambda: len(peer.connections) > 160)
        after = alive()
        assert after[1] <= 5
        assert all(now <= then + 20 for now, then in zip(after, before, strict=True))
        run.runner.stop_users({"Listener": 5})
        eventually(lambda: run.runner.user_count == 0)
