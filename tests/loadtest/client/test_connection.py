"""Connections: opening, sending and receiving over real sockets, plain and TLS."""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from parked.loadtest.client.connection import (
    IP_BIND_ADDRESS_NO_PORT,
    RECEIVE_BYTES,
    Connection,
    TlsConnection,
)
from parked.loadtest.client.errors import (
    BadResponse,
    ClosedByPeer,
    ConnectFailed,
    CutOff,
    SendFailed,
    TimedOut,
)
from parked.loadtest.client.readiness import Readiness
from parked.loadtest.client.source_address import SourceAddresses
from tests.commands import free_port
from tests.loadtest.peers import Peer, Served, eventually, server_tls

MIB = 1 << 20


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Opener:
    """Opens connections and closes them after the test; `ended` are those that the peer closed at rest."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self.opened: list[Connection] = []
        self.ended: list[Connection] = []

    def lost(self, connection: Connection) -> None:
        self.ended.append(connection)

    def __call__(self, port: int, host: str = "127.0.0.1", **options: Any) -> Connection:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        settings: dict[str, Any] = {"sources": None, "timeout_s": 5.0, "owner": self, **options}
        connection = Connection.open(family, (host, port), readiness=self._readiness, **settings)
        self.opened.append(connection)
        return connection


@pytest.fixture
def connect(readiness: Readiness) -> Iterator[Opener]:
    opener = Opener(readiness)
    yield opener
    for connection in opener.opened:
        connection.close()
    assert readiness.waiting == 0
    assert not any(readiness._connections)


def echo(served: Served) -> None:
    while data := served.sock.recv(MIB):
        served.sock.sendall(data)


def receive_all(connection: Connection, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.receive(5.0)
    return data


def test_what_is_sent_comes_back(connect: Opener) -> None:
    with Peer(echo) as peer:
        connection = connect(peer.port)
        for text in (b"a", b"hello", b"x" * RECEIVE_BYTES, b"y" * (3 * RECEIVE_BYTES + 1)):
            connection.send(text, 5.0)
            assert receive_all(connection, len(text)) == text


def test_a_connection_to_this_machine_is_open_without_a_wait(
    connect: Opener, readiness: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Connection] = []
    with Peer(echo) as peer:
        monkeypatch.setattr(readiness, "wait", lambda connection, timeout_s: waits.append(connection))
        connection = connect(peer.port)
        monkeypatch.undo()
        connection.send(b"a", 5.0)
        assert receive_all(connection, 1) == b"a"
    assert waits == []


def test_a_large_body_goes_out_in_parts_and_its_early_answer_is_not_missed(connect: Opener) -> None:
    def serve(served: Served) -> None:
        served.send(b"early")
        received = 0
        while received < 16 * MIB:
            received += len(served.sock.recv(MIB))
        gevent.sleep(60)

    with Peer(serve) as peer:
        connection = connect(peer.port)
        connection.send(b"z" * (16 * MIB), 5.0)
        assert connection.receive(1.0) == b"early"


def test_a_peer_that_stops_reading_times_the_send_out(connect: Opener) -> None:
    with Peer(lambda served: gevent.sleep(60)) as peer:
        connection = connect(peer.port)
        with pytest.raises(TimedOut):
            connection.send(b"z" * (64 * MIB), 0.05)


def test_a_silent_peer_times_the_receive_out(connect: Opener) -> None:
    with Peer(lambda served: gevent.sleep(60)) as peer:
        connection = connect(peer.port)
        began = time.perf_counter()
        with pytest.raises(TimedOut):
            connection.receive(0.1)
        assert 0.1 <= time.perf_counter() - began < 1.0


def test_the_end_is_told_apart_from_a_reset(connect: Opener) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(b"half")
        gevent.sleep(0.02)
        if served.number == 1:
            served.reset()

    with Peer(serve) as peer:
        for expected in (ClosedByPeer, CutOff):
            connection = connect(peer.port)
            connection.send(b"GET / HTTP/1.1\r\n\r\n", 5.0)
            assert connection.receive(5.0) == b"half"
            with pytest.raises(ClosedByPeer) as caught:
                connection.receive(5.0)
            assert type(caught.value) is expected
            assert connection.hung_up


def test_bytes_that_came_with_the_end_are_still_read(connect: Opener) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.sock.sendall(b"b" * 3 * RECEIVE_BYTES)

    with Peer(serve) as peer:
        connection = connect(peer.port)
        connection.send(b"GET / HTTP/1.1\r\n\r\n", 5.0)
        assert receive_all(connection, 3 * RECEIVE_BYTES) == b"b" * 3 * RECEIVE_BYTES
        with pytest.raises(ClosedByPeer):
            connection.receive(5.0)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_connection_that_the_peer_closes_at_rest_is_lost_at_once(connect: Opener, how: str) -> None:
    with Peer(lambda served: served.read_request() and None) as peer:
        connection = connect(peer.port)
        served = eventually(lambda: peer.connections and peer.connections[0])
        gevent.sleep(0)
        assert connect.ended == []
        if how == "reset":
            served.reset()
        else:
            served.sock.shutdown(socket.SHUT_WR)
        eventually(lambda: connect.ended == [connection])
        assert connection.closed
        connection.close()  # once more does nothing


def test_a_close_ends_the_connection_in_order(connect: Opener) -> None:
    ends: list[bytes] = []
    with Peer(lambda served: ends.append(served.sock.recv(100))) as peer:
        connection = connect(peer.port)
        connection.close()
        eventually(lambda: ends == [b""])
        assert connection.closed
        assert connect.ended == []


def test_sending_to_a_reset_connection_is_closed_by_peer(connect: Opener, readiness: Readiness) -> None:
    with Peer(lambda served: served.sock.recv(1)) as peer:
        connection = connect(peer.port)
        waiter = gevent.spawn(connection.receive, 5.0)  # holds the loss back
        connection.send(b"xx", 5.0)
        with pytest.raises(ClosedByPeer):
            waiter.get()
        with pytest.raises(ClosedByPeer):
            connection.send(b"more", 5.0)


def test_check_quiet_passes_a_quiet_connection_and_finds_unasked_bytes(connect: Opener) -> None:
    with Peer(echo) as peer:
        connection = connect(peer.port)
        connection.check_quiet()
        connection.ready = True  # an event without anything to read
        connection.check_quiet()
        assert not connection.ready
        peer_side = eventually(lambda: peer.connections and peer.connections[0])
        peer_side.send(b"unasked")
        eventually(lambda: connection.ready)
        with pytest.raises(BadResponse):
            connection.check_quiet()


# Opening


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_refused_says_so(connect: Opener) -> None:
    before = descriptors()
    with pytest.raises(ConnectFailed, match="Connection refused"):
        connect(free_port())
    assert descriptors() <= before


def test_a_source_that_is_not_ours_says_so(connect: Opener) -> None:
    with Peer(echo) as peer, pytest.raises(ConnectFailed, match="Cannot assign requested address"):
        connect(peer.port, sources=SourceAddresses("192.0.2.1", 0, 10))


def test_an_unreachable_server_says_so(connect: Opener) -> None:
    # TCP to a broadcast address: the kernel refuses at once (tcp_v4_connect).
    with pytest.raises(ConnectFailed):
        connect(9, "127.255.255.255")


def test_no_descriptor_left_says_so(connect: Opener) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Peer(echo) as peer:
        highest = os.dup(0)
        os.close(highest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        try:
            with pytest.raises(ConnectFailed, match=os.strerror(errno.EMFILE)):
                connect(peer.port)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_full_backlog_times_out(connect: Opener) -> None:
    before = descriptors()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with (
            gevent.socket.create_connection(
                ("127.0.0.1", port)
            ),  # the kernel holds one more than was asked for
            pytest.raises(TimedOut, match="connecting took too long"),
        ):
            connect(port, timeout_s=0.1)
        for connection in connect.opened:
            connection.close()
    assert descriptors() <= before


def test_a_connection_that_is_closed_while_it_opens_says_so(connect: Opener) -> None:
    # The end has to be there when the connect is noticed, so the loop must not run in between.
    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        accepted = gevent.spawn(lambda: listener.accept()[0].close())
        connection = connect(listener.getsockname()[1])
        accepted.get()
        # Either the end was there when the connect was noticed, or it comes as an event of its own.
        eventually(lambda: connection.hung_up or connect.ended == [connection])


def test_the_source_address_is_bound(connect: Opener) -> None:
    with Peer(echo) as peer:
        sources = SourceAddresses("127.1.2.0/24", 0, 2)
        assert [connect(peer.port, sources=sources).source for _ in range(3)] == [
            "127.1.2.1",
            "127.1.2.1",
            "127.1.2.2",
        ]


def test_ipv6_works_with_and_without_a_source(connect: Opener) -> None:
    with Peer(echo, host="::1") as peer:
        for sources in (None, SourceAddresses("::1", 0, 10)):
            connection = connect(peer.port, "::1", sources=sources)
            assert connection.source == "[::1]"
            connection.send(b"six", 5.0)
            assert connection.receive(5.0) == b"six"


# TLS


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_carries_small_and_large_bodies_both_ways(
    connect: Opener, certificates: Path, version: ssl.TLSVersion
) -> None:
    with Peer(echo, tls=server_tls(certificates, maximum_version=version)) as peer:
        connection = connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1")
        for size in (
            1,
            5000,
            64 * 1024,
        ):  # all of it fits in the sockets' buffers, or both would wait to send
            sent = os.urandom(size)
            connection.send(sent, 5.0)
            assert receive_all(connection, size) == sent


def test_tls_receives_a_body_larger_than_the_buffers(connect: Opener, certificates: Path) -> None:
    body = os.urandom(3 * MIB)

    def serve(served: Served) -> None:
        served.read_request()
        served.send(body)

    with Peer(serve, tls=server_tls(certificates)) as peer:
        connection = connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1")
        connection.send(b"GET / HTTP/1.1\r\n\r\n", 5.0)
        assert receive_all(connection, len(body)) == body


def test_tls_sends_a_body_larger_than_the_buffers(connect: Opener, certificates: Path) -> None:
    received = 0

    def serve(served: Served) -> None:
        nonlocal received
        while received < 8 * MIB:
            received += len(served.sock.recv(MIB))
        served.send(b"all")

    with Peer(serve, tls=server_tls(certificates)) as peer:
        connection = connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1")
        connection.send(b"t" * (8 * MIB), 5.0)
        assert receive_all(connection, 3) == b"all"
        assert received == 8 * MIB


def test_tls_records_that_come_in_single_bytes_are_put_together(connect: Opener, certificates: Path) -> None:
    """Between client and server stands a relay that passes every byte on in a segment of its own."""
    with Peer(echo, tls=server_tls(certificates)) as peer:

        def relay(served: Served) -> None:
            with gevent.socket.create_connection(("127.0.0.1", peer.port)) as onward:

                def back() -> None:
                    while data := onward.recv(MIB):
                        for at in range(len(data)):
                            served.send(data[at : at + 1])

                answers = gevent.spawn(back)
                while data := served.sock.recv(MIB):
                    onward.sendall(data)
                answers.kill()

        with Peer(relay) as between:
            connection = connect(between.port, tls_context=trusting(), server_hostname="127.0.0.1")
            connection.send(b"hello", 5.0)
            assert receive_all(connection, 5) == b"hello"


def test_a_self_signed_certificate_fails_only_where_it_is_verified(
    connect: Opener, certificates: Path
) -> None:
    with Peer(echo, tls=server_tls(certificates)) as peer:
        with pytest.raises(ConnectFailed, match="TLS: CERTIFICATE_VERIFY_FAILED"):
            connect(peer.port, tls_context=ssl.create_default_context(), server_hostname="127.0.0.1")
        verifying = ssl.create_default_context(cafile=str(certificates / "certificate.pem"))
        connection = connect(peer.port, tls_context=verifying, server_hostname="127.0.0.1")
        connection.send(b"hello", 5.0)
        assert receive_all(connection, 5) == b"hello"
        with pytest.raises(ConnectFailed, match="TLS"):
            connect(peer.port, tls_context=verifying, server_hostname="other.test")


def test_tls_to_a_server_that_has_none_says_so(connect: Opener) -> None:
    def serve(served: Served) -> None:
        served.sock.recv(1000)
        served.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Peer(serve) as peer, pytest.raises(ConnectFailed, match="TLS: "):
        connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1")


def test_a_tls_server_that_is_silent_or_hangs_up_in_the_handshake_says_so(connect: Opener) -> None:
    with Peer(lambda served: gevent.sleep(60)) as peer, pytest.raises(TimedOut, match="connecting"):
        connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1", timeout_s=0.1)
    with Peer(lambda served: served.sock.recv(1000)) as peer, pytest.raises(ConnectFailed):
        connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1")


@pytest.mark.parametrize("notify", [True, False])
def test_a_tls_end_is_orderly_only_with_close_notify(
    connect: Opener, certificates: Path, notify: bool
) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(b"some")
        if notify:
            served.sock.unwrap()

    with Peer(serve, tls=server_tls(certificates)) as peer:
        connection = connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1")
        connection.send(b"GET / HTTP/1.1\r\n\r\n", 5.0)
        assert receive_all(connection, 4) == b"some"
        with pytest.raises(ClosedByPeer) as caught:
            connection.receive(5.0)
        assert type(caught.value) is (ClosedByPeer if notify else CutOff)


def test_session_tickets_are_not_unasked_bytes_but_a_record_is(connect: Opener, certificates: Path) -> None:
    with Peer(echo, tls=server_tls(certificates, num_tickets=4)) as peer:
        connection = connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1")
        for _ in range(3):
            connection.check_quiet()
            connection.send(b"hello", 5.0)
            assert receive_all(connection, 5) == b"hello"
        peer.connections[0].send(b"one", b"two")
        # The first is read as if it had been asked for; the second came with it and waits inside TLS.
        assert receive_all(connection, 3) == b"one"
        gevent.sleep(0.02)
        with pytest.raises(BadResponse):
            connection.check_quiet()


def test_the_client_says_in_tls_that_it_closes(connect: Opener, certificates: Path) -> None:
    ends: list[bytes | OSError] = []

    def serve(served: Served) -> None:
        served.sock.suppress_ragged_eofs = False  # a missing close_notify raises
        try:
            ends.append(served.sock.recv(1))
        except OSError as error:
            ends.append(error)

    with Peer(serve, tls=server_tls(certificates)) as peer:
        connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1").close()
        eventually(lambda: ends)
    assert ends == [b""]


def test_sending_after_a_tls_failure_is_a_send_failure(connect: Opener, certificates: Path) -> None:
    with Peer(echo, tls=server_tls(certificates)) as peer:
        connection = connect(peer.port, tls_context=trusting(), server_hostname="127.0.0.1")
        assert isinstance(connection, TlsConnection)
        connection._object.write(b"")
        with pytest.raises(ssl.SSLError):
            connection._object.unwrap()  # our close_notify is out: nothing may follow
        with pytest.raises(SendFailed, match="TLS"):
            connection.send(b"more", 5.0)


def test_the_port_of_a_bound_source_is_left_to_connect(readiness: Readiness) -> None:
    """Or bind() would take one for all destinations, and an address would soon have none left."""
    sources = SourceAddresses("127.1.0.0/28", 0, 1)
    with Peer(echo) as peer:
        connection = Connection.open(
            socket.AF_INET,
            ("127.0.0.1", peer.port),
            readiness=readiness,
            sources=sources,
            timeout_s=5.0,
            owner=Opener(readiness),
        )
        try:
            assert connection.source.startswith("127.1.0.")
            with connection.as_socket() as sock:
                assert sock.getsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT) == 1
        finally:
            connection.close()
