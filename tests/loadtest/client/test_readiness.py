"""Readiness: each way in which a wait can end, and what may happen between two waits."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent import GreenletExit

from parked.loadtest.client import readiness as readiness_module
from parked.loadtest.client.connection import Connection
from parked.loadtest.client.errors import TimedOut
from parked.loadtest.client.readiness import Readiness
from tests.loadtest.peers import eventually


class Pair:
    """A registered connection and its other end, a plain socket."""

    def __init__(self, readiness: Readiness, number: int | None = None, room: bool = True) -> None:
        ours, self.peer = socket.socketpair()
        self.losses = 0
        with ours:  # dup2 gives it the number that is asked for
            descriptor = os.dup(ours.fileno()) if number is None else os.dup2(ours.fileno(), number)
        os.set_blocking(descriptor, False)
        self.connection = Connection(descriptor, readiness, self)
        readiness.register(self.connection, room)

    def settle(self) -> Pair:
        """Let the event pass that comes with registering: there is room for sending."""
        eventually(lambda: self.connection.ready)
        self.connection.ready = False
        return self

    def lost(self, _connection: Connection) -> None:
        self.losses += 1

    def close(self) -> None:
        self.connection.close()
        self.peer.close()


def until_it_would_block(step: Callable[[], object]) -> None:
    try:
        while True:
            step()
    except BlockingIOError:
        pass


@pytest.fixture
def pair(readiness: Readiness) -> Iterator[Pair]:
    made = Pair(readiness).settle()
    yield made
    made.close()


def test_bytes_wake_the_one_that_waits(readiness: Readiness, pair: Pair) -> None:
    waiter = gevent.spawn(readiness.wait, pair.connection, 5.0)
    gevent.sleep(0)
    assert readiness.waiting == 1
    assert not waiter.dead
    pair.peer.send(b"x")
    waiter.get(timeout=2)
    assert readiness.waiting == 0
    assert pair.connection.waiter is None


def test_an_event_that_comes_before_the_wait_is_kept(readiness: Readiness, pair: Pair) -> None:
    pair.peer.send(b"x")
    eventually(lambda: pair.connection.ready)
    readiness.wait(pair.connection, 5.0)
    assert not pair.connection.ready


def test_each_arrival_is_an_event_of_its_own(readiness: Readiness, pair: Pair) -> None:
    for _ in range(3):
        waiter = gevent.spawn(readiness.wait, pair.connection, 2.0)
        gevent.sleep(0)
        pair.peer.send(b"x")  # nothing is read in between: edge-triggered, not level-triggered
        waiter.get(timeout=2)


def test_the_end_wakes_the_one_that_waits_and_is_remembered(readiness: Readiness, pair: Pair) -> None:
    waiter = gevent.spawn(readiness.wait, pair.connection, 5.0)
    gevent.sleep(0)
    pair.peer.shutdown(socket.SHUT_WR)
    waiter.get(timeout=2)
    assert pair.connection.hung_up
    assert pair.losses == 0


def test_the_end_at_rest_is_told_once(pair: Pair) -> None:
    pair.peer.close()
    eventually(lambda: pair.losses)
    gevent.sleep(0.05)
    assert pair.losses == 1
    assert pair.connection.closed


def test_room_for_sending_wakes_the_one_that_waits(readiness: Readiness, pair: Pair) -> None:
    until_it_would_block(lambda: os.write(pair.connection.fd, b"x" * 65536))
    waiter = gevent.spawn(readiness.wait, pair.connection, 5.0)
    gevent.sleep(0)
    assert not waiter.dead
    pair.peer.setblocking(False)
    until_it_would_block(lambda: pair.peer.recv(1 << 20))
    waiter.get(timeout=2)


def test_room_is_told_of_only_where_somebody_asks(readiness: Readiness) -> None:
    pair = Pair(readiness, room=False)
    try:
        gevent.sleep(0.05)
        assert readiness.events == 0
        assert not pair.connection.ready
        readiness.watch_room(pair.connection)
        eventually(lambda: pair.connection.ready)
        pair.connection.ready = False
        until_it_would_block(lambda: os.write(pair.connection.fd, b"x" * 65536))
        readiness.watch_room(pair.connection)
        waiter = gevent.spawn(readiness.wait, pair.connection, 5.0)
        gevent.sleep(0.05)
        assert not waiter.dead
        pair.peer.setblocking(False)
        until_it_would_block(lambda: pair.peer.recv(1 << 20))
        waiter.get(timeout=2)
    finally:
        pair.close()


def test_a_timeout_ends_the_wait_and_nothing_else(readiness: Readiness) -> None:
    pairs = [Pair(readiness).settle() for _ in range(3)]
    try:
        began = time.perf_counter()
        short, long = (
            gevent.spawn(readiness.wait, pair.connection, s)
            for pair, s in zip(pairs, (0.1, 5.0), strict=False)
        )
        other = gevent.spawn(readiness.wait, pairs[2].connection, 0.1)
        for waiter in (short, other):
            with pytest.raises(TimedOut):
                waiter.get(timeout=2)
        assert 0.1 <= time.perf_counter() - began < 1.0
        assert not long.dead
        pairs[1].peer.send(b"x")
        long.get(timeout=2)
        assert readiness.waiting == 0
        pairs[0].peer.send(b"x")  # the connection is as good as before
        readiness.wait(pairs[0].connection, 2.0)
    finally:
        for pair in pairs:
            pair.close()


def test_one_that_times_out_may_wait_for_another_time_at_once(
    readiness: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wait begins while the sweep goes through the timeouts."""
    errors: list[object] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *details: errors.append(details))
    pairs = [Pair(readiness).settle() for _ in range(4)]
    try:

        def twice(pair: Pair, first_s: float, then_s: float) -> None:
            with pytest.raises(TimedOut):
                readiness.wait(pair.connection, first_s)
            with pytest.raises(TimedOut):
                readiness.wait(pair.connection, then_s)

        waiters = [
            gevent.spawn(twice, pair, first_s, then_s)
            for pair, first_s, then_s in zip(
                pairs, (0.1, 0.1, 0.11, 0.11), (0.12, 0.13, 0.14, 0.15), strict=True
            )
        ]
        for waiter in waiters:
            waiter.get(timeout=2)
        assert errors == []
    finally:
        for pair in pairs:
            pair.close()


