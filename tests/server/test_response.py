"""All orders of start_response, write(), iteration, exceptions and close(), for GET and HEAD."""

from __future__ import annotations

import array
import collections
import io
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from parked.server.handler import KeepAliveWSGIHandler
from tests.support import GET, Client, serving

Start = Callable[..., Callable[[bytes], None]]

#: What a response may be made of, and with what framing.
STEPS = ("start", "start again", "start with exc_info", "write", "yield", "raise", "length")
ORDERS = [order for count in range(1, 4) for order in itertools.permutations(STEPS, count)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    hub = gevent.get_hub()
    hub.exception_stream = io.StringIO()
    yield
    del hub.exception_stream


def application(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
    """Takes the steps that the query names."""
    fields = [("Content-Length", "8")] if "length" in environ["QUERY_STRING"] else []
    write: Any = None
    for step in environ["QUERY_STRING"].split(","):
        if step == "start":
            write = start_response("200 OK", fields)
        elif step == "start_again":
            write = start_response("201 Created", [("X", "HTTP/1.1")])
        elif step == "start_with_exc_info":
            try:
                raise KeyError("deliberate")
            except KeyError:
                write = start_response("500 Oops", [], sys.exc_info())
        elif step == "write":
            write(b"from write")
        elif step == "yield":
            yield b"yielded"
        elif step == "raise":
            raise ValueError("deliberate")


def parsed(data: bytes, method: str) -> tuple[int, bool, bytes]:
    """Status, whether the response is whole, and what follows it."""
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    status = int(lines[0].split(b" ")[1])
    fields = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines[1:])}
    if method == "HEAD":
        return status, True, rest
    if b"content-length" in fields:
        length = int(fields[b"content-length"])
        return status, len(rest) >= length, rest[length:]
    assert fields[b"transfer-encoding"] == b"chunked"
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        assert rest[count : count + 2] in (b"\r\n", b"")
        rest = rest[count + 2 :]
        if not count:
            return status, True, rest
    return status, False, b""


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_order_of_steps_puts_anything_but_one_response_on_the_wire(method: str) -> None:
    with serving(application, error_log=None) as server:
        for order in ORDERS:
            query = ",".join(order).replace(" ", "_").encode()
            with Client(server) as client:
                client.send(GET.replace(b"GET / ", method.encode() + b" /?" + query + b" "))
                client.sock.shutdown(gevent.socket.SHUT_WR)
                status, whole, rest = parsed(client.rest(), method)
            assert rest == b"", order
            if "raise" in order and "length" not in order and status == 200 and method == "GET":
                begun = any(step in ("write", "yield") for step in order[: order.index("raise")])
                assert whole != begun, order
        assert server.faults == 0


