from __future__ import annotations

import copy
import gc
import pickle
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import psutil
import pytest

from parked.server.pending import PendingResponse
from parked.server.server import KeepAliveWSGIServer
from tests.server.desk import OLD_POLL, POLL, Desk, attended, chunks, ended, head, pending_at
from tests.server.test_tls import TLSClient
from tests.support import GET, PATIENCE_S, Client, eventually, serving

NOW = GET.replace(b"/ ", b"/now ")


# -- a whole response


def test_a_response_is_sent_later_and_its_connection_parked() -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        assert (desk.server.pending.count, pending.open) == (1, True)
        assert pending.send("200 OK", [("X-From", "send")], b"later")
        answer = client.answer()
        assert (answer.status, answer.body, answer.headers["X-From"]) == (200, b"later", "send")
        assert answer.headers["Date"]
        desk.wait_for_end("answered")
        assert client.ask(NOW).body == b"now"
        assert (desk.server.accepted, desk.server.pending.count) == (1, 0)


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_a_body_of_any_length_arrives(size: int) -> None:
    desk = Desk()
    body = bytes(range(251)) * (size // 251) + b"x" * (size % 251)
    with pending_at(desk) as (client, pending):
        assert pending.send("200 OK", [], body)
        assert client.answer().body == body
        desk.wait_for_end("answered")
        assert client.ask(NOW).body == b"now"


def test_a_response_may_be_sent_before_the_application_returns() -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        pending = environ["parked.defer"]()
        assert pending.send("200 OK", [], b"early")
        gevent.sleep(0.05)
        return [b"ignored"]

    with serving(application) as server, Client(server) as client:
        client.send(GET + GET)
        assert [client.answer().body, client.answer().body] == [b"early", b"early"]
        eventually(lambda: not server.pending.count)
        assert ended(server.pending) == {"answered": 2}


def test_head_gets_the_length_and_no_content() -> None:
    desk = Desk()
    with pending_at(desk, POLL.replace(b"GET", b"HEAD")) as (client, pending):
        assert pending.send("200 OK", [], b"12345")
        answer = client.answer("HEAD")
        assert (answer.headers["Content-Length"], answer.body) == ("5", b"")
        assert client.ask(NOW).body == b"now"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_status_without_content_has_none(status: str) -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        assert pending.send(status, [], b"dropped")
        answer = client.answer()
        assert (answer.status, answer.body, answer.headers["Content-Length"]) == (int(status[:3]), b"", None)
        assert client.ask(NOW).body == b"now"


def test_pipelined_requests_behind_a_pending_one_are_answered_in_order() -> None:
    desk = Desk()
    with attended(desk) as desk, Client(desk.server) as client:
        client.send(NOW + POLL + NOW + POLL)
        assert client.answer().body == b"now"
        desk.wait_for(1).send("200 OK", [], b"first")
        assert [client.answer().body, client.answer().body] == [b"first", b"now"]
        desk.wait_for(2).send("200 OK", [], b"second")
        assert client.answer().body == b"second"
        assert client.ask(NOW).body == b"now"


def test_a_request_that_comes_while_one_is_pending_is_served_after_it() -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        client.send(NOW)
        gevent.sleep(0.02)
        pending.send("200 OK", [], b"first")
        assert [client.answer().body, client.answer().body] == [b"first", b"now"]


def test_http_1_0_keeps_its_connection_only_if_asked_for() -> None:
    desk = Desk()
    with pending_at(desk, OLD_POLL.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")) as (
        client,
        pending,
    ):
        pending.send("200 OK", [], b"kept")
        answer = client.answer()
        assert (answer.body, answer.headers["Connection"]) == (b"kept", "keep-alive")
        client.send(OLD_POLL)
        desk.wait_for(2).send("200 OK", [], b"last")
        answer = client.answer()
        assert (answer.body, answer.headers["Connection"]) == (b"last", "close")
        assert client.closed()


def test_connection_close_of_client_or_application_is_said_and_done() -> None:
    for request, fields in (
        (POLL.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), []),
        (POLL, [("Connection", "close")]),
    ):
        with pending_at(Desk(), request) as (client, pending):
            pending.send("200 OK", fields, b"last")
            answer = client.answer()
            assert answer.headers.get_all("Connection") == ["close"]
            assert client.closed()


