from __future__ import annotations

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


def test_many_that_are_due_together_are_called_in_portions(bench: Bench) -> None:
    things = [Thing() for _ in range(module.CALLS_A_TURN + 10)]
    for thing in things:
        bench.deadlines.set(thing, 1)
    bench.deadlines.set(other := Thing(), 2)
    bench.pass_time(5)
    assert len(bench.called) == module.CALLS_A_TURN
    left = next(thing for thing in things if thing.due)
    bench.deadlines.cancel(left)
    eventually(lambda: other in bench.called)
    assert len(bench.called) == len(things)
    assert left not in bench.called


def test_sockets_are_looked_at_between_two_portions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALLS_A_TURN", 3)
    polls: list[int] = []
    bench.on_due = lambda _: polls.append(gevent.get_hub().loop.iteration)
    for _ in range(12):
        bench.deadlines.set(Thing(), 1)
    bench.pass_time(3)
    eventually(lambda: len(polls) == 12)
    assert [polls.count(poll) for poll in sorted(set(polls))] == [3, 3, 3, 3]


@pytest.mark.parametrize("error", [RuntimeError("on purpose"), gevent.Timeout(1), gevent.GreenletExit()])
def test_one_that_fails_does_not_keep_the_others_waiting(bench: Bench, error: BaseException) -> None:
    def fail(thing: Thing) -> None:
        bench.called.append(thing)
        raise error

    bench.on_due = fail
    for _ in range(3):
        bench.deadlines.set(Thing(), 1)
    bench.pass_time(3)
    assert len(bench.called) == 3
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
