from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import gevent.event
import pytest

from parked.server import defer
from parked.server.pending import PendingResponse
from tests.server.desk import POLL, Desk, attended, pending_at
from tests.support import GET, Client, eventually, serving

NOW = GET.replace(b"/ ", b"/now ")


def test_the_helper_calls_the_servers_own_or_says_what_is_missing() -> None:
    assert defer({"parked.defer": lambda **options: options}, timeout=3) == {"timeout": 3}
    with pytest.raises(RuntimeError, match=r"parked-server.*answer at once"):
        defer({})


def test_what_the_application_returns_and_says_is_ignored_and_closed() -> None:
    closed: list[str] = []

    class Result:
        def __iter__(self) -> Any:
            raise AssertionError("nobody reads it")

        def close(self) -> None:
            closed.append("closed")

    waiting: list[PendingResponse] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Result:
        early = start_response("500 Ignored", [("X-Ignored", "yes")])
        waiting.append(environ["parked.defer"]())
        early(b"ignored")
        start_response("404 Ignored", [], None)(b"ignored")
        return Result()

    with serving(application) as server, Client(server) as client:
        client.send(GET)
        eventually(lambda: closed)
        waiting[0].send("200 OK", [], b"sent")
        answer = client.answer()
        assert (answer.status, answer.body, answer.headers["X-Ignored"]) == (200, b"sent", None)
        client.send(GET)
        eventually(lambda: len(waiting) == 2)
        waiting[1].send("200 OK", [], b"sent")
        assert client.answer().body == b"sent"