# -- a stream


def test_a_stream_arrives_chunk_by_chunk_and_its_connection_is_parked() -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        assert pending.start("200 OK", [("Content-Type", "text/event-stream")])
        assert b"Transfer-Encoding: chunked" in head(client)
        assert pending.write(b"one")
        assert chunks(client, 1) == b"one"
        assert pending.write(b"")
        assert pending.write(bytearray(b"two"))
        assert pending.write(memoryview(b"three"))
        assert chunks(client, 2) == b"twothree"
        assert pending.open
        assert pending.close()
        assert client.file.read(5) == b"0\r\n\r\n"
        desk.wait_for_end("closed")
        assert not pending.open
        assert client.ask(NOW).body == b"now"


def test_a_stream_to_http_1_0_ends_with_its_connection() -> None:
    desk = Desk()
    with pending_at(desk, OLD_POLL) as (client, pending):
        pending.start("200 OK", [])
        pending.write(b"raw")
        pending.close()
        answer = client.rest()
        assert b"Connection: close" in answer
        assert b"chunked" not in answer
        assert answer.endswith(b"\r\n\r\nraw")


@pytest.mark.parametrize("why", ["error", "slow", "timeout", "half-closed"])
def test_a_stream_to_http_1_0_that_is_not_whole_ends_with_a_reset(why: str) -> None:
    """Where only the end of the connection would say that it is all, as behind nginx by default."""

    def begin(pending: PendingResponse) -> None:
        pending.start("200 OK", [])
        pending.write(b"a part")

    def begin_and_fail(pending: PendingResponse) -> None:
        begin(pending)
        raise LookupError("on purpose")

    def application(environ: dict[str, Any], _: Any) -> list[bytes]:
        begin_and_fail(environ["parked.defer"]())
        return []

    if why == "error":
        with serving(application) as server, Client(server) as client:
            client.send(OLD_POLL)
            with pytest.raises(ConnectionResetError):
                client.file.read()
        return
    desk = Desk(timeout=0.1 if why == "timeout" else 0, on_timeout=begin_and_fail)
    with pending_at(desk, OLD_POLL) as (client, pending):
        if why == "slow":
            begin(pending)
            while pending.write(bytes(60_000)):
                pass
        elif why == "half-closed":
            begin(pending)
            client.sock.shutdown(socket.SHUT_WR)
        eventually(lambda: pending.reason is not None and desk.ended)
        with pytest.raises(ConnectionResetError):
            client.file.read()


def test_the_same_chunk_goes_to_each_stream_as_its_protocol_has_it() -> None:
    desk, event = Desk(), b"data: 1\n\n"
    with pending_at(desk) as (client, pending):
        pending.start("200 OK", [])
        assert b"Transfer-Encoding: chunked" in head(client)
        for chunk in (event, event, b"", b"data: 2\n\n", event):
            assert pending.write(chunk)
        assert chunks(client, 4) == event + event + b"data: 2\n\n" + event
        with Client(desk.server) as old:
            old.send(OLD_POLL)
            second = desk.wait_for(2)
            second.start("200 OK", [])
            assert second.write(event)
            assert pending.write(event)
            assert second.close()
            assert old.rest().endswith(b"\r\n\r\n" + event)
            assert chunks(client, 1) == event


def test_a_stream_to_head_ends_with_its_head() -> None:
    desk = Desk()
    with pending_at(desk, POLL.replace(b"GET", b"HEAD")) as (client, pending):
        assert pending.start("200 OK", [])
        assert not pending.write(b"nobody sees it")
        assert not pending.close()
        assert client.answer("HEAD").status == 200
        desk.wait_for_end("head")
        assert client.ask(NOW).body == b"now"


def test_heartbeats_keep_a_silent_stream_alive_and_writes_put_them_off() -> None:
    desk = Desk(heartbeat=(0.05, b":\n\n"))
    with pending_at(desk) as (client, pending):
        pending.start("200 OK", [])
        head(client)
        assert chunks(client, 2) == b":\n\n:\n\n"
        for _ in range(10):
            pending.write(b"x")
            gevent.sleep(0.02)
        before = desk.server.pending.heartbeats
        pending.close()
        gevent.sleep(0.1)
        assert desk.server.pending.heartbeats == before


