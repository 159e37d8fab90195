"""Think times: one coarse timer for all users of a process.

Think times are tens of seconds, so their ends are gathered in slots of a few milliseconds. A user's think
time ends with its slot, whose end is the moment from which the next request's response time counts: waking
late shows as latency.

A process that sends few requests uses every third slot only. It wakes a third as often, and all but the first
request of a slot find code and data in the processor's caches: of 29 workers with 280 requests/s each on two
cores, a request takes 86-90 us of CPU time with 30 ms between the slots in use, 101-113 with 20. The slots of
the processes lie between each other, or all would send at the same instants.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import gevent

if TYPE_CHECKING:
    from collections.abc import Callable

#: Length of a slot.
SLOT_S = 0.01
#: Of how many slots one is used at most, and how many sleepers it is to have: more would be a burst of the
#: process's own making, in which the last ones wait for the others.
STRIDE_MOST = 3
SLEEPERS_A_SLOT = 10
#: Shorter sleeps use every slot: they would be off by more than 1.5 %.
STRIDE_SLEEP_S = 1.0
#: Seconds after which the stride is chosen anew.
STRIDE_KEPT_S = 1.0
#: The golden section. Any number of its first multiples (modulo 1) divide the circle evenly, in gaps of three
#: lengths at most (the three-gap theorem: V. T. Sos, 1958).
GOLDEN = (5**0.5 - 1) / 2


class Sleeper(Protocol):
    """What can be put to sleep. `_slot` is set while it sleeps, None while it does not."""

    _slot: Slot | None


class Slot(list[Any]):
    """Who wakes at its end. Itself what a sleeper keeps of it: a number would be 32 bytes for each."""

    __slots__ = ("number",)

    number: int


S = TypeVar("S", bound=Sleeper)


class ThinkTimer(Generic[S]):
    """Calls `wake(sleeper, due)` for each sleeper in the hub, `due` on the `time.perf_counter` scale.

    :param number: of this process among those of the load test, from 0.
    """

    def __init__(self, wake: Callable[[S, float], None], number: int = 0, slot_s: float = SLOT_S) -> None:
        self._wake = wake
        self._slot_s = slot_s
        now = time.perf_counter()  # the same for all processes (CLOCK_MONOTONIC)
        stride_s = STRIDE_MOST * slot_s
        self._origin = (now // stride_s - 1 + number * GOLDEN % 1) * stride_s
        self._slots: dict[int, Slot] = {}
        self._next = 0
        self._stride = STRIDE_MOST
        self._woken, self._stride_chosen = 0, now
        #: Slots that are served together, late by as many, to be woken less often; and what is called before.
        self.slots_a_tick = 1
        self.before_tick: Callable[[], None] | None = None
        #: Nobody is woken: the test ends, and requests sent now would wait for all that is being closed.
        self.paused = False
        #: The longest that a slot was served late, in seconds, since it was last reset by whoever reports it.
        self.lag_max_s = 0.0
        self._closed = False
        self._loop = gevent.get_hub().loop
        self._timer = self._loop.timer(0.0)
        self._tick()

    def close(self) -> None:
        """Wake nobody any more, also not who is due with those that are being woken."""
        self._closed = True
        self._timer.stop()
        self._timer.close()

    def sleep(self, sleeper: S, seconds: float, roughly: bool = False) -> float:
        """Wake it in `seconds`, rounded to the nearest slot still to come; returns how many that is.

        :param roughly: the sleep is only there to keep sleepers apart.
        """
        now = time.perf_counter()
        is_long = seconds >= STRIDE_SLEEP_S
        stride = STRIDE_MOST if roughly else self._stride if is_long else 1
        number = round((now + seconds - self._origin) / (self._slot_s * stride)) * stride
        if not is_long:  # its slot may have begun, or have been served
            number = max(number, math.floor((now - self._origin) / self._slot_s) + 1, self._next)
        slot = self._slots.get(number)
        if slot is not None:
            slot.append(sleeper)
        else:
            slot = self._slots[number] = Slot((sleeper,))
            slot.number = number
            if number < self._tick_slot and self.slots_a_tick == 1:
                self._tick_at(number)
        sleeper._slot = slot
        return self._origin + number * self._slot_s - now

    def forget(self, sleeper: S) -> None:
        """Let it sleep for ever: its place is skipped when its time comes."""
        sleeper._slot = None

    def _tick(self) -> None:
        now = time.perf_counter()
        current = math.floor((now - self._origin) / self._slot_s)
        if self.before_tick is not None:
            self.before_tick()
        for number in range(self._next, current + 1) if not self.paused else ():
            self._next = number + 1
            slot = self._slots.pop(number, None)
            if slot is None:
                continue
            due = self._origin + number * self._slot_s
            late_s = time.perf_counter() - due
            for sleeper in slot:
                if sleeper._slot is slot and not self._closed:
                    sleeper._slot = None
                    self._woken += 1
                    if late_s > self.lag_max_s:
                        self.lag_max_s = late_s
                    self._wake(sleeper, due)
        if self._closed:
            return
        if now - self._stride_chosen >= STRIDE_KEPT_S:
            self._choose_stride(now)
        self._tick_at(current + STRIDE_MOST if self.paused else self._upcoming())

    def _choose_stride(self, now: float) -> None:
        slots = (now - self._stride_chosen) / self._slot_s
        self._stride = min(max(round(SLEEPERS_A_SLOT * slots / max(self._woken, 1)), 1), STRIDE_MOST)
        self._woken, self._stride_chosen = 0, now

    def _upcoming(self) -> int:
        """The slot to tick at: the first that is used, and at the longest stride if none is."""
        if self.slots_a_tick > 1:
            return math.ceil(self._next / self.slots_a_tick) * self.slots_a_tick
        last = math.ceil(self._next / STRIDE_MOST) * STRIDE_MOST
        return next((slot for slot in range(self._next, last) if slot in self._slots), last)

    def _tick_at(self, slot: int) -> None:
        # Not a repeating timer: libev starts its period anew wherever it was once late, and the ticks would
        # then come at some other point between two slots, to which all latencies would be added.
        self._tick_slot = slot
        self._timer.close()
        self._timer = self._loop.timer(max(0.0, self._origin + slot * self._slot_s - time.perf_counter()))
        self._timer.start(self._tick, update=True)
