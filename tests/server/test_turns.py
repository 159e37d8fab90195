from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from parked.server import turns
from parked.server.turns import of_hub
from tests.support import GET, Client, eventually, serving

UPLOAD = b"POST /%b HTTP/1.1\r\nHost: test\r\n%b\r\n\r\n%b"
CHUNKED = b"Transfer-Encoding: chunked"
UPGRADE = b"GET /socket HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n"
LINES = b"\n" * 150_000
SELFISH = {
    "content in chunks of one byte": UPLOAD % (b"read", CHUNKED, b"1\r\nx\r\n" * 25_000 + b"0\r\n\r\n"),
    "chunks with extensions": UPLOAD % (b"read", CHUNKED, b"2;a\r\nxx\r\n" * 15_000 + b"0\r\n\r\n"),
    "content read a byte at a time": UPLOAD % (b"bytes", b"Content-Length: 100000", b"x" * 100_000),
    "content of empty lines": UPLOAD % (b"lines", b"Content-Length: 150000", LINES),
    "content that nobody reads": UPLOAD % (b"", CHUNKED, b"1\r\nx\r\n" * 25_000 + b"0\r\n\r\n"),
    "a response in small pieces": GET.replace(b"/", b"/pieces", 1),
    "pipelined requests": GET.replace(b"/", b"/first", 1) + GET.replace(b"/", b"/next", 1) * 30,
}


class Application:
    """Sends another client's request when it is first called, and notes what is answered in which order."""

    def __init__(self) -> None:
        self.when_called: Callable[[], None] = lambda: None
        self.order: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        path, content = environ["PATH_INFO"], environ["wsgi.input"]
        if path != "/other":
            self.when_called()
        if path == "/read":
            while content.read(4096):
                pass
        elif path == "/bytes":
            while content.read(1):
                pass
        elif path == "/lines":
            for _ in content:
                pass
        elif path == "/next":
            for _ in range(10_000):
                pass
        start_response("200 OK", [])
        if path == "/pieces":
            yield from [b"x"] * 10_000
        self.order.append(path)
        yield b"."


@pytest.mark.parametrize("selfish", SELFISH.values(), ids=SELFISH.keys())
def test_another_client_is_served_before_one_whose_bytes_are_always_there(
    selfish: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0002)
    application = Application()
    with serving(application) as server, Client(server) as other, Client(server) as client:
        eventually(lambda: server.parking.count == 2)
        calls: list[Callable[[], None]] = [lambda: other.send(GET.replace(b"/", b"/other", 1))]
        application.when_called = lambda: calls.pop()() if calls else None
        client.send(selfish + GET.replace(b"/", b"/last", 1))
        other.answer()
        eventually(lambda: "/last" in application.order)
    assert application.order.index("/other") < application.order.index("/last")


def test_another_client_is_served_before_one_who_floods_a_socket_that_the_application_has_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0002)
    order: list[str] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/socket":
            sock = environ["wsgi.input"].raw._sock
            sock.sendall(b"go")
            assert sock.recv(2)
            other.send(GET)
            for _ in range(30_000):
                assert sock.recv(2)
        else:
            start_response("200 OK", [])
        order.append(environ["PATH_INFO"])
        return []

    with serving(application) as server, Client(server) as other, Client(server) as client:
        eventually(lambda: server.parking.count == 2)
        client.send(UPGRADE)
        assert client.file.read(2) == b"go"
        client.send(bytes(60_002))
        other.answer()
        eventually(lambda: "/socket" in order)
    assert order == ["/", "/socket"]


def test_all_who_take_turns_share_one_between_two_polls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(turns, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(turns, "TURN_S", 50.0)
    shared = of_hub()
    shared.ends = 0.0
    loop = gevent.get_hub().loop
    pieces: Counter[int] = Counter()

    def selfish() -> None:
        for _ in range(100):
            shared.share()
            pieces[loop.iteration] += 1

    gevent.joinall([gevent.spawn(selfish) for _ in range(10)])
    shared.ends = 0.0
    assert pieces.total() == 1000
    assert max(pieces.values()) <= 60  # whoever ends a turn has one piece more
    assert len(pieces) > 10
    assert capsys.readouterr().err == ""  # nothing has gone wrong in the hub


def test_a_turn_is_not_over_before_its_time_however_often_that_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "monotonic", lambda: now)
    mine = turns.Turns(gevent.get_hub())
    now = 100.0
    assert [mine.over(), mine.over()] == [False, False]
    now += turns.TURN_S
    assert [mine.over(), mine.over()] == [True, True]  # nobody has polled since


def test_who_waits_for_a_turn_can_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    shared = of_hub()
    shared.over()
    waiting = gevent.spawn(lambda: [shared.share() for _ in range(1_000_000)])
    gevent.sleep(0.01)
    waiting.kill()
    assert waiting.dead
    gevent.sleep(0.01)  # nobody switches to it any more
    assert not shared._queue


def test_a_timeout_reaches_who_waits_for_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    shared = of_hub()

    def share_for_ever() -> None:
        with gevent.Timeout(0.02):
            while True:
                shared.share()

    with pytest.raises(gevent.Timeout):
        share_for_ever()
    gevent.sleep(0.001)
    assert not shared._queue


def test_one_whose_turn_ends_in_an_error_takes_nobody_elses(capsys: pytest.CaptureFixture[str]) -> None:
    shared, served = of_hub(), []

    def fail() -> None:
        raise RuntimeError("on purpose")

    for callback in (fail, lambda: served.append(1), fail, lambda: served.append(2)):
        shared.after_poll(callback)
    eventually(lambda: served == [1, 2])
    assert capsys.readouterr().err.count("RuntimeError: on purpose") == 2