def test_a_heartbeat_may_be_given_with_the_start() -> None:
    with pending_at(Desk()) as (client, pending):
        pending.start("200 OK", [], heartbeat=(0.04, b"beat"))
        head(client)
        assert chunks(client, 2) == b"beatbeat"


# -- time and the client's end


def test_a_response_that_does_not_come_in_time_is_a_504() -> None:
    desk = Desk(timeout=0.05)
    with pending_at(desk) as (client, pending):
        assert client.answer().status == 504
        desk.wait_for_end("timeout")
        assert not pending.send("200 OK", [], b"late")
        assert client.ask(NOW).body == b"now"


def test_a_timeout_is_answered_as_the_application_wishes() -> None:
    def news(pending: PendingResponse) -> tuple[str, list[tuple[str, str]], bytes]:
        gevent.sleep(0.01)
        return "200 OK", [], b"no news"

    def by_itself(pending: PendingResponse) -> None:
        pending.send("200 OK", [], b"by itself")

    def fails(pending: PendingResponse) -> None:
        raise RuntimeError("on purpose")

    for on_timeout, expected in (
        (("204 No Content", [], b""), (204, b"")),
        (news, (200, b"no news")),
        (by_itself, (200, b"by itself")),
        (fails, (504, b"Gateway Timeout\n")),
        (lambda pending: "no response", (504, b"Gateway Timeout\n")),
        (lambda pending: None, (504, b"Gateway Timeout\n")),
    ):
        desk = Desk(timeout=0.03, on_timeout=on_timeout)
        with pending_at(desk, error_log=None) as (client, _):
            answer = client.answer()
            assert (answer.status, answer.body) == expected
            assert client.ask(NOW).body == b"now"
            assert len(desk.ended) == 1


def test_a_stream_has_no_timeout_once_it_has_begun() -> None:
    with pending_at(Desk(timeout=0.05)) as (client, pending):
        pending.start("200 OK", [])
        gevent.sleep(0.15)
        assert pending.write(b"still there")
        head(client)
        assert chunks(client, 1) == b"still there"


def test_without_a_timeout_it_waits_for_ever() -> None:
    with pending_at(Desk(timeout=0)) as (client, pending):
        gevent.sleep(0.1)
        assert pending.send("200 OK", [], b"at last")
        assert client.answer().body == b"at last"


@pytest.mark.parametrize("begins", [False, True])
def test_a_client_that_leaves_is_noticed_when_it_leaves(begins: bool) -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        if begins:
            pending.start("200 OK", [])
            head(client)
        client.sock.close()
        client.file.close()
        desk.wait_for_end("client")
        assert not (pending.write(b"x") if begins else pending.send("200 OK", [], b""))
        assert not pending.close()
        assert desk.server.parking.count == 0


def test_a_client_that_resets_or_shuts_its_side_has_left() -> None:
    desk = Desk()
    with attended(desk), Client(desk.server) as resets, Client(desk.server) as shuts:
        resets.send(POLL)
        shuts.send(POLL)
        desk.wait_for(2)
        resets.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        resets.file.close()
        resets.sock.close()
        shuts.sock.shutdown(socket.SHUT_WR)
        assert shuts.closed()
        desk.wait_for_end("client", "client")
        assert desk.server.parking.count == 0


@pytest.mark.parametrize("answers", [False, True])
def test_a_client_that_left_while_the_application_ran_is_noticed_when_it_returns(answers: bool) -> None:
    ended: list[str | None] = []
    entered = gevent.event.Event()
    go = gevent.event.Event()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        pending = environ["parked.defer"](on_close=lambda pending: ended.append(pending.reason))
        if answers:
            pending.send("200 OK", [], bytes(10_000_000))  # more than buffers take
        entered.set()
        go.wait()
        return []

    with serving(application) as server:
        with Client(server) as client:
            client.send(GET)
            entered.wait()
        eventually(lambda: server.parking.connections()[0].hung_up)
        go.set()
        eventually(lambda: ended)
        assert (ended, server.parking.count) == (["client"], 0)


