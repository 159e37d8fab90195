"""The connection of a session: opened, kept, lost, and what ends a request on it."""

from __future__ import annotations

import contextlib
import ssl
import time
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import GreenletExit

from parked.loadtest.client import connection as connection_module
from parked.loadtest.client.errors import (
    BadResponse,
    BadStatus,
    ClosedByPeer,
    ConnectFailed,
    TimedOut,
)
from parked.loadtest.client.process import Process
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import (
    Peer,
    Served,
    answering,
    eventually,
    response,
    server_tls,
)

OK = response()


def test_requests_share_a_connection(new_session: NewSession, process: Process) -> None:
    with Peer(answering(OK, response(b"x", "Connection: keep-alive"))) as peer:
        client = new_session(peer.url)
        assert not client.connected
        for _ in range(5):
            assert client.get("/").ok
        assert len(peer.connections) == 1
        counters = process.counters
        assert (counters.connections, counters.opened, counters.reconnects) == (1, 1, 0)
        client.close()
        assert (counters.connections, counters.closed_by_peer) == (0, 0)
        eventually(lambda: peer.connections[0].sock.fileno() < 0)


@pytest.mark.parametrize(
    "answer",
    [
        response(b"ok", "Connection: Close"),
        response(b"ok", "Connection: x, close"),
        OK.replace(b"1.1", b"1.0"),
        b"HTTP/1.0 200 OK\r\n\r\nok",
    ],
)
def test_a_response_that_ends_the_connection_is_followed_by_a_new_one(
    new_session: NewSession, process: Process, answer: bytes
) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(answer)

    with Peer(serve) as peer:
        client = new_session(peer.url)
        for count in range(1, 4):
            assert client.get("/").text == "ok"
            counters = process.counters
            assert (counters.connections, counters.opened) == (0, count)
            assert (counters.reconnects, counters.closed_by_peer) == (count - 1, count)


def test_an_end_at_rest_is_counted_at_once_and_reconnected(new_session: NewSession, process: Process) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        client.get("/")
        assert process.counters.connections == 1
        peer.connections[0].sock.shutdown(1)
        eventually(lambda: process.counters.connections == 0)
        assert process.counters.closed_by_peer == 1
        assert not client.connected
        assert client.get("/").ok
        assert (process.counters.connections, process.counters.reconnects) == (1, 1)
        assert process.counters.failures == 0


def bad(answer: bytes, end: str = "") -> Any:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(answer)
        if end == "reset":
            served.reset()
        elif end == "silence":
            gevent.sleep(60)

    return serve


@pytest.mark.parametrize(
    ("serve", "failure"),
    [
        (bad(b""), ClosedByPeer),
        (bad(OK[:-1]), ClosedByPeer),
        (bad(OK[:20]), ClosedByPeer),
        (bad(OK[:-1], "reset"), ClosedByPeer),
        (bad(b"HTTP/1.1 200 OK\r\n\r\nhalf", "reset"), ClosedByPeer),
        (bad(b"", "silence"), TimedOut),
        (bad(OK[:-1], "silence"), TimedOut),
        (bad(b"SSH-2.0-OpenSSH\r\n", "silence"), BadResponse),
        (bad(OK + b"more", "silence"), BadResponse),
        (bad(OK + OK, "silence"), BadResponse),
        (bad(response(b"plain", "Content-Encoding: gzip"), "silence"), BadResponse),
        (bad(response(status="503 Service Unavailable"), "silence"), BadStatus),
    ],
)
def test_each_failure_is_counted_once_under_its_kind(
    new_session: NewSession, process: Process, fired: list[Any], serve: Any, failure: type[Exception]
) -> None:
    with Peer(serve) as peer:
        client = new_session(peer.url, network_timeout=0.1)
        answer = client.get("/", name="it")
        assert type(answer.error) in (failure, *failure.__subclasses__())
        assert [event["exception"] for event in fired] == [answer.error]
        counters = process.counters
        assert (counters.requests, counters.failures) == (1, 1)
        assert counters.failures_by_kind[failure.kind] == 1  # type: ignore[attr-defined]
        assert counters.connections == int(client.connected)
        # What came was whole in these two, so the next response can be told from it.
        assert client.connected == (failure is BadStatus or "gzip" in str(answer.error))
        assert counters.closed_by_peer == (1 if failure is ClosedByPeer else 0)


@pytest.mark.parametrize("unasked", [b"noise", OK])
def test_bytes_that_come_between_requests_fail_the_next(
    new_session: NewSession, process: Process, unasked: bytes
) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        assert client.get("/").ok
        peer.connections[0].send(unasked)
        eventually(lambda: client._connection is not None and client._connection.ready)
        answer = client.get("/")
        assert isinstance(answer.error, BadResponse)
        assert client.get("/").ok
        assert (len(peer.connections), len(peer.requests)) == (2, 2)
        assert process.counters.connections == 1