def test_start_response_after_bytes_were_sent_ends_the_response_and_is_said() -> None:
    def stubborn(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        try:
            start_response("200 OK", [("Content-Length", "1000")])
        except AssertionError:
            pass  # never mind
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    log = io.StringIO()
    with serving(stubborn, error_log=log) as server, Client(server) as client:
        client.send(GET + GET)
        assert client.rest().endswith(b"\r\n\r\n5\r\nfirst\r\n")
        assert server.requests == 1
    assert (
        log.getvalue().count("start_response() was called again after a part of the response was sent") == 1
    )


def test_a_response_to_http_1_0_that_is_cut_is_seen_as_cut() -> None:
    def fails(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"some"
        raise ValueError("deliberate")

    with serving(fails) as server, Client(server) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.file.read()


def test_write_after_the_end_of_the_response_writes_into_no_other() -> None:
    kept: list[Any] = []

    def keeps(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        kept.append(start_response("200 OK", []))
        return [b"ok"]

    with serving(keeps) as server, Client(server) as client:
        assert client.ask().body == b"ok"
        with pytest.raises(AssertionError):
            kept[0](b"HTTP/1.1 200 OK\r\n\r\n")
        assert client.ask().body == b"ok"


def test_an_error_in_close_after_a_whole_response_takes_nothing_from_it() -> None:
    class Result:
        def __iter__(self) -> Iterator[bytes]:
            yield b"whole"

        def close(self) -> None:
            raise KeyError("deliberate")

    def closes(environ: dict[str, Any], start_response: Start) -> Any:
        start_response("200 OK", [])
        return Result()

    with serving(closes) as server:
        for request in (GET, b"GET / HTTP/1.0\r\n\r\n"):
            with Client(server) as client:
                assert client.ask(request).body == b"whole"
                assert client.closed()


@pytest.mark.parametrize(
    ("status", "length", "answered", "kept"),
    [("304 Not Modified", "100", 304, "100"), ("204 No Content", "0", 204, None), ("204 No", "5", 500, "21")],
)
def test_a_304_may_say_a_length_and_a_204_none(
    status: str, length: str, answered: int, kept: str | None
) -> None:
    def empty(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response(status, [("Content-Length", length)])
        return []

    with serving(empty) as server, Client(server) as client:
        answer = client.ask()
        assert (answer.status, answer.headers["Content-Length"]) == (answered, kept)
        if answered != 500:
            assert client.ask().status == answered


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_content_with_a_204_or_304_is_an_error_as_in_pywsgi(status: str) -> None:
    def talkative(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response(status, [])
        return [b"content"]

    with serving(talkative, error_log=None) as server, Client(server) as client:
        assert client.ask().status == 500
        assert client.closed()


class Fickle:
    """Yields less the next time."""

    times = 0

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[bytes]:
        Fickle.times += 1
        yield b"xx"[Fickle.times - 1 :]


NUMBERS = array.array("I", b"ABCDabcd")


@pytest.mark.parametrize(
    ("result", "status", "body"),
    [
        ([NUMBERS], 200, b"ABCDabcd"),
        ([NUMBERS, b"!"], 200, b"ABCDabcd!"),
        (iter([NUMBERS, memoryview(NUMBERS)]), 200, b"ABCDabcdABCDabcd"),
        (collections.deque([bytearray(b"ABC"), b"D"]), 200, b"ABCD"),
        (Fickle(), 200, b"x"),
        (["x" * 100_000], 500, b"Internal Server Error"),
        (iter([["no", "bytes"]]), 500, b"Internal Server Error"),
        ("text", 500, b"Internal Server Error"),
    ],
    ids=["array", "arrays", "iterated", "sequence", "fickle", "text", "list", "bare text"],
)
def test_whatever_content_is_made_of_its_framing_is_that_of_its_bytes(
    result: Any, status: int, body: bytes
) -> None:
    def application(environ: dict[str, Any], start_response: Start) -> Any:
        start_response("200 OK", [])
        return result

    with serving(application, error_log=io.StringIO()) as server, Client(server) as client:
        answer = client.ask()
        assert (answer.status, answer.body) == (status, body)
        if status == 500 or type(result) is Fickle:
            assert client.closed()
        else:
            assert client.ask().status == 200


# -- state of one request


def test_context_variables_and_a_lost_peer_of_the_applications_are_its_own() -> None:
    import contextvars

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        before = variable.get()
        variable.set("left")
        if environ["PATH_INFO"] == "/database":
            raise ConnectionResetError(104, "the database's")
        start_response("200 OK", [])
        return [before.encode()]

    class Fails(KeepAliveWSGIHandler):
        def handle_one_response(self) -> None:
            super().handle_one_response()
            if self.environ["PATH_INFO"] == "/fault":
                raise KeyError("deliberate")

    stream = gevent.get_hub().exception_stream
    log = io.StringIO()
    with serving(application, handler_class=Fails, error_log=log) as server, Client(server) as client:
        with Client(server) as fault:
            assert fault.ask(GET.replace(b"/ ", b"/fault ")).status == 200
            assert fault.closed()
        assert client.ask().body == client.ask().body == b"unset"
        with Client(server) as other:
            assert other.ask().body == b"unset"
            assert other.ask(GET.replace(b"/ ", b"/database ")).status == 500
    assert "the database's" in stream.getvalue()


class Reading(KeepAliveWSGIHandler):
    """Reads its requests itself, in a greenlet of its connection's own."""

    def read_requestline(self) -> Any:
        return super().read_requestline()


@pytest.mark.parametrize("handler", [KeepAliveWSGIHandler, Reading])
@pytest.mark.parametrize("framing", [[("Content-Length", "20000006")], []])
def test_a_response_that_the_applications_own_timeout_cuts_off_is_the_last(
    framing: list[tuple[str, str]], handler: type[KeepAliveWSGIHandler]
) -> None:
    def gives_up(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        write = start_response("200 OK", framing)
        write(b"begin;")
        with gevent.Timeout(0.1, False):
            write(b"x" * 20_000_000)
        return []

    with serving(gives_up, handler_class=handler, error_log=None) as server, Client(server) as client:
        client.send(GET * 2)
        gevent.sleep(0.3)  # and reads only now
        rest = client.rest()
        assert rest.count(b"HTTP/1.1 200") == 1
        assert not rest.endswith(b"0\r\n\r\n")
