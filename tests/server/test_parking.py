from __future__ import annotations

import _socket
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from parked.server import parking
from parked.server.connection import EDGE, Connection
from parked.server.parking import Parking
from tests.support import eventually


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """Parking with one end of socket pairs parked in it and a clock that we move."""

    def __init__(self, **timeouts: float) -> None:
        self.clock = Clock()
        self.ready: list[Connection] = []
        self.late: list[Connection] = []
        self.emptied = 0
        self.parking = Parking(self.ready.extend, self.late.append, self.empty, **timeouts, clock=self.clock)
        self.parking._moderation.look = lambda *_: 0.0  # type: ignore[method-assign]
        self.peers: list[socket.socket] = []

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.parking.drain()
        for connection in self.parking.connections():
            self.parking.close(connection)

    def empty(self) -> None:
        self.emptied += 1

    def park(self) -> tuple[Connection, socket.socket]:
        ours, peer = socket.socketpair()
        raw = _socket.socket(ours.family, ours.type, ours.proto, fileno=ours.detach())
        raw.setblocking(False)
        connection = Connection(raw, ("peer", 1))
        self.parking.add(connection)
        self.peers.append(peer)
        return connection, peer

    def pass_time(self, seconds: float, rounds: int = 1) -> None:
        self.clock.now += seconds
        for _ in range(rounds):
            self.parking.tick()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(idle_timeout=60, header_timeout=10)
    yield bench
    bench.close()


def test_a_parked_connection_is_reported_once_when_it_becomes_readable(bench: Bench) -> None:
    connection, peer = bench.park()
    other, _ = bench.park()
    peer.send(b"x")
    eventually(lambda: bench.ready)
    assert bench.ready == [connection]
    assert connection.busy
    assert not other.busy
    gevent.sleep(0.02)
    assert bench.ready == [connection]


def test_bytes_that_were_there_before_parking_are_reported(bench: Bench) -> None:
    ours, peer = socket.socketpair()
    bench.peers.append(peer)
    peer.send(b"early")
    raw = _socket.socket(ours.family, ours.type, ours.proto, fileno=ours.detach())
    bench.parking.add(Connection(raw, ""))
    eventually(lambda: bench.ready)


def test_an_edge_while_busy_is_remembered_and_reported_to_nobody_else(bench: Bench) -> None:
    connection, peer = bench.park()
    peer.send(b"x")
    eventually(lambda: bench.ready)
    peer.send(b"y")
    eventually(lambda: connection.reported == EDGE)
    connection.reported = 0
    bench.parking.park(connection)
    assert not connection.busy
    assert bench.ready == [connection]


def test_a_client_that_shuts_its_side_is_reported_as_hung_up(bench: Bench) -> None:
    connection, peer = bench.park()
    peer.shutdown(socket.SHUT_WR)
    eventually(lambda: bench.ready)
    assert connection.hung_up


def test_an_idle_connection_is_closed_after_the_timeout_and_not_before(bench: Bench) -> None:
    connection, _ = bench.park()
    bench.pass_time(59, parking.TICKS_A_ROUND)
    assert bench.parking.count == 1
    bench.pass_time(4, parking.TICKS_A_ROUND)
    assert bench.parking.count == 0
    assert connection.sock.fileno() == -1
    assert bench.parking.idle_timed_out == 1


def test_nobody_is_closed_before_its_time_however_old_the_last_tick_is(bench: Bench) -> None:
    bench.clock.now = 1000.99
    bench.parking.tick()
    bench.clock.now = 1001.98  # the next tick is due
    bench.park()
    bench.pass_time(59.9, parking.TICKS_A_ROUND)
    assert bench.parking.count == 1


def test_a_first_connection_long_after_the_start_has_its_whole_idle_timeout(bench: Bench) -> None:
    bench.clock.now += 3600
    connection, _ = bench.park()
    bench.pass_time(1, rounds=10)
    assert connection.sock.fileno() >= 0
    assert bench.parking.idle_timed_out == 0


def test_parking_anew_starts_the_idle_timeout_anew(bench: Bench) -> None:
    connection, _ = bench.park()
    for _ in range(3):
        bench.pass_time(50, parking.TICKS_A_ROUND)
        connection.busy = True
        bench.parking.park(connection)
    assert bench.parking.count == 1


def test_the_clock_hand_reaches_every_descriptor_in_one_round(bench: Bench) -> None:
    for _ in range(50):
        bench.park()
    bench.pass_time(63, parking.TICKS_A_ROUND)
    assert bench.parking.count == 0


def test_a_busy_connection_is_not_idle(bench: Bench) -> None:
    connection, _ = bench.park()
    connection.busy = True
    bench.pass_time(1000, 2 * parking.TICKS_A_ROUND)
    assert bench.parking.count == 1


def test_half_a_request_has_the_header_timeout_from_its_first_byte_on(bench: Bench) -> None:
    connection, _ = bench.park()
    connection.buffer = b"GET"
    bench.parking.park(connection)
    bench.pass_time(6)
    connection.buffer = b"GET /"
    bench.parking.park(connection)  # more of it does not extend the time
    bench.pass_time(3)
    assert bench.late == []
    bench.pass_time(2)
    assert bench.late == [connection]


def test_a_complete_request_has_no_deadline(bench: Bench) -> None:
    connection, _ = bench.park()
    connection.buffer = b"GET"
    bench.parking.park(connection)
    bench.parking.head_complete(connection)
    bench.pass_time(100)
    assert bench.late == []


