"""The think timer: when sleepers wake, in which order, and what a late tick shows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from parked.loadtest.client.think import (
    PHASED_SLOTS,
    SHARE_OF_SLEEP,
    SLEEPERS_A_SLOT,
    SLOT_S,
    WIDEST,
    Slot,
    ThinkTimer,
    grain_s,
)
from tests.loadtest.peers import eventually


class Sleeper:
    def __init__(self, name: int = 0) -> None:
        self.name = name
        self._slot: Slot | None = None


class Woken:
    """What the timer has woken: (sleeper, due, at)."""

    def __init__(self) -> None:
        self.all: list[tuple[Sleeper, float, float]] = []
        self.then: Callable[[Sleeper], None] = lambda sleeper: None
        self.timer: ThinkTimer[Sleeper] = ThinkTimer(self._wake)

    def _wake(self, sleeper: Sleeper, due: float) -> None:
        self.all.append((sleeper, due, time.perf_counter()))
        self.then(sleeper)


def keep_the_loop_busy(seconds: float) -> None:
    until = time.perf_counter() + seconds  # time.sleep would yield: Locust has patched it
    while time.perf_counter() < until:
        pass


@pytest.fixture
def woken() -> Iterator[Woken]:
    made = Woken()
    yield made
    made.timer.close()


def test_a_sleeper_wakes_once_within_a_slot_of_its_time(woken: Woken) -> None:
    began = time.perf_counter()
    sleeper = Sleeper()
    woken.timer.sleep(sleeper, 0.1)
    assert sleeper._slot is not None
    eventually(lambda: woken.all)
    gevent.sleep(0.05)
    ((who, due, at),) = woken.all
    assert who is sleeper
    assert sleeper._slot is None
    assert due == pytest.approx(began + 0.1, abs=SLOT_S)
    assert due <= at < due + 0.5, "never early"


def test_sleepers_wake_in_the_order_of_their_times(woken: Woken) -> None:
    for name in (5, 1, 4, 2, 3):
        woken.timer.sleep(Sleeper(name), name * 0.03)
    eventually(lambda: len(woken.all) == 5)
    assert [sleeper.name for sleeper, _, _ in woken.all] == [1, 2, 3, 4, 5]


def test_a_sleep_of_nothing_wakes_in_a_slot_to_come(woken: Woken) -> None:
    woken.timer.sleep(Sleeper(), 0.0)
    assert woken.all == []
    eventually(lambda: woken.all)


def test_a_forgotten_sleeper_stays_asleep_and_may_sleep_again(woken: Woken) -> None:
    forgotten, other = Sleeper(), Sleeper()
    woken.timer.sleep(forgotten, 0.03)
    woken.timer.sleep(other, 0.03)
    woken.timer.forget(forgotten)
    eventually(lambda: woken.all)
    gevent.sleep(0.03)
    assert [sleeper for sleeper, _, _ in woken.all] == [other]
    woken.timer.sleep(forgotten, 0.5)
    woken.timer.forget(forgotten)
    woken.timer.sleep(forgotten, 0.02)  # the old place must not wake it a second time
    eventually(lambda: len(woken.all) == 2)


def test_one_that_is_woken_may_sleep_at_once(woken: Woken) -> None:
    left = 5

    def again(sleeper: Sleeper) -> None:
        nonlocal left
        left -= 1
        if left:
            woken.timer.sleep(sleeper, 0.0)

    woken.then = again
    woken.timer.sleep(Sleeper(), 0.0)
    eventually(lambda: left == 0)
    dues = [due for _, due, _ in woken.all]
    assert all(later > earlier for earlier, later in itertools.pairwise(dues)), "a slot each"


def test_a_late_tick_keeps_the_due_time_and_shows_the_lag(woken: Woken) -> None:
    woken.timer.sleep(Sleeper(), 0.02)
    keep_the_loop_busy(0.2)
    eventually(lambda: woken.all)
    ((_, due, at),) = woken.all
    assert at - due >= 0.15
    assert 0.15 <= woken.timer.lag_max_s < 5


def test_ticks_keep_their_phase_after_a_late_one(woken: Woken) -> None:
    keep_the_loop_busy(0.05)
    for _ in range(5):
        woken.timer.sleep(Sleeper(), 0.0)
        gevent.sleep(3 * SLOT_S)
    phases = {round((due - woken.timer._origin) / SLOT_S, 6) % 1 for _, due, _ in woken.all}
    assert phases == {0.0}


@pytest.mark.parametrize("processes", [2, 3, 7, 22, 55])
def test_the_slots_of_all_processes_lie_between_each_other(processes: int) -> None:
    stride_s = PHASED_SLOTS * SLOT_S
    timers = [ThinkTimer[Sleeper](lambda sleeper, due: None, number) for number in range(processes)]
    try:
        phases = sorted(timer._origin % stride_s for timer in timers)
    finally:
        for timer in timers:
            timer.close()
    gaps = [later - earlier for earlier, later in itertools.pairwise([*phases, phases[0] + stride_s])]
    assert sum(gaps) == pytest.approx(stride_s)
    assert max(gaps) < 2.7 * stride_s / processes
    assert min(gaps) > 0.4 * stride_s / processes


#: Long enough for the widest stride.
LONG_S = 2**WIDEST * SLOT_S / SHARE_OF_SLEEP


def test_few_who_sleep_long_share_few_slots_and_many_take_more(woken: Woken) -> None:
    spread_s = 10 * 2**WIDEST * SLOT_S
    for sleepers, most in ((50, 11), (50, 11), (1000, 200)):
        for place in range(sleepers):
            woken.timer.sleep(Sleeper(), LONG_S + spread_s * place / sleepers)
        assert len(woken.timer._slots) <= most


def test_who_finds_a_slot_full_takes_the_next_of_the_same_stride_if_that_is_not_too_far_off(
    woken: Woken,
) -> None:
    for _ in range(2 * SLEEPERS_A_SLOT):
        woken.timer.sleep(Sleeper(), 2 * LONG_S)
    assert [len(slot) for slot in woken.timer._slots.values()] == [SLEEPERS_A_SLOT] * 2
    first, second = woken.timer._slots
    assert abs(first - second) == 2**WIDEST


@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.0, 10.0, 60.0, 540.0])
def test_no_sleep_is_off_by_more_than_half_a_percent_or_half_a_slot(woken: Woken, seconds: float) -> None:
    asked = [seconds * (1 + place / 1000) for place in range(1000)]
    off = [woken.timer.sleep(Sleeper(), each) / each - 1 for each in asked]
    most = max(SHARE_OF_SLEEP / 2, 0.5 * SLOT_S / seconds) + 1e-6
    assert max(map(abs, off)) <= most
    assert all(abs(share) * each <= grain_s(each) for share, each in zip(off, asked, strict=True))
    assert sum(off) / len(off) == pytest.approx(0, abs=most / 10), "nor do they become longer or shorter"


def test_nothing_ticks_while_nobody_is_due(woken: Woken) -> None:
    ticks: list[float] = []
    woken.timer.serve_together(1, lambda: ticks.append(time.perf_counter()))
    woken.timer.sleep(Sleeper(), 100.0)
    gevent.sleep(20 * SLOT_S)
    assert ticks == []
    woken.timer.sleep(Sleeper(), 0.0)  # nor does anybody wait for the next tick
    eventually(lambda: woken.all)
    assert len(ticks) == 1


def test_it_ticks_for_what_else_there_is_to_do_where_slots_are_served_together(woken: Woken) -> None:
    ticks: list[float] = []
    woken.timer.serve_together(3, lambda: ticks.append(time.perf_counter()))
    eventually(lambda: len(ticks) >= 3)
    woken.timer.paused = True
    eventually(lambda: len(ticks) >= 6)
    woken.timer.serve_together(1)
    del ticks[:]
    gevent.sleep(10 * SLOT_S)
    assert ticks == []


def test_short_sleeps_use_every_slot(woken: Woken) -> None:
    wanted = {}
    for number in range(20):
        wanted[number] = time.perf_counter() + number * SLOT_S
        woken.timer.sleep(Sleeper(number), number * SLOT_S)
    eventually(lambda: len(woken.all) == 20)
    assert all(due == pytest.approx(wanted[who.name], abs=1.5 * SLOT_S) for who, due, _ in woken.all)


def test_a_slot_before_the_next_tick_is_not_left_until_then(woken: Woken) -> None:
    def is_the_next_tick() -> bool:
        woken.all.clear()
        woken.timer.sleep(Sleeper(), 0.0)
        eventually(lambda: woken.all)  # just after a tick, with nobody asleep, unless the machine is busy
        nearer = Sleeper()
        woken.timer.sleep(nearer, SLOT_S)
        return nearer._slot is not None and nearer._slot.number == woken.timer._tick_slot

    eventually(is_the_next_tick)


def test_a_sleep_says_how_long_it_is(woken: Woken) -> None:
    began = time.perf_counter()
    said_s = woken.timer.sleep(Sleeper(), 0.05)
    asked = time.perf_counter()
    ((_, due, _),) = eventually(lambda: woken.all)
    assert due - asked <= said_s <= due - began


def test_no_sleep_ends_before_it_begins(woken: Woken) -> None:
    for _ in range(20):  # somewhere between two slots
        gevent.sleep(SLOT_S / 3)
        assert woken.timer.sleep(Sleeper(), 0.0) > 0
    eventually(lambda: len(woken.all) == 20)


def test_nothing_is_kept_for_those_who_have_woken(woken: Woken) -> None:
    for _ in range(1000):
        woken.timer.sleep(Sleeper(), 0.01)
    eventually(lambda: len(woken.all) == 1000)
    assert woken.timer._slots == {}


def test_nobody_wakes_while_it_is_paused(woken: Woken) -> None:
    woken.timer.paused = True
    ticks: list[float] = []
    woken.timer.serve_together(1, lambda: ticks.append(time.perf_counter()))
    woken.timer.sleep(Sleeper(), 0.01)
    gevent.sleep(0.3)
    assert woken.all == []
    assert ticks == [], "nor does it look in vain"
    woken.timer.paused = False
    eventually(lambda: woken.all)


def test_a_pause_that_comes_amid_a_tick_leaves_the_later_slots_asleep(woken: Woken) -> None:
    """As when a task ends the test: requests sent now would wait for all that is being closed."""

    def pause(sleeper: Sleeper) -> None:
        woken.timer.paused = True

    woken.then = pause
    for number in range(3):
        woken.timer.sleep(Sleeper(number), (2 + 2 * number) * SLOT_S)
    assert len(woken.timer._slots) == 3
    keep_the_loop_busy(10 * SLOT_S)  # one tick finds all of them due
    eventually(lambda: woken.all)
    gevent.sleep(5 * SLOT_S)
    assert [sleeper.name for sleeper, _, _ in woken.all] == [0]
    woken.then = lambda sleeper: None
    woken.timer.paused = False
    eventually(lambda: len(woken.all) == 3)
    assert [sleeper.name for sleeper, _, _ in woken.all] == [0, 1, 2]


def test_after_a_tick_that_took_longer_than_its_slots_the_next_one_is_not_passed_over(woken: Woken) -> None:
    """Or who became due meanwhile would wait for as many slots again."""
    together = 8
    woken.timer.serve_together(together)
    woken.then = lambda sleeper: keep_the_loop_busy((together + 1) * SLOT_S)
    woken.timer.sleep(Sleeper(), 0.0)
    keep_the_loop_busy(2 * SLOT_S)
    woken.timer._tick()  # as its timer would
    assert len(woken.all) == 1
    assert woken.timer._tick_slot <= woken.timer._current(), "it is time for it already"


def test_those_who_were_forgotten_meanwhile_are_no_lag(woken: Woken) -> None:
    forgotten = Sleeper()
    woken.timer.paused = True
    woken.timer.sleep(forgotten, 0.01)
    woken.timer.forget(forgotten)
    gevent.sleep(0.1)
    woken.timer.paused = False
    eventually(lambda: not woken.timer._slots)
    assert (woken.all, woken.timer.lag_max_s) == ([], 0.0)


def test_slots_can_be_served_several_at_a_tick(woken: Woken) -> None:
    ticks: list[float] = []
    woken.timer.serve_together(8, lambda: ticks.append(time.perf_counter()))
    sleepers = [Sleeper(number) for number in range(40)]
    for sleeper in sleepers:
        woken.timer.sleep(sleeper, sleeper.name * SLOT_S)
    eventually(lambda: len(woken.all) == len(sleepers))
    assert [sleeper.name for sleeper, _, _ in woken.all] == list(range(40))
    assert len(ticks) <= 40 / 8 + 3
    assert all(at >= due for _, due, at in woken.all)


def test_nobody_wakes_once_it_is_closed_not_even_who_is_due_with_the_one_that_closes_it(woken: Woken) -> None:
    """As in a child that a task has forked."""
    woken.then = lambda sleeper: woken.timer.close()
    for number in range(3):
        woken.timer.sleep(Sleeper(number), 0.01)
    eventually(lambda: woken.all)
    gevent.sleep(0.1)
    assert [sleeper.name for sleeper, _, _ in woken.all] == [0]