def test_a_wait_that_another_timeout_renewed_is_not_cut_short(readiness: Readiness) -> None:
    """The first to time out wakes the second, which waits anew for as long: its old deadline is void."""
    first, second = Pair(readiness).settle(), Pair(readiness).settle()
    try:
        renewed: list[float] = []

        def one() -> None:
            with pytest.raises(TimedOut):
                readiness.wait(first.connection, 0.1)
            second.connection.waiter.switch()

        def two() -> None:
            readiness.wait(second.connection, 0.1)
            began = time.perf_counter()
            with pytest.raises(TimedOut):
                readiness.wait(second.connection, 0.1)
            renewed.append(time.perf_counter() - began)

        gevent.joinall([gevent.spawn(one), gevent.spawn(two)], timeout=2, raise_error=True)
        assert renewed[0] >= 0.1
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("exception", [GreenletExit(), gevent.Timeout(), KeyError("x")])
def test_an_exception_ends_the_wait_and_leaves_no_trace(
    readiness: Readiness, pair: Pair, exception: BaseException
) -> None:
    def wait() -> None:
        with pytest.raises(type(exception)):
            readiness.wait(pair.connection, 5.0)

    waiter = gevent.spawn(wait)
    gevent.sleep(0)
    waiter.kill(exception)
    waiter.get()
    assert readiness.waiting == 0
    assert pair.connection.waiter is None


def test_a_connection_closed_by_an_earlier_event_of_the_batch_is_passed_over(readiness: Readiness) -> None:
    """And so is a new one that got its descriptor in the meantime: the event at hand is not its own."""
    closing, victim = Pair(readiness).settle(), Pair(readiness).settle()
    made: list[Pair] = []
    try:

        def close_and_open() -> None:
            readiness.wait(closing.connection, 5.0)
            number = victim.connection.fd
            victim.connection.close()
            made.append(Pair(readiness, number))

        waiter = gevent.spawn(close_and_open)
        gevent.sleep(0)
        # Both events are there when the loop next looks, in this order.
        closing.peer.send(b"x")
        victim.peer.close()
        waiter.get(timeout=2)
        gevent.sleep(0.05)
        (newcomer,) = made
        assert not newcomer.connection.hung_up
        assert newcomer.losses == victim.losses == 0
    finally:
        for pair in (closing, victim, *made):
            pair.close()


def test_nobody_is_woken_once_it_is_closed_not_even_by_the_events_at_hand() -> None:
    """As in a child that a task has forked."""
    readiness = Readiness()
    closing, other = Pair(readiness).settle(), Pair(readiness).settle()
    try:

        def close() -> None:
            readiness.wait(closing.connection, 5.0)
            readiness.close()

        closes, waits = gevent.spawn(close), gevent.spawn(readiness.wait, other.connection, 5.0)
        gevent.sleep(0)
        closing.peer.send(b"x")
        other.peer.send(b"x")
        closes.get(timeout=2)
        gevent.sleep(0.05)
        assert not waits.ready()
        waits.kill()
    finally:
        closing.close()
        other.close()