def test_a_timeout_of_0_means_never() -> None:
    bench = Bench()
    connection, _ = bench.park()
    connection.buffer = b"GET"
    bench.parking.park(connection)
    bench.pass_time(1e6, 2 * parking.TICKS_A_ROUND)
    assert bench.parking.count == 1
    assert bench.late == []
    bench.close()


def test_when_very_many_are_overdue_others_have_their_turn_between(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "EXPIRY_PAUSE_S", 0.5)
    monkeypatch.setattr(parking, "TICK_S", 1000.0)  # it is not the next look that ends the rest
    count = 3 * parking.EXPIRIES_A_TURN
    for _ in range(count):
        connection, _ = bench.park()
        connection.buffer = b"GET"
        bench.parking.park(connection)
    lively, peer = bench.park()
    peer.send(b"x")
    bench.pass_time(11)
    assert len(bench.late) == parking.EXPIRIES_A_TURN
    eventually(lambda: bench.ready == [lively])
    assert len(bench.late) < count
    eventually(lambda: len(bench.late) == count)


def test_closing_twice_counts_once(bench: Bench) -> None:
    connection, _ = bench.park()
    bench.parking.close(connection)
    bench.parking.close(connection)
    assert bench.parking.count == 0


def test_a_descriptor_that_somebody_else_closes_costs_its_own_connection_only(bench: Bench) -> None:
    """As by a library that closes one twice."""
    connection, _ = bench.park()
    fd = connection.sock.fileno()
    ours, peer = socket.socketpair()
    os.dup2(ours.fileno(), fd)  # closed, and a newcomer has the number
    ours.close()
    bench.peers.append(peer)
    newcomer = Connection(_socket.socket(fileno=fd), ("peer", 2))
    newcomer.sock.setblocking(False)  # type: ignore[attr-defined]
    bench.parking.add(newcomer)
    assert bench.parking.count == 1
    assert connection.hung_up
    del connection  # with its socket
    peer.send(b"x")
    eventually(lambda: bench.ready)
    assert (bench.ready, newcomer.sock.recv(9)) == ([newcomer], b"x")
    with Path("/dev/null").open() as file:
        os.dup2(file.fileno(), fd)
    bench.parking.close(newcomer)
    assert os.read(fd, 1) == b""  # still open
    os.close(fd)
    assert bench.parking.count == 0


def test_draining_closes_the_idle_and_tells_when_the_busy_are_gone(bench: Bench) -> None:
    parked, _ = bench.park()
    busy, _ = bench.park()
    busy.busy = True
    bench.parking.drain()
    assert parked.sock.fileno() == -1
    assert bench.emptied == 0
    bench.parking.close(busy)
    assert bench.emptied == 1


def test_fetches_events_at_intervals_when_told_to_and_as_they_come_again_after(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    window_s = 0.3
    monkeypatch.setattr(bench.parking._moderation, "look", lambda *_: window_s)
    connections, peers = zip(*(bench.park() for _ in range(3)), strict=True)
    bench.parking.tick()
    for peer in peers:
        peer.send(b"x")
    gevent.sleep(0.05)
    assert bench.ready == []
    eventually(lambda: len(bench.ready) == 3)  # all in one fetch
    assert set(bench.ready) == set(connections)
    bench.ready.clear()
    for connection in connections:
        connection.sock.recv(10)
        bench.parking.park(connection)
    window_s = 0.0
    bench.parking.tick()
    peers[0].send(b"y")
    eventually(lambda: bench.ready == [connections[0]])


def test_new_connections_are_events_for_which_nobody_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(bench.parking._moderation, "look", lambda *figures: seen.append(figures) or 0.0)
    monkeypatch.setattr(
        bench.parking._moderation, "look_at_new", lambda *figures: seen.append(figures) or 0.25
    )
    told: list[float] = []
    bench.parking.on_intervals = told.append
    bench.parking.later = lambda: (1, 2)  # requests whose answer is for later
    one, peer = bench.park()
    bench.parking._timer.stop()  # the only ticks are ours
    seen.clear()
    bench.park()
    peer.send(b"x")
    eventually(lambda: bench.ready)
    bench.parking.tick()
    bench.parking.close(one)
    bench.park()
    bench.parking.tick()
    bench.parking.tick()
    assert seen == [(3, 2, 3, 2), (2, 0), (1, 2, 1, 2), (1, 1), (0, 2, 0, 2), (0, 0)]
    assert told == [0.25] * 3


def test_what_has_come_since_the_last_fetch_is_served_in_a_drain(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.parking._moderation, "look", lambda *_: 3600.0)
    asking, peer = bench.park()
    idle, _ = bench.park()
    bench.parking.tick()
    peer.send(b"x")
    bench.parking.drain()
    assert idle.sock.fileno() == -1
    assert asking.sock.fileno() != -1
    assert bench.emptied == 0
    eventually(lambda: bench.ready == [asking])
    bench.parking.close(asking)
    assert bench.emptied == 1


class RecordingLoop:
    """The event loop, noting when its timers are to go off first."""

    def __init__(self) -> None:
        self._loop = gevent.get_hub().loop
        self.first_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def timer(self, after: float, *arguments: Any, **options: Any) -> Any:
        if arguments:  # one that repeats
            self.first_s.append(after)
        return self._loop.timer(after, *arguments, **options)


def test_workers_that_begin_together_look_at_timeouts_at_different_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = RecordingLoop()
    monkeypatch.setattr(parking, "get_hub", lambda: SimpleNamespace(loop=loop))
    for _ in range(10):
        bench = Bench()
        bench.park()
        bench.close()
    assert len(set(loop.first_s)) == 10
    assert all(0 < first_s <= parking.TICK_S for first_s in loop.first_s)