# -- what the application does wrong


@pytest.mark.parametrize(
    ("status", "headers", "body", "error"),
    [
        ("200 OK\r\nX: y", [], b"", ValueError),
        ("two hundred", [], b"", ValueError),
        ("101 Switching Protocols", [], b"", ValueError),
        ("100 Continue", [], b"", ValueError),
        (b"200 OK", [], b"", ValueError),
        ("200 OK", [("X", "y\r\nInjected: z")], b"", ValueError),
        ("200 OK", [("X\n", "y")], b"", ValueError),
        ("200 OK", [("X y", "z")], b"", ValueError),
        ("200 OK", [("X", "\u20ac")], b"", ValueError),
        ("200 OK", [("Transfer-Encoding", "chunked")], b"", ValueError),
        ("200 OK", [("Content-Length", "5")], b"four", ValueError),
        ("200 OK", [("Content-Length", "4"), ("Content-Length", "4")], b"four", ValueError),
        ("200 OK", [("Content-Length", "+4")], b"four", ValueError),
        ("204 No Content", [("Content-Length", "5")], b"", ValueError),
        ("200 OK", [("X", 1)], b"", ValueError),
        ("200 OK", [], "text", TypeError),
        ("200 OK", [], 5, TypeError),
        ("200 OK", [], [b"list"], TypeError),
    ],
)
def test_what_cannot_go_out_is_refused_and_the_response_still_pending(
    status: Any, headers: Any, body: Any, error: type[Exception]
) -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        with pytest.raises(error):
            pending.send(status, headers, body)
        if body == b"":
            with pytest.raises(error):
                pending.start(status, headers)
        assert pending.send("200 OK", [("Content-Length", "4")], b"good")
        assert client.answer().body == b"good"
        assert client.ask(NOW).body == b"now"


def test_a_chunk_that_is_no_bytes_and_a_length_for_a_stream_are_refused() -> None:
    with pending_at(Desk()) as (client, pending):
        with pytest.raises(ValueError, match="Content-Length"):
            pending.start("200 OK", [("Content-Length", "4")])
        with pytest.raises(ValueError, match="heartbeat"):
            pending.start("200 OK", [], heartbeat=(0, b"x"))
        with pytest.raises(TypeError):
            pending.start("200 OK", [], heartbeat=(1, b""))
        pending.start("200 OK", [])
        for chunk in ("text", 5, None, [b"x"]):
            with pytest.raises(TypeError):
                pending.write(chunk)  # type: ignore[arg-type]
        pending.write(b"good")
        head(client)
        assert chunks(client, 1) == b"good"


def test_calls_in_no_order_that_makes_sense_are_errors_and_change_nothing() -> None:
    with pending_at(Desk()) as (client, pending):
        for call in (lambda: pending.write(b"x"), pending.close):
            with pytest.raises(RuntimeError):
                call()
        pending.start("200 OK", [])
        for call in (lambda: pending.send("200 OK", []), lambda: pending.start("200 OK", [])):
            with pytest.raises(RuntimeError):
                call()
        pending.write(b"x")
        pending.close()
        for call in (
            lambda: pending.send("200 OK", []),
            lambda: pending.start("200 OK", []),
            lambda: pending.write(b"x"),
        ):
            with pytest.raises(RuntimeError):
                call()
        assert not pending.close()
        assert client.answer().body == b"x"
        assert client.ask(NOW).body == b"now"


def test_there_is_no_copy_that_could_answer_once_more() -> None:
    with pending_at(Desk()) as (client, pending):
        for copies in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="copied"):
                copies(pending)
        assert pending.send("200 OK", [], b"once")
        assert client.answer().body == b"once"


def test_a_second_answer_is_an_error_and_does_not_reach_the_next_request() -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        pending.send("200 OK", [], b"first")
        with pytest.raises(RuntimeError, match="answered"):
            pending.send("200 OK", [], b"second")
        assert client.answer().body == b"first"
        assert client.ask(NOW).body == b"now"


