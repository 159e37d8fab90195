"""Think times: one coarse timer for all users of a process.

Think times are tens of seconds, so their ends are gathered in slots of a few milliseconds. A user's think
time ends with its slot, whose end is the moment from which the next request's response time counts: waking
late shows as latency.

Few slots are used by many. A sleeper may end up to half a percent off, so longer sleeps take one of the
slots that many others find too: one of 32, until that has its share of sleepers, or the next best, if that is
not too far off, then one of 16, and so on. A process wakes less often so, and all but the first request of a
slot find code and data in the processor's caches: of 29 workers with 280 requests/s each on two cores, a
request takes 86-90 us of CPU time with 30 ms between the slots in use, 101-113 with 20. A slot is memory,
too: 200 bytes, which sleepers of many seconds had to themselves otherwise.
The slots of the processes lie between each other, or all would send at the same instants. Nothing ticks while
nobody is due.
"""

from __future__ import annotations

import heapq
import math
import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import gevent

if TYPE_CHECKING:
    from collections.abc import Callable

#: Length of a slot.
SLOT_S = 0.01
#: Sleepers that share a slot, as long as a finer stride is left: more would be a burst of the process's own
#: making, in which the last ones wait for the others.
SLEEPERS_A_SLOT = 10
#: The widest stride is 2**WIDEST slots, and at most this share of the sleep.
WIDEST = 5
SHARE_OF_SLEEP = 0.01
#: Slots between which those of the processes lie: where each sends some hundred requests/s, one of so many is
#: used. In wider and narrower strides they are apart, too.
PHASED_SLOTS = 4
#: The golden section. Any number of its first multiples (modulo 1) divide the circle evenly, in gaps of three
#: lengths at most (the three-gap theorem: V. T. Sos, 1958).
GOLDEN = (5**0.5 - 1) / 2


def grain_s(longest_s: float) -> float:
    """By how many seconds think times up to *longest_s* may be off."""
    return max(3 * SLOT_S, min(SHARE_OF_SLEEP * longest_s, (1 << WIDEST) * SLOT_S) / 2)


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
        phased_s = PHASED_SLOTS * slot_s
        self._origin = (now // phased_s - 1 - number * GOLDEN) * phased_s
        self._slots: dict[int, Slot] = {}
        #: Their numbers, as a heap.
        self._numbers: list[int] = []
        #: Where the search for a slot with room begins: finer after one that was full, wider after a new one.
        self._stride = WIDEST
        #: By stride, the shortest sleep that may take it.
        self._shortest_s = [-math.inf, *((1 << n) * slot_s / SHARE_OF_SLEEP for n in range(1, WIDEST + 1))]
        self._slots_a_tick = 1
        self._before_tick: Callable[[], None] | None = None
        self._paused = False
        #: The longest that a slot was served late, in seconds, since it was last reset by whoever reports it.
        self.lag_max_s = 0.0
        self._closed = False
        self._loop = gevent.get_hub().loop
        self._timer = self._loop.timer(0.0)
        self._tick_slot = math.inf

    def close(self) -> None:
        """Wake nobody any more, also not who is due with those that are being woken."""
        self._closed = True
        self._timer.stop()
        self._timer.close()

    @property
    def paused(self) -> bool:
        """Whether nobody is woken: the test ends, and requests sent now would wait for all that is being
        closed."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self._tick_next()

    def serve_together(self, slots: int, before_tick: Callable[[], None] | None = None) -> None:
        """Serve so many slots at a tick, late by as many, to be woken less often. From 2 on it ticks whether
        anybody is due or not, since there may be other work for `before_tick`, which is called first."""
        self._before_tick = before_tick
        if slots != self._slots_a_tick:
            self._slots_a_tick = slots
            self._tick_next()

    def sleep(self, sleeper: S, seconds: float, roughly: bool = False) -> float:
        """Wake it in `seconds`, rounded to the nearest slot of a stride; returns how many that is.

        :param roughly: the sleep is only there to keep sleepers apart, some at a time: of any stride, and not
            before its end.
        """
        now = time.perf_counter()
        place = (now + seconds - self._origin) / self._slot_s
        slots, stride, shortest_s = self._slots, self._stride, self._shortest_s
        while seconds < shortest_s[stride] and not roughly:
            stride -= 1
        while stride:
            number = int(place + ((1 << stride) - 1 if roughly else 1 << stride >> 1)) >> stride << stride
            slot = slots.get(number)
            if slot is None:
                self._stride = stride + 1 if stride < WIDEST else WIDEST
                break
            if len(slot) < SLEEPERS_A_SLOT:
                break
            if seconds >= 2 * shortest_s[stride] and not roughly:
                other = number + (1 << stride) if number < place else number - (1 << stride)
                slot = slots.get(other)
                if slot is None or len(slot) < SLEEPERS_A_SLOT:
                    number = other
                    break
            stride -= 1
            self._stride = stride or 1
        if roughly or not stride:
            number = max(number if stride else round(place), int((now - self._origin) / self._slot_s) + 1)
            slot = slots.get(number)
        if slot is not None:
            slot.append(sleeper)
        else:
            slot = slots[number] = Slot((sleeper,))
            slot.number = number
            heapq.heappush(self._numbers, number)
            if number < self._tick_slot and self._slots_a_tick == 1 and not self._paused:
                self._tick_at(number)
        sleeper._slot = slot
        return self._origin + number * self._slot_s - now

    def forget(self, sleeper: S) -> None:
        """Let it sleep for ever: its place is skipped when its time comes."""
        sleeper._slot = None

    def _tick(self) -> None:
        self._tick_slot = -math.inf  # whoever is woken may sleep again: the next tick is chosen after all
        current = self._current()
        if self._before_tick is not None:
            self._before_tick()
        numbers = self._numbers
        while numbers and numbers[0] <= current and not self._paused:
            number = heapq.heappop(numbers)
            slot = self._slots.pop(number)
            due = self._origin + number * self._slot_s
            late_s = time.perf_counter() - due
            for sleeper in slot:
                if sleeper._slot is slot and not self._closed:
                    sleeper._slot = None
                    if late_s > self.lag_max_s:
                        self.lag_max_s = late_s
                    self._wake(sleeper, due)
        self._tick_next(current + 1)

    def _current(self) -> int:
        return int((time.perf_counter() - self._origin) / self._slot_s)

    def _tick_next(self, first: int = 0) -> None:
        """Tick when it is time for the next slot in use, from the `first` on; not, if there is none."""
        if self._closed:
            return
        if self._slots_a_tick > 1:
            together = self._slots_a_tick
            self._tick_at(-(-(first or self._current() + 1) // together) * together)
        elif self._numbers and not self._paused:
            self._tick_at(self._numbers[0])
        else:
            self._timer.stop()
            self._tick_slot = math.inf

    def _tick_at(self, slot: int) -> None:
        # Not a repeating timer: libev starts its period anew wherever it was once late, and the ticks would
        # then come at some other point between two slots, to which all latencies would be added.
        self._tick_slot = slot
        self._timer.close()
        self._timer = self._loop.timer(max(0.0, self._origin + slot * self._slot_s - time.perf_counter()))
        self._timer.start(self._tick, update=True)
