from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import gevent
import pytest

from parked.server import body, handler, lingering, response
from parked.server.handler import KeepAliveWSGIHandler
from parked.server.limits import Limits
from tests.support import GET, Answer, Client, eventually, hello, serving

Start = Callable[..., Callable[[bytes], None]]
HEAD = GET.replace(b"GET", b"HEAD")
HTTP10 = b"GET / HTTP/1.0\r\n\r\n"
HTTP10_KEPT = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"


@pytest.fixture
def quiet() -> Iterator[io.StringIO]:
    """Where tracebacks of the application go."""
    hub = gevent.get_hub()
    hub.exception_stream = stream = io.StringIO()
    yield stream
    del hub.exception_stream  # from now on it is whatever standard error is


def post(content: bytes, *fields: bytes, path: bytes = b"/") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: test", b"Content-Length: %d" % len(content), *fields]
    return b"\r\n".join([*lines, b"", content])


def chunked(*chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + last


def app(result: Any, status: str = "200 OK", headers: list[tuple[str, str]] | None = None) -> Any:
    def application(environ: dict[str, Any], start_response: Start) -> Any:
        start_response(status, list(headers or []))
        return result() if callable(result) else result

    return application


def reading(read: Callable[[Any], bytes]) -> Any:
    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        content = read(environ["wsgi.input"])
        start_response("200 OK", [])
        return [content]

    return application


def ask(application: Any, request: bytes = GET, **options: Any) -> tuple[Answer, bool]:
    """The answer, and whether the connection serves another request after it."""
    with serving(application, **options) as server, Client(server) as client:
        answer = client.ask(request)
        try:
            client.send(GET)
            kept = client.sock.recv(4) == b"HTTP"
        except OSError:
            kept = False
        return answer, kept


# -- framing


def test_a_list_gets_a_length_and_keeps_the_connection() -> None:
    answer, kept = ask(app([b"a", b"", b"bc"]))
    assert (answer.body, answer.headers["Content-Length"], kept) == (b"abc", "3", True)


def test_a_generator_is_chunked_for_1_1_and_ends_with_the_connection_for_1_0() -> None:
    application = app(lambda: iter([b"a", b"", b"bc"]))
    answer, kept = ask(application)
    assert (answer.body, answer.headers["Transfer-Encoding"], kept) == (b"abc", "chunked", True)
    for request in (HTTP10, HTTP10_KEPT):
        answer, kept = ask(application, request)
        assert (answer.body, answer.headers["Connection"], kept) == (b"abc", "close", False)
        assert "Transfer-Encoding" not in answer.headers


def test_each_chunk_of_a_generator_leaves_at_once() -> None:
    gate = gevent.event.Event()

    def stream() -> Iterator[bytes]:
        yield b"first"
        gate.wait()
        yield b"second"

    with serving(app(stream)) as server, Client(server) as client:
        client.send(GET)
        eventually(lambda: b"first" in client.file.readline())
        gate.set()
        assert client.file.read(16) == b"6\r\nsecond\r\n0\r\n\r\n"


def test_http_1_0_keeps_the_connection_only_if_asked_to() -> None:
    answer, kept = ask(hello, HTTP10_KEPT)
    assert (answer.headers["Connection"], kept) == ("keep-alive", True)
    answer, kept = ask(hello, HTTP10)
    assert (answer.headers["Connection"], kept) == ("close", False)


@pytest.mark.parametrize("result", [[b"hello"], lambda: iter([b"hel", b"lo"])])
def test_head_has_the_header_of_get_and_no_content(result: Any) -> None:
    answer, kept = ask(app(result), HEAD)
    assert (answer.body, kept) == (b"", True)
    framing = "Content-Length" if isinstance(result, list) else "Transfer-Encoding"
    assert framing in answer.headers


def test_head_may_announce_the_length_that_get_would_have() -> None:
    answer, kept = ask(app([], headers=[("Content-Length", "1000000")]), HEAD)
    assert (answer.headers["Content-Length"], kept) == ("1000000", True)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_statuses_without_content_carry_no_length(status: str) -> None:
    answer, kept = ask(app([], status))
    assert (answer.body, kept) == (b"", True)
    assert "Content-Length" not in answer.headers
    assert "Transfer-Encoding" not in answer.headers


def test_more_than_the_promised_length_is_cut_and_ends_the_connection() -> None:
    application = app([b"hello world"], headers=[("Content-Length", "5")])
    with serving(application, error_log=None) as server, Client(server) as client:
        client.send(GET + GET)
        assert client.answer().body == b"hello"
        assert client.closed()


def test_less_than_the_promised_length_ends_the_connection() -> None:
    application = app([b"hello"], headers=[("Content-Length", "50")])
    with serving(application, error_log=None) as server, Client(server) as client:
        client.send(GET + GET)
        assert client.rest().endswith(b"\r\n\r\nhello")


def test_content_for_204_is_a_500(quiet: io.StringIO) -> None:
    assert ask(app([b"x"], "204 No Content"))[0].status == 500


@pytest.mark.parametrize(
    "headers",
    [
        [("Transfer-Encoding", "chunked")],
        [("Content-Length", "-5")],
        [("Content-Length", "5, 5")],
        [("Content-Length", "1"), ("content-length", "2")],
        [("Content-Length ", "1")],
        [("X:", "a")],
        [("", "a")],
        [("X", "a\0b")],
        [("X", "a\r\nSet-Cookie: b")],
        [("X\n", "a")],
        [("X", "\u20ac")],
        [("X", b"bytes")],
        [(b"X", "bytes")],
    ],
)
def test_headers_that_break_the_response_are_a_500(headers: Any, quiet: io.StringIO) -> None:
    answer, kept = ask(app([b"x"], headers=headers))
    assert (answer.status, kept) == (500, False)


@pytest.mark.parametrize(
    "status",
    ["100 Continue", "101 Unasked", "200 OK\r\nX: y", "abc", b"200 OK", "", "2_0 OK", "+20 OK", "2000 OK"],
)
def test_statuses_that_break_the_response_are_a_500(status: Any, quiet: io.StringIO) -> None:
    assert ask(app([b"x"], status))[0].status == 500


def test_connection_close_of_the_application_closes() -> None:
    assert not ask(app([b"x"], headers=[("Connection", "Close")]))[1]
    assert not ask(app([b"x"], headers=[("Connection", "x , close")]))[1]


def test_an_application_cannot_promise_to_keep_a_connection_that_closes() -> None:
    keeping = app([b"x"], headers=[("Connection", "keep-alive")])
    answer, kept = ask(keeping, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert (answer.headers.get_all("Connection"), kept) == (["keep-alive", "close"], False)
    answer, kept = ask(keeping)
    assert (answer.headers.get_all("Connection"), kept) == (["keep-alive"], True)


def test_the_client_is_told_when_the_connection_closes() -> None:
    answer, kept = ask(hello, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert (answer.headers["Connection"], kept) == ("close", False)


def test_an_application_may_give_its_own_date() -> None:
    answer, _ = ask(app([b""], headers=[("Date", "then")]))
    assert answer.headers.get_all("Date") == ["then"]
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", ask(hello)[0].headers["Date"])


def test_header_and_content_leave_in_one_send(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    writer = response.ResponseWriter
    sendall = writer._sendall

    def noting(self: Any, data: bytes) -> None:
        sent.append(len(data))
        sendall(self, data)

    monkeypatch.setattr(writer, "_sendall", noting)
    assert ask(app([b"x" * 5000, b"y" * 5000]))[0].status == 200
    assert len(sent) == 2  # and one for the question whether the connection was kept


def test_what_a_request_leaves_in_its_handler_fits_the_table_that_handlers_share() -> None:
    made: list[KeepAliveWSGIHandler] = []

    class Noting(KeepAliveWSGIHandler):
        def log_request(self) -> None:
            made.append(self)

    class Counts:
        def note(self, status: int | None, sent_bytes: int, seconds: float) -> None: ...

        def note_refusal(self, status: int) -> None: ...

    with serving(app([b"body"]), handler_class=Noting) as server:
        server.statistics = Counts()  # then the handler keeps the time too
        with Client(server) as client:
            assert client.ask(GET).status == 200
    # Python shares the names of 30 attributes between the instances of a class; one that has more gets a
    # dictionary of 1.5 KB for itself alone.
    assert len(vars(made[0])) <= 28


# -- the WSGI contract


def test_write_and_a_returned_list_make_one_response() -> None:
    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"one ")
        write(b"two ")
        return [b"three"]

    answer, kept = ask(application)
    assert (answer.body, kept) == (b"one two three", True)


def test_the_iterable_is_closed_exactly_once_whatever_happens(quiet: io.StringIO) -> None:
    closed: list[str] = []

    class Result:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def __iter__(self) -> Iterator[bytes]:
            yield b"x"
            if self.fails:
                raise KeyError("deliberate")

        def close(self) -> None:
            closed.append("closed")

    ask(app(lambda: Result(False)))
    assert closed == ["closed"] * 2  # one a request
    closed.clear()
    with serving(app(lambda: Result(True))) as server, Client(server) as client:
        client.send(GET)
        assert not client.rest().endswith(b"0\r\n\r\n")
    assert closed == ["closed"]
    closed.clear()
    with serving(app(lambda: Result(False))) as server, Client(server) as client:
        client.ask(HEAD)
    assert closed == ["closed"]


def test_an_error_before_the_first_byte_is_a_500_and_after_it_a_cut(quiet: io.StringIO) -> None:
    def fails(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        if environ["PATH_INFO"] == "/early":
            raise KeyError("deliberate")
        start_response("200 OK", [])
        yield b"some"
        raise KeyError("deliberate")

    answer, kept = ask(fails, GET.replace(b"/ ", b"/early "))
    assert (answer.status, kept) == (500, False)
    assert b"deliberate" not in answer.body
    assert "deliberate" in quiet.getvalue()
    with serving(fails) as server, Client(server) as client:
        client.send(GET)
        rest = client.rest()
        assert b"some" in rest
        assert not rest.endswith(b"0\r\n\r\n")


def test_exc_info_replaces_a_response_that_has_not_begun() -> None:
    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response("200 OK", [("X", "first")])
        try:
            raise KeyError("deliberate")
        except KeyError:
            start_response("503 Later", [("X", "second")], sys.exc_info())
        return [b"sorry"]

    answer, kept = ask(application)
    assert (answer.status, answer.headers["X"], answer.body, kept) == (503, "second", b"sorry", True)


def test_exc_info_is_raised_when_the_response_has_begun(quiet: io.StringIO) -> None:
    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"begun")
        try:
            raise KeyError("deliberate")
        except KeyError:
            start_response("503 Later", [], sys.exc_info())
        return []

    with serving(application) as server, Client(server) as client:
        client.send(GET)
        assert client.rest().endswith(b"begun\r\n")
    assert "deliberate" in quiet.getvalue()


def test_an_application_that_never_starts_a_response_is_a_500(quiet: io.StringIO) -> None:
    for result in ([], [b"x"]):
        answer, kept = ask(lambda environ, start_response, result=result: result, error_log=None)
        assert (answer.status, kept) == (500, False)


def test_the_reference_validator_finds_nothing() -> None:
    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        content = environ["wsgi.input"].read(100)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"got " + content]

    with serving(validator(application)) as server, Client(server) as client:
        for _ in range(2):
            assert client.ask(post(b"abc")).body == b"got abc"
            assert client.ask(chunked(b"abc")).body == b"got abc"


def test_the_environ_says_what_pep_3333_wants() -> None:
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    with serving(application, environ={"SERVER_NAME": "name", "own": 1}) as server, Client(server) as client:
        client.ask(b"GET /a%2Fb?c HTTP/1.1\r\nHost: h\r\n\r\n")
        assert seen["REQUEST_METHOD"] == "GET"
        assert seen["SCRIPT_NAME"] == ""
        assert seen["PATH_INFO"] == "/a/b"
        assert seen["QUERY_STRING"] == "c"
        assert seen["SERVER_NAME"] == "name"
        assert seen["SERVER_PORT"] == str(server.server_port)
        assert seen["SERVER_PROTOCOL"] == "HTTP/1.1"
        assert seen["REMOTE_ADDR"] == "127.0.0.1"
        assert seen["REMOTE_PORT"] == str(client.sock.getsockname()[1])
        assert seen["wsgi.url_scheme"] == "http"
        assert seen["wsgi.input_terminated"] is True
        assert seen["own"] == 1
        server.environ["own"] = 2
        client.ask()
        assert seen["own"] == 2


def test_what_an_application_does_to_its_environ_stays_in_that_request() -> None:
    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response("200 OK", [])
        environ["HTTP_HOST"] += "!"
        return [str("mark" in environ).encode(), environ.setdefault("mark", environ["HTTP_HOST"]).encode()]

    with serving(application) as server, Client(server) as client:
        assert client.ask().body == client.ask().body == b"Falsetest!"


# -- request content


@pytest.mark.parametrize("make", [post, chunked])
@pytest.mark.parametrize(
    "read",
    [
        lambda file: file.read(),
        lambda file: file.read(-1),
        lambda file: b"".join(iter(lambda: file.read(3), b"")),
        lambda file: b"".join(file),
        lambda file: b"".join(file.readlines()),
        lambda file: b"".join(iter(lambda: file.readline(4), b"")),
        lambda file: file.readline() + file.read(),
        lambda file: file.read(10_000),
    ],
)
def test_content_is_read_whole_in_every_way(read: Callable[[Any], bytes], make: Any) -> None:
    content = b"line one\nline two\r\n\nlast"
    answer, kept = ask(reading(read), make(content))
    assert (answer.body, kept) == (content, True)


def test_content_may_come_in_any_pieces() -> None:
    request = chunked(b"one", b"two", b"three")
    with serving(reading(lambda file: file.read())) as server, Client(server) as client:
        for cut in range(1, len(request)):
            client.send(request[:cut])
            gevent.sleep(0)
            client.send(request[cut:])
            assert client.answer().body == b"onetwothree"


@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 70_000, 3_000_000])
@pytest.mark.parametrize("make", [post, chunked])
def test_content_of_any_size_arrives(size: int, make: Any) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    answer, kept = ask(reading(lambda file: file.read()), make(content[:size]))
    assert (answer.body, kept) == (content[:size], True)