def test_more_events_than_a_poll_takes_all_arrive(
    readiness: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness_module, "EVENTS_A_POLL", 4)
    pairs = [Pair(readiness).settle() for _ in range(30)]
    try:
        waiters = [gevent.spawn(readiness.wait, pair.connection, 5.0) for pair in pairs]
        gevent.sleep(0)
        for pair in pairs:
            pair.peer.send(b"x")
        gevent.joinall(waiters, timeout=2, raise_error=True)
        assert all(waiter.successful() for waiter in waiters)
    finally:
        for pair in pairs:
            pair.close()


def test_events_wait_for_dispatch_when_they_are_not_fetched_at_once(readiness: Readiness) -> None:
    pair = Pair(readiness).settle()
    readiness.fetch_at_once(False)
    pair.peer.send(b"x")
    gevent.sleep(0.05)
    assert not pair.connection.ready
    readiness.events = 0
    readiness.dispatch()
    assert pair.connection.ready
    assert readiness.events == 1
    pair.connection.ready = False
    readiness.fetch_at_once(True)
    pair.peer.send(b"y")
    eventually(lambda: pair.connection.ready)
    pair.close()


def test_what_comes_in_a_pause_is_fetched_together_behind_it(readiness: Readiness) -> None:
    pair = Pair(readiness).settle()
    pauses = iter((60.0,))
    readiness.pause_s = lambda: next(pauses, 0.0)
    pair.peer.send(b"x")
    eventually(lambda: pair.connection.ready)
    pair.connection.ready = False
    pair.peer.send(b"y")
    gevent.sleep(0.02)
    assert not pair.connection.ready
    readiness._resume()  # as its timer would
    eventually(lambda: pair.connection.ready)
    pair.close()


def test_a_pause_does_not_take_the_set_out_of_the_one_of_the_loop(readiness: Readiness) -> None:
    """To add it again takes the kernel longer the more connections there are."""

    def is_watched() -> bool:
        of_the_loop = Path(f"/proc/self/fdinfo/{gevent.get_hub().loop.fileno()}").read_text()
        return f"tfd: {readiness._epoll.fileno():8} " in of_the_loop

    pair = Pair(readiness).settle()
    assert is_watched()
    readiness.fetch_at_once(False)
    for _ in range(3):
        pair.peer.send(b"x")
        gevent.sleep(0.01)
    assert is_watched()
    readiness.fetch_at_once(True)
    eventually(lambda: pair.connection.ready)
    pair.close()


def test_there_is_no_pause_where_a_greenlet_waits(readiness: Readiness) -> None:
    listener, waiting = Pair(readiness).settle(), Pair(readiness).settle()
    waiter = gevent.spawn(readiness.wait, waiting.connection, 5.0)
    gevent.sleep(0)
    readiness.pause_s = lambda: 60.0
    listener.peer.send(b"x")
    eventually(lambda: listener.connection.ready)
    waiting.peer.send(b"x")
    waiter.get(timeout=2)
    listener.close()
    waiting.close()


@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_there_is_a_pause_where_only_listeners_wait_with_a_timeout_too(
    readiness: Readiness, timeout_s: float | None
) -> None:
    class Told:
        times = 0

        def switch(self) -> None:
            self.times += 1

        def throw(self, error: TimedOut) -> None: ...

    pair, told = Pair(readiness).settle(), Told()
    readiness.listen(pair.connection, told, timeout_s)
    assert readiness.waiting == 0
    pauses = iter((60.0,))
    readiness.pause_s = lambda: next(pauses, 0.0)
    pair.peer.send(b"x")
    eventually(lambda: told.times == 1)
    pair.peer.send(b"y")
    gevent.sleep(0.02)
    assert told.times == 1
    readiness._resume()  # as its timer would
    eventually(lambda: told.times == 2)
    readiness.leave(pair.connection, timeout_s)
    pair.close()


def test_a_look_for_events_never_waits_for_one(readiness: Readiness) -> None:
    """The timer of think times looks before each tick, where cores are short."""
    quickest_s = math.inf
    for _ in range(3):
        began = time.perf_counter()
        readiness.dispatch()
        quickest_s = min(quickest_s, time.perf_counter() - began)
    assert quickest_s < 0.9