def test_a_callback_that_raises_costs_one_line() -> None:
    lines: list[str] = []

    class Log:
        def write(self, text: str) -> None:
            lines.append(text)

    def fails(pending: PendingResponse) -> None:
        raise RuntimeError("on\npurpose")

    with pending_at(Desk(on_close=fails), error_log=Log()) as (client, pending):
        pending.send("200 OK", [], b"all right")
        assert client.answer().body == b"all right"
        eventually(lambda: lines)
        assert client.ask(NOW).body == b"now"
    assert len(lines) == 1
    assert lines[0].count("\n") == 1
    assert "fails failed: RuntimeError: on purpose (" in lines[0]


def test_another_thread_is_refused_and_has_a_way() -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        threads = gevent.get_hub().threadpool

        def wrong() -> str:
            with pytest.raises(RuntimeError, match="call_soon_threadsafe"):
                pending.send("200 OK", [], b"wrong")
            pending.call_soon_threadsafe(pending.send, "200 OK", [], b"right")
            return "done"

        assert threads.apply(wrong) == "done"
        assert client.answer().body == b"right"


# -- what it runs on


def test_it_works_over_tls(certificate: tuple[str, str]) -> None:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    desk = Desk()
    with attended(desk, ssl_context=context), TLSClient(desk.server) as client:
        client.send(POLL + NOW)
        body = b"x" * 3_000_000
        desk.wait_for(1).send("200 OK", [], body)
        assert [client.answer().body, client.answer().body] == [body, b"now"]
        client.send(POLL)
        pending = desk.wait_for(2)
        pending.start("200 OK", [])
        pending.write(b"one")
        head(client)
        assert chunks(client, 1) == b"one"
        client.file.close()
        client.sock.close()
        desk.wait_for_end("answered", "client")


def test_it_works_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = gevent.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    desk = Desk()
    desk.server = KeepAliveWSGIServer(listener, desk, log=None, environ={"SERVER_NAME": "x"})
    desk.server.start()
    try:
        with gevent.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect(path)
            client.sendall(POLL)
            desk.wait_for(1).send("200 OK", [("Connection", "close")], b"by path")
            data = b""
            while part := client.recv(4096):
                data += part
            assert data.endswith(b"by path")
        desk.wait_for_end("answered")
        with gevent.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(path)
            client.sendall(POLL)
            desk.wait_for(2)
        desk.wait_for_end("answered", "client")
    finally:
        desk.server.stop()


# -- nothing leaks


def test_nothing_is_left_of_clients_that_stall_leave_or_half_close() -> None:
    desk = Desk(timeout=0.2)
    process = psutil.Process()

    def answered(client: Client, pending: PendingResponse) -> None:
        assert pending.send("200 OK", [], b"x")
        assert client.answer().body == b"x"

    def leaves(client: Client, pending: PendingResponse) -> None:
        client.sock.close()

    def half_closes(client: Client, pending: PendingResponse) -> None:
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()

    def asks_more_and_leaves(client: Client, pending: PendingResponse) -> None:
        client.send(POLL)
        client.sock.close()

    def stalls(client: Client, pending: PendingResponse) -> None:
        pending.start("200 OK", [])
        while pending.write(b"x" * 1_000_000):
            pass

    kinds = (answered, leaves, half_closes, asks_more_and_leaves, stalls)

    def once(kind: Callable[[Client, PendingResponse], None]) -> None:
        before = len(desk.ended)
        desk.waiting.clear()
        with Client(desk.server) as client:
            client.send(POLL)
            kind(client, desk.wait_for())
        eventually(lambda: len(desk.ended) > before and not desk.server.parking.count)

    def census() -> tuple[int, int, int]:
        desk.waiting.clear()
        gc.collect()
        alive = gc.get_objects()
        return (
            sum(type(thing) is PendingResponse for thing in alive),
            sum(issubclass(type(thing), gevent.Greenlet) and not thing.dead for thing in alive),
            process.num_fds(),
        )

    with attended(desk):
        for kind in kinds:
            once(kind)
        before = census()
        for _ in range(8):
            for kind in kinds:
                once(kind)
        assert census() == before
        assert not desk.server.pending.count
        assert not desk.server.pending.deadlines._slots