@pytest.mark.parametrize("make", [post, chunked])
def test_unread_content_never_becomes_the_next_request(make: Any) -> None:
    for content in (GET, GET * 100):
        with serving() as server, Client(server) as client:
            client.send(make(content) + GET)
            assert client.answer().status == 200
            assert client.answer().status == 200
            assert server.requests == 2


@pytest.mark.parametrize("make", [post, chunked])
def test_too_much_unread_content_ends_the_connection(make: Any) -> None:
    content = GET * (2 * body.MAX_DISCARD_BYTES // len(GET))
    with serving() as server, Client(server) as client:
        gevent.spawn(client.send, make(content) + GET)
        assert client.answer().status == 200
        assert client.closed()
        assert server.requests == 1


@pytest.mark.parametrize("framing", [b"Content-Length: 10", b"Transfer-Encoding: chunked"])
def test_content_that_the_application_gave_up_waiting_for_ends_the_connection(framing: bytes) -> None:
    """What came of it is lost, so nobody could tell where the next request begins."""
    targets: list[str] = []

    def impatient(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        targets.append(environ["PATH_INFO"])
        with gevent.Timeout(0.1, False):
            environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [b"gave up"]

    with serving(impatient) as server, Client(server) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\na\r\n0" % framing)
        answer = client.answer()
        assert (answer.body, answer.headers["Connection"]) == (b"gave up", "close")
        try:
            client.send(b"123456789" + GET.replace(b"/ ", b"/smuggled ") * 2)
        except OSError:
            pass  # closed already
        assert client.closed()
    assert targets == ["/"]


def test_reading_on_after_content_was_lost_is_an_error() -> None:
    def stubborn(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        with gevent.Timeout(0.05, False):
            environ["wsgi.input"].read(10)
        environ["wsgi.input"].read(10)
        return hello(environ, start_response)

    with serving(stubborn, error_log=None) as server, Client(server) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        gevent.sleep(0.1)
        assert client.answer().status == 400
        assert client.closed()


def test_unread_content_that_drips_ends_the_connection_after_the_body_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lingering, "LINGER_S", 0.5)
    with serving(body_timeout=0.3) as server, Client(server) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert client.answer().status == 200

        def drip() -> bool:
            try:
                client.send(b"x")
            except OSError:
                pass
            return bool(server.parking.count == 0)

        eventually(drip)


def test_bad_chunks_that_the_application_reads_are_a_400() -> None:
    answer, kept = ask(reading(lambda file: file.read()), chunked(b"abc", last=b"x\r\n\r\n"), error_log=None)
    assert (answer.status, kept) == (400, False)


def test_bad_chunks_that_nobody_reads_end_the_connection_after_the_answer() -> None:
    log = io.StringIO()
    answer, kept = ask(hello, chunked(b"abc", last=b"x\r\n\r\n"), error_log=log)
    assert (answer.status, kept) == (200, False)
    assert "invalid content: 127.0.0.1: malformed chunk size" in log.getvalue()


def test_chunked_content_over_the_limit_is_refused() -> None:
    limits = Limits(body_bytes=10)
    read = reading(lambda file: file.read())
    assert ask(read, chunked(b"12345", b"67890"), limits=limits)[0].body == b"1234567890"
    answer, kept = ask(read, chunked(b"12345", b"678901"), limits=limits, error_log=None)
    assert (answer.status, kept) == (413, False)


def test_100_continue_is_sent_when_the_application_reads_and_only_then() -> None:
    request = post(b"abc", b"Expect: 100-Continue")
    head, content = request[:-3], request[-3:]
    with serving(reading(lambda file: file.read())) as server, Client(server) as client:
        client.send(head)
        assert client.file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert client.file.readline() == b"\r\n"
        client.send(content)
        assert client.answer().body == b"abc"
        assert client.ask().status == 200
    with serving(hello) as server, Client(server) as client:
        client.send(head)
        assert client.answer().status == 200  # the final answer at once
        assert client.closed()  # since nobody knows whether the content will come


@pytest.mark.parametrize("resets", [False, True])
def test_a_client_that_leaves_amid_its_content_leaves_no_traceback(resets: bool, quiet: io.StringIO) -> None:
    reset = struct.pack("ii", 1, 0)
    with serving(reading(lambda file: file.read())) as server:
        for request in (post(b"abcdef")[:-2], chunked(b"abcdef")[:-9]):
            with Client(server) as client:
                client.send(request)
                eventually(lambda: server.active == 1)
                if resets:
                    client.sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, reset)
            eventually(lambda: server.parking.count == 0)
    assert quiet.getvalue() == ""


# -- hooks and upgrades


def test_the_hooks_of_pywsgi_are_called() -> None:
    called: list[str] = []

    class Hooked(KeepAliveWSGIHandler):
        def get_environ(self) -> dict[str, Any]:
            called.append("get_environ")
            return {**super().get_environ(), "hooked": True}

        def run_application(self) -> None:
            called.append("run_application")
            super().run_application()

        def handle_one_response(self) -> None:
            called.append("handle_one_response")
            super().handle_one_response()

        def finalize_headers(self) -> None:
            called.append("finalize_headers")
            super().finalize_headers()
            self.response_headers.append((b"X-Hooked", b"yes"))

        def log_request(self) -> None:
            called.append("log_request")

        def start_response(self, *args: Any) -> Any:
            called.append("start_response")
            return super().start_response(*args)

    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        assert environ["hooked"]
        return hello(environ, start_response)

    with serving(application, handler_class=Hooked) as server, Client(server) as client:
        assert client.ask().headers["X-Hooked"] == "yes"
        eventually(lambda: "log_request" in called)
    assert called == [
        "get_environ",
        "handle_one_response",
        "run_application",
        "start_response",
        "finalize_headers",
        "log_request",
    ]


def test_a_handler_sees_the_request_as_in_pywsgi() -> None:
    class Looking(KeepAliveWSGIHandler):
        def run_application(self) -> None:
            seen.update(
                command=self.command,
                path=self.path,
                version=self.request_version,
                line=self.requestline,
                header=self.headers.get("x-one"),
                peer=self.socket.getpeername(),
                address=self.client_address,
            )
            super().run_application()

    seen: dict[str, Any] = {}
    with serving(handler_class=Looking) as server, Client(server) as client:
        for _ in range(3):
            client.ask(b"GET /p?q HTTP/1.1\r\nHost: x\r\nX-One: 1\r\n\r\n")
        assert seen["command"] == "GET"
        assert seen["path"] == "/p?q"
        assert seen["version"] == "HTTP/1.1"
        assert seen["line"] == "GET /p?q HTTP/1.1"
        assert seen["header"] == "1"
        assert seen["peer"] == seen["address"] == client.sock.getsockname()


def test_an_upgraded_connection_belongs_to_the_application() -> None:
    class Echo(KeepAliveWSGIHandler):
        """What WebSocket handlers do: answer 101 and talk on the socket."""

        def run_application(self) -> None:
            if self.environ.get("HTTP_UPGRADE") != "echo":
                super().run_application()
                return
            self.start_response("101 Switching Protocols", [("Upgrade", "echo"), ("Connection", "Upgrade")])
            self.write(b"")
            while line := self.rfile.readline():
                self.socket.sendall(b"echo " + line)

    upgrade = GET.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\n")
    with serving(handler_class=Echo) as server, Client(server) as client:
        assert client.ask().status == 200
        client.send(upgrade + b"early\n")
        answer = client.answer()
        assert (answer.status, answer.headers["Upgrade"]) == (101, "echo")
        assert "Content-Length" not in answer.headers
        assert client.file.readline() == b"echo early\n"
        client.send(b"late\n")
        assert client.file.readline() == b"echo late\n"
        with Client(server) as other:
            assert other.ask().status == 200


def test_after_an_upgrade_the_connection_is_not_http_again() -> None:
    upgrade = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    with serving(app([], "101 Switching Protocols")) as server, Client(server) as client:
        client.send(upgrade + GET)
        assert client.answer().status == 101
        assert client.closed()
        assert server.requests == 1


def test_the_access_log_has_the_form_of_pywsgi() -> None:
    log = io.StringIO()
    with serving(log=log) as server, Client(server) as client:
        client.ask()
        eventually(log.getvalue)
    assert re.fullmatch(
        r'127\.0\.0\.1 - - \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "GET / HTTP/1\.1" 200 \d+ 0\.\d{6}\n',
        log.getvalue(),
    )


def test_a_first_chunk_that_cannot_be_sent_is_a_well_formed_500(quiet: io.StringIO) -> None:
    def wrong() -> Iterator[Any]:
        yield "text where bytes belong"

    with serving(app(wrong)) as server, Client(server) as client:
        answer = client.ask()
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        assert "Transfer-Encoding" not in answer.headers
        assert client.closed()


def test_a_handler_of_ones_own_finds_the_time_of_its_request_without_a_log() -> None:
    took: list[float] = []

    class Timing(KeepAliveWSGIHandler):
        def handle_one_response(self) -> None:
            super().handle_one_response()
            took.append(self.time_finish - self.time_start)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        gevent.sleep(0.02)
        return hello(environ, start_response)

    with serving(application, handler_class=Timing) as server, Client(server) as client:
        assert client.ask().status == 200
        eventually(lambda: took)
    assert 0.01 < took[0] < 60


def test_a_handler_may_let_go_of_its_socket() -> None:
    """As ws4py's does, which sets it to None."""

    class Taking(KeepAliveWSGIHandler):
        def run_application(self) -> None:
            with self.socket as taken:
                taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            self.close_connection = True
            self.socket = None
            self.rfile.close()

    with serving(handler_class=Taking) as server, Client(server) as client:
        assert client.ask().status == 200
        assert client.closed()
        assert server.faults == 0


def test_a_wall_clock_that_is_set_back_makes_no_duration_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(handler.time, "time", lambda: now)

    def steps(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        nonlocal now
        now -= 3600
        return hello(environ, start_response)

    log = io.StringIO()
    with serving(steps, log=log) as server, Client(server) as client:
        client.ask()
        eventually(log.getvalue)
    assert 0 <= float(log.getvalue().split()[-1]) < 60