@pytest.mark.parametrize("tls", [False, True])
def test_a_server_that_answers_twice_is_found_out_within_two_requests(
    new_session: NewSession, tmp_path: Path, tls: bool
) -> None:
    def serve(served: Served) -> None:
        while served.read_request() is not None:
            served.send(OK, OK)

    with Peer(serve, tls=server_tls(tmp_path) if tls else None) as peer:
        client = new_session(peer.url, insecure=True)
        failures = 0
        for _ in range(10):
            failures += not client.get("/").ok
            gevent.sleep(0.002)
        assert failures >= 4


def test_refused_is_a_failure_and_the_next_request_tries_again(
    new_session: NewSession, process: Process
) -> None:
    peer = Peer(answering(OK))
    client = new_session(peer.url)
    peer.listener.close()
    for _ in range(2):
        assert isinstance(client.get("/").error, ConnectFailed)
    assert process.counters.failures_by_kind["connect"] == 2
    assert process.counters.connections == process.counters.opened == 0


def test_timing_out_counts_from_the_last_byte(new_session: NewSession) -> None:
    with Peer(
        lambda served: (
            served.read_request() and served.send(*(OK[at : at + 1] for at in range(len(OK))), pause_s=0.01)
        )
    ) as peer:
        assert new_session(peer.url, network_timeout=0.2).get("/").ok


def test_the_tasks_own_timeout_fails_the_request_and_closes(
    new_session: NewSession, process: Process, fired: list[Any]
) -> None:
    with Peer(bad(b"", "silence")) as peer:
        client = new_session(peer.url)
        for catch in (False, True):
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
                client.get("/", catch_response=catch)
            assert not client.connected
        assert process.counters.connections == 0
        assert [type(event["exception"]) for event in fired] == [TimedOut, TimedOut]
        assert process.readiness.waiting == 0


def test_a_kill_in_the_middle_of_a_request_closes_the_connection(
    new_session: NewSession, process: Process
) -> None:
    with Peer(bad(b"HTTP/1.1 200", "silence")) as peer:
        client = new_session(peer.url)
        task = gevent.spawn(client.get, "/")
        eventually(lambda: peer.requests)
        task.kill()
        assert isinstance(task.value, GreenletExit)
        assert not client.connected
        assert (process.counters.connections, process.counters.requests) == (0, 0)
        assert process.readiness.waiting == 0


def test_two_requests_at_once_on_one_user_are_refused(new_session: NewSession, process: Process) -> None:
    with Peer(bad(b"", "silence")) as peer:
        client = new_session(peer.url, network_timeout=0.2)
        first = gevent.spawn(client.get, "/")
        eventually(lambda: peer.requests)
        with pytest.raises(RuntimeError, match="another greenlet"):
            client.get("/")
        assert isinstance(first.get().error, TimedOut)
        both = [gevent.spawn(client.get, "/") for _ in range(2)]  # and while it connects
        gevent.joinall(both)
        assert sorted(type(greenlet.exception).__name__ for greenlet in both) == ["InUse", "NoneType"]
        assert process.counters.requests == 4, "each is counted, wherever its error goes"
        assert process.counters.connections == 0


def test_https_is_served_over_one_connection(
    new_session: NewSession, tmp_path: Path, process: Process
) -> None:
    with Peer(answering(OK), tls=server_tls(tmp_path)) as peer:
        client = new_session(peer.url, insecure=True)
        for _ in range(5):
            assert client.get("/").text == "ok"
            gevent.sleep(0.002)
        assert len(peer.connections) == 1
        verifying = new_session(peer.url)
        assert "CERTIFICATE_VERIFY_FAILED" in str(verifying.get("/").error)
        with contextlib.suppress(ssl.SSLWantReadError):  # it waits for ours
            peer.connections[0].sock._sslobj.shutdown()  # sends close_notify and leaves TCP open
        eventually(lambda: client._connection is None or client._connection.ready)
        assert client.get("/").text == "ok"
        assert process.counters.failures == 1


