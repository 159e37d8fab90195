from __future__ import annotations

import errno
import gc
import io
import logging
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import gevent
import gevent.socket
import pytest
from gevent import pywsgi
from gevent.event import Event
from gevent.local import local
from gevent.pool import Pool

from parked.server import lingering
from parked.server.handler import KeepAliveWSGIHandler
from parked.server.limits import Limits
from parked.server.server import KeepAliveWSGIServer
from tests.support import GET, Client, eventually, hello, serving


class Blocking:
    """An application that blocks cooperatively at /block until it is released."""

    def __init__(self) -> None:
        self.release = Event()
        self.inside = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/block":
            self.inside += 1
            self.release.wait()
            self.inside -= 1
        return hello(environ, start_response)


BLOCK = GET.replace(b"/ ", b"/block ")


def test_a_connection_is_kept_parked_and_used_again() -> None:
    with serving() as server, Client(server) as client:
        for _ in range(3):
            assert client.ask().body == b"hello"
            eventually(lambda: not any(connection.busy for connection in server.parking.connections()))
        assert server.accepted == 1
        assert server.parking.count == 1
        assert server.requests == 3


def test_hundreds_of_connections_need_no_greenlet_each() -> None:
    with serving() as server:
        clients = [Client(server) for _ in range(300)]
        for client in clients:
            assert client.ask().status == 200
        greenlets = sum(issubclass(type(thing), gevent.Greenlet) for thing in gc.get_objects())
        assert server.parking.count == 300
        assert greenlets < 20
        for client in clients:
            client.__exit__()
        eventually(lambda: server.parking.count == 0)


def test_a_blocking_application_does_not_stop_other_connections() -> None:
    application = Blocking()
    with serving(application) as server, Client(server) as slow, Client(server) as quick:
        slow.send(BLOCK)
        eventually(lambda: application.inside)
        for _ in range(5):
            assert quick.ask().status == 200
        application.release.set()
        assert slow.answer().status == 200


def test_pipelined_requests_are_answered_in_order() -> None:
    def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/3":
            gevent.sleep(0.01)
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with serving(echo) as server, Client(server) as client:
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(500)))
        for number in range(500):
            assert client.answer().body == b"/%d" % number


