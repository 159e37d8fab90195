from __future__ import annotations

import time
from collections.abc import Callable

import gevent
import pytest

from parked.server import deadlines as module
from parked.server.deadlines import Deadlines
from tests.support import eventually


class Thing:
    def __init__(self) -> None:
        self.due = 0


class Bench:
    """Deadlines with a clock that we move, in slots of a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "GRAIN_S", 1.0)
        self.now = 1000.0
        self.called: list[Thing] = []
        self.on_due: Callable[[Thing], None] = self.called.append
        self.faults: list[tuple[Thing, BaseException]] = []
        self.deadlines: Deadlines[Thing] = Deadlines(
            lambda thing: self.on_due(thing),
            lambda thing, error: self.faults.append((thing, error)),
            lambda: self.now,
        )

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.deadlines.tick()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_a_deadline_is_never_early_and_at_most_a_slot_late(bench: Bench) -> None:
    bench.now = 1000.4
    thing = Thing()
    bench.deadlines.set(thing, 2.0)
    bench.pass_time(2.0)
    assert not bench.called
    bench.pass_time(0.6)
    assert bench.called == [thing]
    bench.pass_time(10)
    assert bench.called == [thing]


def test_the_last_deadline_counts_and_a_cancelled_one_does_not(bench: Bench) -> None:
    moved, cancelled = Thing(), Thing()
    bench.deadlines.set(moved, 1)
    bench.deadlines.set(moved, 5)
    bench.deadlines.set(cancelled, 1)
    bench.deadlines.cancel(cancelled)
    bench.deadlines.cancel(cancelled)
    bench.pass_time(4)
    assert not bench.called
    bench.pass_time(2)
    assert bench.called == [moved]


def test_a_deadline_may_set_the_next_one(bench: Bench) -> None:
    thing = Thing()
    bench.on_due = lambda thing: (bench.called.append(thing), bench.deadlines.set(thing, 1))[0]
    bench.deadlines.set(thing, 1)
    for _ in range(6):
        bench.pass_time(1)
    assert len(bench.called) == 3


def turns(bench: Bench) -> list[int]:
    """How many were called in each turn of the loop, as they are called."""
    sizes: list[int] = []
    last = -1

    def note(thing: Thing) -> None:
        nonlocal last
        poll = gevent.get_hub().loop.iteration
        if poll != last:
            sizes.append(0)
            last = poll
        sizes[-1] += 1
        bench.called.append(thing)

    bench.on_due = note
    return sizes


def test_what_is_due_together_is_spread_until_the_next_look(bench: Bench) -> None:
    sizes = turns(bench)
    things = [Thing() for _ in range(5 * module.TURNS_A_SLOT)]
    for thing in things:
        bench.deadlines.set(thing, 1)
    bench.pass_time(3)
    began = time.monotonic()
    left = next(thing for thing in things if thing.due)
    bench.deadlines.cancel(left)
    eventually(lambda: len(bench.called) == len(things) - 1)
    assert time.monotonic() - began > 0.5 * bench.deadlines.grain_s
    assert max(sizes) == 5  # fewer when the next look finds some of them left
    assert left not in bench.called


def test_a_turn_is_short_however_many_are_due(bench: Bench) -> None:
    sizes = turns(bench)
    for _ in range(5 * module.MAX_CALLS * module.TURNS_A_SLOT):
        bench.deadlines.set(Thing(), 1)
    bench.pass_time(3)
    eventually(lambda: sum(sizes) == 5 * module.MAX_CALLS * module.TURNS_A_SLOT)
    assert max(sizes) == module.MAX_CALLS


def test_who_is_late_makes_no_pauses_but_looks_at_the_sockets(bench: Bench) -> None:
    sizes = turns(bench)
    rest = 3 * module.CALLS_WHEN_LATE
    for _ in range(module.MAX_CALLS + rest):
        bench.deadlines.set(Thing(), 1)
    bench.pass_time(3)
    bench.pass_time(module.MAX_LATE_SLOTS)
    eventually(lambda: len(bench.called) == module.MAX_CALLS + rest)
    # The pause that had begun is over first.
    assert sizes == [module.MAX_CALLS, *[module.CALLS_WHEN_LATE] * 3]


def test_where_it_does_not_spread_all_come_at_once_between_two_polls(bench: Bench) -> None:
    sizes = turns(bench)
    bench.deadlines.spreads = False
    for _ in range(2 * module.CALLS_WHEN_LATE):
        bench.deadlines.set(Thing(), 1)
    bench.pass_time(3)
    eventually(lambda: len(bench.called) == 2 * module.CALLS_WHEN_LATE)
    assert sizes == [module.CALLS_WHEN_LATE] * 2


def test_after_all_is_forgotten_in_the_middle_it_begins_anew(bench: Bench) -> None:
    for spreads in (True, False):
        bench.deadlines.spreads = spreads
        for _ in range(2 * module.CALLS_WHEN_LATE):
            bench.deadlines.set(Thing(), 1)
        bench.pass_time(3)
        bench.deadlines.clear()
        bench.called.clear()
        bench.deadlines.set(thing := Thing(), 1)
        bench.pass_time(3)
        assert bench.called == [thing]


def test_a_pause_is_as_long_as_the_turn_before_it(bench: Bench) -> None:
    times: list[float] = []

    def be_slow(_: Thing) -> None:
        times.append(time.monotonic())
        time.sleep(0.02)

    bench.on_due = be_slow
    for _ in range(2 * module.MAX_CALLS * module.TURNS_A_SLOT):
        bench.deadlines.set(Thing(), 1)
    bench.pass_time(3)
    eventually(lambda: len(times) > module.MAX_CALLS)
    bench.deadlines.clear()
    took_s = times[module.MAX_CALLS - 1] - times[0]
    assert times[module.MAX_CALLS] - times[module.MAX_CALLS - 1] >= took_s


def test_who_was_stopped_in_a_turn_does_not_pause_for_as_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 3600.0])  # at a turn's beginning and end
    monkeypatch.setattr(module, "monotonic", lambda: next(clock, 3600.0))
    for _ in range(3 * module.MIN_CALLS):
        bench.deadlines.set(Thing(), 1)
    bench.pass_time(3)
    assert len(bench.called) == module.MIN_CALLS
    eventually(lambda: len(bench.called) == 3 * module.MIN_CALLS)


@pytest.mark.parametrize("error", [RuntimeError("on purpose"), gevent.Timeout(1), gevent.GreenletExit()])
def test_one_that_fails_does_not_keep_the_others_waiting(bench: Bench, error: BaseException) -> None:
    def fail(thing: Thing) -> None:
        bench.called.append(thing)
        raise error

    bench.on_due = fail
    for _ in range(3):
        bench.deadlines.set(Thing(), 1)
    bench.pass_time(3)
    eventually(lambda: len(bench.called) == 3)
    assert bench.faults == [(thing, error) for thing in bench.called]


def test_the_timer_runs_only_while_something_is_due(bench: Bench) -> None:
    thing = Thing()
    bench.deadlines.set(thing, 1)
    assert bench.deadlines._timer is not None
    bench.pass_time(3)
    assert bench.deadlines._timer is None
    bench.now += 1_000_000
    bench.deadlines.set(thing, 1)
    bench.pass_time(1)
    assert len(bench.called) == 1
    bench.pass_time(1)
    assert len(bench.called) == 2
    assert not bench.deadlines._slots
