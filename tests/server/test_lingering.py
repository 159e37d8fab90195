from __future__ import annotations

import _socket
import contextlib
import socket
from collections.abc import Iterator

import gevent
import pytest

from parked.server import lingering
from parked.server.connection import Connection
from tests.server.test_parking import Bench
from tests.support import eventually


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(idle_timeout=60, header_timeout=10)
    yield bench
    bench.close()


def flood(peer: socket.socket, size: int) -> int:
    """Send *size* bytes as fast as they are taken; how many were."""
    peer.setblocking(False)
    sent = 0

    def send() -> bool:
        nonlocal sent
        try:
            sent += peer.send(b"x" * min(65536, size - sent))
        except BlockingIOError:
            pass
        except OSError:
            return True
        return sent == size

    eventually(send)
    return sent


def test_a_lingering_connection_throws_input_away_until_the_client_closes(bench: Bench) -> None:
    connection, peer = bench.park()
    bench.parking.linger(connection)
    assert peer.recv(10) == b""  # our side is shut
    peer.send(b"x" * 1000)
    gevent.sleep(0.02)
    assert bench.ready == []
    assert bench.parking.count == 1
    peer.close()
    eventually(lambda: bench.parking.count == 0)


def test_a_client_that_resets_its_lingering_connection_is_no_fault(bench: Bench) -> None:
    faults: list[BaseException] = []
    bench.parking._on_fault = lambda what, error: faults.append(error)
    connection, peer = bench.park()
    connection.sock.send(b"an answer that nobody reads")
    bench.parking.linger(connection)
    peer.close()
    eventually(lambda: bench.parking.count == 0)
    assert faults == []


def test_a_large_upload_is_thrown_away_to_its_end(bench: Bench) -> None:
    connection, peer = bench.park()
    bench.parking.linger(connection)
    assert flood(peer, 20 << 20) == 20 << 20
    assert bench.parking.count == 1
    peer.close()
    eventually(lambda: bench.parking.count == 0)


@pytest.mark.parametrize("sends", [b"", b"drip"])
@pytest.mark.parametrize("before", [0, lingering.LINGER_BYTES + 4000])
def test_a_client_that_is_silent_or_drips_is_closed_in_time(bench: Bench, sends: bytes, before: int) -> None:
    """Whatever it has sent before."""
    connection, peer = bench.park()
    bench.parking.linger(connection)
    if before:
        assert flood(peer, before) == before
        eventually(lambda: not unread(connection))
    for second in range(int(lingering.LINGER_S) + 1):
        bench.pass_time(1)
        if second < lingering.LINGER_S - 1:
            assert bench.parking.count == 1
            if sends:
                peer.send(sends)
            gevent.sleep(0.01)
    assert bench.parking.count == 0


def test_a_client_that_goes_on_sending_is_closed_all_the_same(bench: Bench) -> None:
    connection, peer = bench.park()
    bench.parking.linger(connection)
    rounds = 0
    while bench.parking.count:
        flood(peer, 2 * lingering.LINGER_BYTES)
        gevent.sleep(0.01)
        bench.pass_time(lingering.LINGER_S - 1)
        rounds += 1
    assert rounds == pytest.approx(lingering.LINGER_TOTAL_S / (lingering.LINGER_S - 1), abs=2)


def test_all_together_are_read_at_a_bounded_pace(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "GO_S", 0.2)
    taken = 0
    for _ in range(20):
        connection, peer = bench.park()
        bench.parking.linger(connection)
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                taken += peer.send(b"x" * 65536)
    bench.parking._on_events()
    left = sum(unread(connection) for connection in bench.parking.connections())
    assert taken - left <= lingering.BYTES_A_GO + 65536
    eventually(lambda: not any(map(unread, bench.parking.connections())))


def unread(connection: Connection) -> int:
    try:
        sock = connection.sock
        assert isinstance(sock, _socket.socket)
        return len(sock.recv(1 << 22, _socket.MSG_PEEK))
    except BlockingIOError:
        return 0


def test_a_stopping_server_waits_less(bench: Bench) -> None:
    before, peer = bench.park()
    bench.parking.linger(before)
    busy, _ = bench.park()
    busy.busy = True
    bench.parking.drain()
    bench.parking.linger(busy)
    flood(peer, 2 * lingering.LINGER_BYTES)
    gevent.sleep(0.01)
    bench.pass_time(lingering.HASTY_LINGER_S + 0.1)
    assert bench.emptied == 1


def test_a_server_that_is_started_again_waits_as_long_as_before(bench: Bench) -> None:
    bench.parking.drain()
    bench.parking.open()
    connection, _ = bench.park()
    bench.parking.linger(connection)
    bench.pass_time(lingering.HASTY_LINGER_S + 0.1)
    assert bench.parking.count == 1


def test_one_that_cannot_be_emptied_costs_itself_only(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "BYTES_A_GO", 1)
    pairs = [bench.park() for _ in range(3)]
    for connection, peer in pairs:
        peer.sendall(b"x" * 100)
        bench.parking.linger(connection)
    broken = pairs[1][0]
    emptied = bench.parking._lingering
    discard = emptied._discard

    def fail(connection: Connection, lingerer: lingering.Lingerer) -> None:
        if connection is broken:
            raise RuntimeError("on purpose")
        discard(connection, lingerer)

    monkeypatch.setattr(emptied, "_discard", fail)
    for connection, _ in pairs:
        assert isinstance(connection.busy, lingering.Lingerer)
        emptied._behind[connection] = connection.busy
    emptied._schedule()
    eventually(lambda: broken.sock.fileno() < 0)
    for _, peer in (pairs[0], pairs[2]):
        peer.shutdown(socket.SHUT_WR)
    eventually(lambda: bench.parking.count == 0)


def test_one_that_has_ended_is_no_garbage_for_the_collector(bench: Bench) -> None:
    connection, peer = bench.park()
    bench.parking.linger(connection)
    peer.close()
    eventually(lambda: bench.parking.count == 0)
    assert connection.busy is True