def test_nothing_of_a_request_meets_the_next_one_of_its_connection() -> None:
    """Whether it was sent along, or while the application was still busy with its own."""
    mine = local()
    seen: list[Any] = []

    class Body(list[bytes]):
        def close(self) -> None:
            gevent.sleep(0.02)

    def leaves(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        seen.append(getattr(mine, "value", None))
        if environ["PATH_INFO"] == "/local":
            mine.value = "left"
        else:
            gevent.Timeout(0.05).start()
        start_response("200 OK", [("Content-Length", "2")])
        return Body([b"ok"])

    with serving(leaves) as server, Client(server) as client:
        for path in (b"/local ", b"/timeout "):
            request = GET.replace(b"/ ", path)
            for _ in range(3):  # each as soon as the answer before is there
                assert client.ask(request).status == 200
            client.send(request * 3)
            assert [client.answer().status for _ in range(3)] == [200] * 3
    assert seen == [None] * 12


def test_a_pipelining_client_lets_others_have_their_turn() -> None:
    order: list[str] = []

    def record(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        order.append(environ["PATH_INFO"])
        return hello(environ, start_response)

    with serving(record) as server, Client(server) as greedy, Client(server) as modest:
        greedy.ask()
        modest.ask()
        greedy.send(b"GET /greedy HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
        modest.send(b"GET /modest HTTP/1.1\r\nHost: x\r\n\r\n")
        assert modest.answer().status == 200
        for _ in range(2000):
            greedy.answer()
    assert order.index("/modest") < 1000


def test_a_request_that_comes_byte_by_byte_is_served() -> None:
    with serving() as server, Client(server) as client:
        for byte in GET + GET:
            client.send(bytes([byte]))
            gevent.sleep(0)
        assert client.answer().status == 200
        assert client.answer().status == 200


def test_half_a_header_past_its_deadline_gets_408() -> None:
    with serving(header_timeout=0.5) as server, Client(server) as client, Client(server) as good:
        client.send(GET[:20])
        assert good.ask().status == 200
        answer = client.answer()
        assert answer.status == 408
        assert answer.headers["Connection"] == "close"
        assert client.closed()
        assert server.timed_out_heads == 1
        assert good.ask().status == 200


def test_dripping_a_header_does_not_extend_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "LINGER_S", 0.5)
    with serving(header_timeout=0.5) as server, Client(server) as client:
        with pytest.raises(OSError):  # noqa: PT012 - any of the sends may find it closed
            for byte in GET[:-4] + b"\r\nX: " + b"y" * 1000:
                client.send(bytes([byte]))
                gevent.sleep(0.05)
        assert server.timed_out_heads == 1


def test_an_idle_connection_is_closed_silently_after_the_idle_timeout() -> None:
    with serving(idle_timeout=0.5) as server, Client(server) as client:
        client.ask()
        assert client.closed()
        assert server.parking.idle_timed_out == 1


def test_a_client_that_shuts_its_side_after_the_request_gets_its_answer() -> None:
    with serving() as server, Client(server) as client:
        client.send(GET)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.answer().status == 200
        assert client.closed()
        eventually(lambda: server.parking.count == 0)


def test_a_client_that_leaves_while_its_request_runs_is_forgotten() -> None:
    application = Blocking()
    with serving(application) as server:
        with Client(server) as client:
            client.send(BLOCK)
            eventually(lambda: application.inside)
        application.release.set()
        eventually(lambda: server.parking.count == 0)


def test_a_reset_connection_is_forgotten() -> None:
    with serving() as server, Client(server) as client:
        client.ask()
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.__exit__()
        eventually(lambda: server.parking.count == 0)


def test_a_client_that_does_not_read_is_closed_after_the_write_timeout() -> None:
    def flood(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            yield b"x" * 100_000

    with serving(flood, write_timeout=0.3) as server, Client(server) as client:
        client.send(GET)
        eventually(lambda: server.parking.count == 1)
        eventually(lambda: server.parking.count == 0)


def test_a_large_response_reaches_a_slow_reader_whole() -> None:
    size = 30_000_000

    def large(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * size]

    with serving(large) as server, Client(server) as client:
        client.send(GET)
        gevent.sleep(0.05)
        assert len(client.answer().body) == size


def test_a_body_that_does_not_come_gets_408() -> None:
    def read(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].read()
        return hello(environ, start_response)

    with serving(read, body_timeout=0.3) as server, Client(server) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        assert client.answer().status == 408
        assert client.closed()
        assert server.timed_out_bodies == 1


def test_connections_over_the_bound_get_a_quick_503() -> None:
    with serving(max_connections=2) as server:
        first, second, third = Client(server), Client(server), Client(server)
        assert first.ask().status == second.ask().status == 200
        third.send(GET)
        assert third.answer().status == 503
        assert third.closed()
        first.__exit__()
        third.__exit__()
        eventually(lambda: server.parking.count == 1)
        with Client(server) as fourth:
            assert fourth.ask().status == 200
        second.__exit__()
        assert server.rejected == 1


def test_out_of_descriptors_accepting_pauses_and_resumes_with_one_line_each_way() -> None:
    log = io.StringIO()
    with serving(error_log=log) as server, Client(server) as client:
        client.ask()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        waiting = [gevent.socket.socket() for _ in range(5)]
        highest = os.dup(0)
        os.close(highest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        try:
            for sock in waiting:
                sock.connect(("127.0.0.1", server.server_port))
            eventually(lambda: "paused" in log.getvalue())
            started = os.times()
            gevent.sleep(0.5)
            used = os.times()
            assert used.user + used.system - started.user - started.system < 0.1, "it spins"
            assert client.ask().status == 200
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for sock in waiting:
            sock.sendall(GET)
            assert sock.recv(12) == b"HTTP/1.1 200"
            sock.close()
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("accepting paused at 1 connections")
    assert lines[1].startswith("accepting again after")


def test_at_the_edge_pauses_are_told_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    with serving(error_log=log) as server:
        for _ in range(50):
            server._accept_failed(OSError(errno.EMFILE, "Too many open files"))
            server._accept_succeeded()
        assert log.getvalue().count("paused") == log.getvalue().count("again") == 1
        monkeypatch.setattr(server, "_next_pause_line", 0.0)  # as if PAUSE_LINES_S had passed
        server._accept_failed(OSError(errno.EMFILE, "Too many open files"))
        assert log.getvalue().count("paused") == 2


def test_without_room_in_epoll_accepting_pauses_with_one_line_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = io.StringIO()
    with serving(error_log=log) as server, Client(server) as first:
        first.ask()
        add = server.parking.add
        full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
        monkeypatch.setattr(server.parking, "add", full)
        lost = [Client(server) for _ in range(3)]
        for client in lost:
            assert client.closed()
            client.__exit__()
        assert first.ask().status == 200
        monkeypatch.setattr(server.parking, "add", add)
        with Client(server) as second:
            assert second.ask().status == 200
        assert server.rejected == 3
    assert [line.split(" at ")[0].split(" after ")[0] for line in log.getvalue().splitlines()] == [
        "accepting paused",
        "accepting again",
    ]


def test_descriptors_connections_and_greenlets_are_back_where_they_were() -> None:
    """The leak test: every way a connection can end, many times."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/raise":
            raise KeyError("deliberate")
        return hello(environ, start_response)

    def one_round(server: KeepAliveWSGIServer) -> None:
        endings: list[bytes] = [
            GET,
            GET[:10],
            b"",
            b"nonsense\r\n\r\n",
            GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
            GET.replace(b"/ ", b"/raise "),
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz",
        ]
        for data in endings * 5:
            with Client(server) as client:
                client.send(data)
                if data.endswith(b"\r\n\r\n"):
                    client.answer()
        eventually(lambda: server.parking.count == 0)

    def census() -> tuple[int, int]:
        gc.collect()
        greenlets = [
            thing for thing in gc.get_objects() if issubclass(type(thing), gevent.Greenlet) and not thing.dead
        ]
        return len(list(Path("/proc/self/fd").iterdir())), len(greenlets)

    hub = gevent.get_hub()
    hub.exception_stream = io.StringIO()
    try:
        with serving(app, error_log=None) as server:
            one_round(server)
            before = census()
            for _ in range(5):
                one_round(server)
            after = census()
            assert after == before
    finally:
        del hub.exception_stream


def test_stopping_closes_the_idle_and_lets_the_busy_finish() -> None:
    application = Blocking()
    with serving(application) as server, Client(server) as idle, Client(server) as busy:
        idle.ask()
        busy.send(BLOCK)
        eventually(lambda: application.inside)
        server.stop()
        assert idle.closed()
        application.release.set()
        answer = busy.answer()
        assert answer.status == 200
        assert answer.headers["Connection"] == "close"
        assert busy.closed()
        eventually(lambda: server.parking.count == 0)
        with pytest.raises(ConnectionRefusedError):
            Client(("127.0.0.1", server.address[1]))


def test_draining_tells_whether_all_requests_have_finished() -> None:
    application = Blocking()
    with serving(application) as server, Client(server) as busy:
        busy.send(BLOCK)
        eventually(lambda: application.inside)
        assert not server.drain(0.1)
        application.release.set()
        assert server.drain(5)


def test_a_pool_bounds_the_requests_in_flight_and_not_the_connections() -> None:
    application = Blocking()
    with serving(application, spawn=Pool(2)) as server:
        clients = [Client(server) for _ in range(10)]
        for client in clients:
            client.ask()
        assert server.parking.count == 10
        for client in clients:
            client.send(BLOCK)
        eventually(lambda: application.inside == 2)
        gevent.sleep(0.02)
        assert application.inside == 2
        application.release.set()
        for client in clients:
            assert client.answer().status == 200
            client.__exit__()


@pytest.mark.parametrize("spawn", ["default", 3])
@pytest.mark.parametrize("fate", [gevent.GreenletExit, RuntimeError])
def test_who_kills_the_greenlet_of_a_request_is_not_kept_waiting(
    fate: type[BaseException], spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill() waits for the greenlet's end, in pywsgi as here, and there may be no next request."""
    monkeypatch.setattr(gevent.get_hub(), "exception_stream", io.StringIO())
    greenlets: list[Any] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/block":
            greenlets.append(gevent.getcurrent())
            gevent.sleep(60)
        return hello(environ, start_response)

    with serving(application, spawn=spawn) as server, Client(server) as client, Client(server) as other:
        client.send(BLOCK)
        eventually(lambda: greenlets)
        with gevent.Timeout(10):
            greenlets[0].kill(fate)
        assert greenlets[0].dead
        assert client.answer().status == 500
        assert other.ask().status == other.ask().status == 200
        eventually(lambda: server.active == 0)


def test_spawn_may_be_a_number() -> None:
    with serving(spawn=3) as server, Client(server) as client:
        assert client.ask().status == 200


def test_a_server_can_be_started_from_an_own_socket_and_a_host_port_string() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = KeepAliveWSGIServer(listener, hello, log=None)
        server.start()
        with Client(server) as client:
            assert client.ask().status == 200
        server.stop()
    server = KeepAliveWSGIServer("127.0.0.1:0", hello, log=None)
    server.start()
    with Client(server) as client:
        assert client.ask().status == 200
    server.stop()


def test_serve_forever_ends_when_it_is_stopped() -> None:
    server = KeepAliveWSGIServer(("127.0.0.1", 0), hello, log=None)
    runner = gevent.spawn(server.serve_forever)
    eventually(lambda: server.started)
    with Client(server) as client:
        assert client.ask().status == 200
        server.stop()
        runner.join(5)
        assert runner.dead


def test_a_handler_that_reads_for_itself_works_as_in_pywsgi_and_is_announced() -> None:
    class Reading(KeepAliveWSGIHandler):
        def read_requestline(self) -> str:
            line: str = super().read_requestline()
            return line.replace("/old", "/new")

    def path(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    for handler_class in (Reading, pywsgi.WSGIHandler):
        log = io.StringIO()
        with serving(path, handler_class=handler_class, error_log=log) as server, Client(server) as client:
            expected = b"/new" if handler_class is Reading else b"/old"
            for _ in range(2):
                assert client.ask(GET.replace(b"/ ", b"/old ")).body == expected
        assert "one greenlet per connection" in log.getvalue()


def test_a_handler_class_that_is_set_later_counts_from_the_start_on() -> None:
    class Stock(pywsgi.WSGIHandler):  # type: ignore[misc] # gevent has no type hints
        def log_request(self) -> None:
            logged.append("stock")

    class Own(KeepAliveWSGIHandler):
        def log_request(self) -> None:
            logged.append("own")

    logged: list[str] = []
    errors = io.StringIO()
    server = KeepAliveWSGIServer(
        ("127.0.0.1", 0), hello, log=None, error_log=errors, spawn=3, environ={"SERVER_NAME": "test"}
    )
    for handler_class in (Stock, Own):
        server.handler_class = handler_class
        server.start()
        try:
            with Client(server) as client:
                assert client.ask().status == client.ask().status == 200
        finally:
            server.stop()
    assert logged == ["stock", "stock", "own", "own"]
    assert errors.getvalue().count("Stock reads its connections itself") == 1


def test_the_logs_may_be_set_at_any_time() -> None:
    log, errors = io.StringIO(), io.StringIO()
    with serving() as server:
        server.log, server.error_log = log, errors
        with Client(server) as client:
            assert client.ask().status == 200
            assert client.ask(b"nonsense\r\n\r\n").status == 400
        server.log = None
        with Client(server) as client:
            assert client.ask(GET.replace(b"/ ", b"/unseen ")).status == 200
    assert '"GET / HTTP/1.1" 200' in log.getvalue()
    assert '"nonsense" 400' in log.getvalue()
    assert "unseen" not in log.getvalue()
    assert "refused with 400: 127.0.0.1: malformed request line" in errors.getvalue()


def test_a_log_that_is_set_later_may_be_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving() as server:
        server.log = server.error_log = logging.getLogger("set.later")
        with Client(server) as client:
            assert client.ask().status == 200
            assert client.ask(b"nonsense\r\n\r\n").status == 400
        server.error_log.write("something else\n")
    assert sorted(record.levelname for record in caplog.records) == ["ERROR", "INFO", "INFO", "WARNING"]


def test_draining_waits_for_handlers_that_read_for_themselves_too() -> None:
    application = Blocking()
    options: dict[str, Any] = {"handler_class": pywsgi.WSGIHandler, "error_log": None}
    with serving(application, **options) as server, Client(server) as busy:
        busy.send(BLOCK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        eventually(lambda: application.inside)
        assert not server.drain(0.1)
        application.release.set()
        assert server.drain(5)


def test_the_limits_are_options() -> None:
    with serving(
        limits=Limits(request_line_bytes=50, header_bytes=100, header_count=3, body_bytes=10)
    ) as server:
        for request, status in [
            (GET.replace(b"/ ", b"/" + b"x" * 60 + b" "), 414),
            (GET.replace(b"test", b"test\r\nX: " + b"y" * 100), 431),
            (GET.replace(b"test", b"test\r\nA: 1\r\nB: 2\r\nC: 3"), 431),
            (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n", 413),
            (GET, 200),
        ]:
            with Client(server) as client:
                assert client.ask(request).status == status
        assert server.bad_requests == {414: 1, 431: 2, 413: 1}


def test_a_missing_descriptor_for_a_client_is_no_reason_to_lose_it() -> None:
    """A fork that keeps a copy of a client's descriptor open must not wake us for it after we closed it."""
    with serving() as server, Client(server) as client:
        client.ask()
        (connection,) = server.parking.connections()
        copy = os.dup(connection.sock.fileno())
        try:
            server.parking.close(connection)
            client.send(GET)
            gevent.sleep(0.02)
            with Client(server) as other:
                assert other.ask().status == 200
        finally:
            os.close(copy)


def test_a_socket_that_the_application_has_taken_is_not_lost_when_an_error_is_logged() -> None:
    same: list[bool] = []

    class Taking(KeepAliveWSGIHandler):
        def run_application(self) -> None:
            taken = self.socket
            self.log_error("something to say")
            same.append(self.socket is taken)
            super().run_application()

    log = io.StringIO()
    with serving(handler_class=Taking, error_log=log) as server, Client(server) as client:
        assert client.ask().status == client.ask().status == 200
    assert same == [True, True]
    assert log.getvalue().count("something to say") == 2


class Noted:
    """What a worker counts, and nobody logs."""

    def __init__(self) -> None:
        self.responses: list[tuple[int | None, int, float]] = []

    def note(self, status: int | None, sent_bytes: int, seconds: float) -> None:
        self.responses.append((status, sent_bytes, seconds))

    def note_refusal(self, status: int) -> None:
        raise AssertionError("nothing is refused here")


def test_responses_are_counted_with_their_time_without_an_access_log() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        gevent.sleep(0.02)
        return hello(environ, start_response)

    with serving(app, log=None) as server, Client(server) as client:
        assert not server.logs_requests
        server.statistics = noted = Noted()
        assert client.ask().status == 200
        eventually(lambda: noted.responses)
    ((status, sent_bytes, seconds),) = noted.responses
    assert status == 200
    assert sent_bytes > 20
    assert 0.01 < seconds < 60