def test_a_name_that_does_not_resolve_is_a_failure_to_connect(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        answer = new_session(peer.url).get("http://no-such-host.invalid/")
        assert isinstance(answer.error, ConnectFailed)
        assert answer.url == "http://no-such-host.invalid/"


def test_a_host_that_is_no_url_is_a_failure_to_connect(new_session: NewSession) -> None:
    session = new_session("http://[broken")
    for _ in range(2):
        assert isinstance(session.get("/").error, ConnectFailed)


@pytest.mark.parametrize("resets", [True, False])
def test_an_answer_that_comes_while_the_body_is_being_sent_is_read(
    new_session: NewSession, resets: bool
) -> None:
    def serve(served: Served) -> None:
        served.sock.recv(1000)
        served.send(response(b"too much", status="413 Too Large"))
        if resets:
            served.sock.close()  # with bytes unread: a reset
        else:
            gevent.sleep(5)

    with Peer(serve) as peer:
        client = new_session(peer.url)
        answer = client.post("/", data=bytes(20_000_000))
        assert (answer.status_code, answer.text) == (413, "too much")
        assert not client.connected


def with_room(served: Served, answer: bytes) -> None:
    """Answer, and read some of the request, so that one event tells the client of both."""
    gevent.sleep(0.05)  # the client has filled its buffers and waits
    served.sock.sendall(answer)
    for _ in range(8):
        served.sock.recv(1 << 20)


@pytest.mark.parametrize(
    ("answer", "secure", "wanted"),
    [
        (response(b"too much", status="413 Too Large"), False, (413, "too much")),
        (response(b"too much", status="413 Too Large"), True, (413, "too much")),
        (response(b"enough"), False, (200, "enough")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"enough"), False, (200, "enough")),
    ],
)
def test_an_answer_is_read_that_comes_with_room_for_more_of_the_request(
    new_session: NewSession,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: bytes,
    secure: bool,
    wanted: tuple[int, str],
) -> None:
    monkeypatch.setattr(connection_module, "READS_ON_S", 0.1)

    def serve(served: Served) -> None:
        with_room(served, answer)
        gevent.sleep(60)

    with Peer(serve, tls=server_tls(tmp_path) if secure else None) as peer:
        got = new_session(peer.url, insecure=True).post("/", data=bytes(20_000_000))
        assert (got.status_code, got.text) == wanted


@pytest.mark.parametrize(
    "begun", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"]
)
def test_a_server_that_reads_on_after_it_began_to_answer_gets_all(
    new_session: NewSession, begun: bytes
) -> None:
    rest = b"ok" if b"Length" in begun else OK

    def serve(served: Served) -> None:
        with_room(served, begun)
        left = 20_000_000 - 8 * (1 << 20)
        while left > 1 << 20:
            left -= len(served.sock.recv(1 << 20))
        served.send(rest)
        while served.sock.recv(1 << 20):
            pass

    with Peer(serve) as peer:
        client = new_session(peer.url)
        assert client.post("/", data=bytes(20_000_000)).text == "ok"


def test_a_server_that_takes_a_request_in_sips_does_not_outlive_its_timeout(new_session: NewSession) -> None:
    def serve(served: Served) -> None:
        while served.sock.recv(1 << 16):
            gevent.sleep(0.01)

    with Peer(serve) as peer:
        began = time.perf_counter()
        answer = new_session(peer.url).post("/", data=bytes(100_000_000), timeout=0.5)
        assert isinstance(answer.error, TimedOut)
        assert time.perf_counter() - began < 5


def test_a_server_that_answers_before_it_is_asked_and_leaves_is_heard(new_session: NewSession) -> None:
    with Peer(lambda served: served.send(response(status="503 Full"))) as peer:
        assert new_session(peer.url).get("/").status_code == 503


def test_a_server_that_answers_before_it_is_asked_is_heard(new_session: NewSession) -> None:
    def serve(served: Served) -> None:
        served.send(response(status="503 Full"))
        gevent.sleep(60)

    with Peer(serve) as peer:
        assert new_session(peer.url).get("/").status_code == 503


def test_a_connection_that_ends_at_once_is_not_held(new_session: NewSession, process: Process) -> None:
    with Peer(lambda served: None) as peer:
        client = new_session(peer.url)
        with contextlib.suppress(ConnectFailed):  # unless the end comes after the connect was noticed
            client.connect()
        eventually(lambda: process.counters.connections == 0)
        assert not client.connected


def test_a_connection_that_has_ended_as_it_opens_serves_a_request_but_is_not_held(
    new_session: NewSession, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = connection_module.Connection.open

    def opened(*args: Any, **options: Any) -> connection_module.Connection:
        connection = usual(*args, **options)
        connection.hung_up = True
        return connection

    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        with monkeypatch.context() as patch:
            patch.setattr(connection_module.Connection, "open", opened)
            with pytest.raises(ConnectFailed, match="closed by the server at once"):
                client.connect()
        assert (process.counters.connections, process.counters.opened) == (0, 0)
        client.connect()
        assert process.counters.opened == 1