def plain(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    environ["waiting"].append(environ["parked.defer"]())
    return []


def generator(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    environ["waiting"].append(environ["parked.defer"]())
    yield b"ignored"


def within_a_generator(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """As middleware is written now and then."""
    yield from plain(environ, start_response)
    start_response("200 Ignored", [("Content-Length", "5")])
    yield b"hello"


@pytest.mark.parametrize("application", [plain, generator, within_a_generator])
def test_an_application_may_defer_however_it_is_called_and_whatever_else_it_says(application: Any) -> None:
    waiting: list[PendingResponse] = []
    log = io.StringIO()
    environ = {"SERVER_NAME": "test", "waiting": waiting}
    with serving(application, environ=environ, error_log=log) as server, Client(server) as client:
        for number in (1, 2):
            client.send(GET)
            eventually(lambda number=number: len(waiting) == number)
            waiting[-1].send("200 OK", [], b"sent")
            assert client.answer().body == b"sent"
    assert log.getvalue() == ""


def refused(client: Client, error: str, data: bytes = GET) -> None:
    answer = client.ask(data)
    assert (answer.status, answer.body.decode()) == (200, error)


def test_defer_is_refused_when_it_is_too_late_or_too_early() -> None:
    """Each is a RuntimeError to the application, which answers here with its text."""
    kept: list[dict[str, Any]] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        path = environ["PATH_INFO"]
        if path == "/begun":
            start_response("200 OK", [("Content-Length", "40")])(b"x")
            try:
                environ["parked.defer"]()
            except RuntimeError as error:
                return [f"{error}"[:39].ljust(39).encode()]
        try:
            if path == "/twice":
                pending = environ["parked.defer"]()
                try:
                    environ["parked.defer"]()
                except RuntimeError as error:
                    pending.send("200 OK", [], str(error).encode())
            elif path == "/thread":
                gevent.get_hub().threadpool.apply(environ["parked.defer"])
            elif path == "/keep":
                kept.append(environ)
            elif path == "/timeout":
                environ["parked.defer"](timeout=-1)
            elif path == "/callback":
                environ["parked.defer"](on_close="no function")
            else:
                environ["parked.defer"]()
            text = "kept"
        except (RuntimeError, ValueError, TypeError) as error:
            text = str(error)
        start_response("200 OK", [])
        return [text.encode()]

    with serving(application) as server, Client(server) as client:
        refused(client, "parked.defer: called twice in one request", GET.replace(b"/ ", b"/twice "))
        refused(
            client, "parked.defer: this is another thread than the request's", GET.replace(b"/ ", b"/thread ")
        )
        refused(client, "timeout is a number of seconds, 0 or more: -1", GET.replace(b"/ ", b"/timeout "))
        refused(client, "on_close is a function of the pending response", GET.replace(b"/ ", b"/callback "))
        answer = client.ask(GET.replace(b"/ ", b"/begun "))
        assert answer.body == b"xparked.defer: the response has begun al"
        refused(
            client,
            "parked.defer: read the request's content first",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde",
        )
        refused(
            client,
            "parked.defer: read the request's content first",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        )
        refused(client, "kept", GET.replace(b"/ ", b"/keep "))
        with pytest.raises(RuntimeError, match="the request is over"):
            kept[0]["parked.defer"]()
        assert (server.pending.count, server.accepted) == (0, 1)


def test_content_that_was_read_is_no_obstacle() -> None:
    waiting: list[tuple[PendingResponse, bytes]] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        content = environ["wsgi.input"].read()
        waiting.append((environ["parked.defer"](), content))
        return []

    with serving(application) as server, Client(server) as client:
        for number, framing in enumerate(
            (b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        ):
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing)
            eventually(lambda number=number: len(waiting) > number)
            pending, content = waiting[number]
            pending.send("200 OK", [], content)
            assert client.answer().body == b"abc"


def test_an_application_that_fails_after_all_gets_its_500_as_usual() -> None:
    ended: list[str | None] = []
    waiting: list[PendingResponse] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        pending = environ["parked.defer"](timeout=0.1, on_close=lambda pending: ended.append(pending.reason))
        waiting.append(pending)
        if environ["PATH_INFO"] == "/started":
            pending.start("200 OK", [])
            pending.write(b"begun")
        elif environ["PATH_INFO"] == "/sent":
            pending.send("200 OK", [], b"sent")
        raise LookupError("on purpose")

    with serving(application) as server:
        with Client(server) as client:
            assert client.ask().status == 500
            assert not waiting[-1].send("200 OK", [], b"too late")
            assert client.closed()
        with Client(server) as client:
            client.send(GET.replace(b"/ ", b"/started "))
            assert client.rest().endswith(b"5\r\nbegun\r\n")  # cut off, and the client sees that
        with Client(server) as client:
            assert client.ask(GET.replace(b"/ ", b"/sent ")).body == b"sent"
            assert client.ask(GET.replace(b"/ ", b"/sent ")).body == b"sent"
        eventually(lambda: len(ended) == 4)
        assert ended == ["error", "error", "answered", "answered"]
        eventually(lambda: not server.parking.count)
        assert server.pending.count == 0


def test_the_log_has_its_line_at_the_end_with_the_whole_duration() -> None:
    log = io.StringIO()
    desk = Desk()
    with attended(desk, log=log) as desk, Client(desk.server) as client:
        client.send(POLL)
        pending = desk.wait_for()
        gevent.sleep(0.2)
        assert not log.getvalue()
        pending.send("202 Accepted", [], b"later")
        client.answer()
        desk.wait_for_end("answered")
        found = re.search(
            r'127\.0\.0\.1 - - \[.+\] "GET /poll HTTP/1\.1" 202 (\d+) (\d\.\d+)\n', log.getvalue()
        )
        assert found
        assert float(found[2]) >= 0.2
        client.send(POLL)
        desk.wait_for(2)
        client.file.close()
        client.sock.close()
        desk.wait_for_end("answered", "client")
        assert '"GET /poll HTTP/1.1" 000 - ' in log.getvalue()


def test_the_log_in_json_says_the_same() -> None:
    log = io.StringIO()
    desk = Desk()
    with pending_at(desk, log=log, logs_json=True) as (client, pending):
        pending.send("202 Accepted", [], b"later")
        client.answer()
        desk.wait_for_end("answered")
        entry = json.loads(log.getvalue())
        assert (entry["method"], entry["target"], entry["version"], entry["status"]) == (
            *("GET", "/poll", "HTTP/1.1"),
            202,
        )


def test_the_log_tells_content_from_heads() -> None:
    log = io.StringIO()
    desk = Desk()
    with attended(desk, log=log, log_format="%(m)s %(B)s %(b)s") as desk:
        requests = [POLL, POLL.replace(b"GET", b"HEAD"), POLL]
        for number, request in enumerate(requests, 1):
            with Client(desk.server) as client:
                client.send(request)
                pending = desk.wait_for(number)
                if number < 3:
                    pending.send("200 OK", [("X-Field", "x" * 300)], b"hello")
                else:
                    pending.start("200 OK", [])
                    pending.write(b"hello")
                    pending.close()
                client.answer(request.partition(b" ")[0].decode())
                eventually(lambda number=number: len(desk.ended) == number)
    assert log.getvalue().splitlines() == ["GET 5 5", "HEAD 0 -", "GET 15 15"]  # 10 of them frame the chunks


def test_responses_are_counted_when_they_end() -> None:
    class Counts:
        def __init__(self) -> None:
            self.notes: list[tuple[int | None, bool]] = []

        def note(self, status: int | None, sent_bytes: int, seconds: float) -> None:
            self.notes.append((status, sent_bytes > 0 and seconds >= 0))

        def note_refusal(self, status: int) -> None:
            raise AssertionError

    desk = Desk()
    with attended(desk) as desk, Client(desk.server) as client:
        counts = desk.server.statistics = Counts()
        client.send(POLL)
        pending = desk.wait_for()
        assert not counts.notes
        pending.send("200 OK", [], b"x")
        client.answer()
        assert client.ask(NOW).status == 200
        assert counts.notes == [(200, True), (200, True)]


def test_a_request_that_is_not_deferred_leaves_nothing_behind() -> None:
    """Its environ knows `defer`, which knows the handler, which knows environ: that circle is cut."""
    import gc

    gc.collect()
    gc.disable()
    try:
        with serving() as server, Client(server) as client:
            for _ in range(5):
                client.ask()
            before = len(gc.get_objects())
            for _ in range(50):
                client.ask()
            assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()
