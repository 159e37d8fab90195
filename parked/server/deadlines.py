"""Deadlines of very many objects at O(1) each: a slot for each quarter of a second, a dict in each slot.

Unlike the timeouts of `parking`, which are all equally long, these are as long as an application says. One
timer looks at them, and runs only while there are any. What falls into one slot, such as the heartbeats of
all streams after a broadcast, is spread over the time until the next look: each client that hears something
wants a core, too, and is often there with its next request.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from gevent.hub import get_hub

from parked.server.turns import of_hub

#: Seconds of one slot, and between two looks at the clock: late by three times this at most while there is
#: time for all of it, never early.
GRAIN_S: Final = 0.25
#: What is due at a look comes in so many turns, until the next.
TURNS_A_SLOT: Final = 10
#: Called in one turn, some 10-30 us each when they write: at least, so that few need few turns, and at most,
#: so that requests beside them feel nothing.
MIN_CALLS: Final = 2
MAX_CALLS: Final = 16
#: Slots by which it may be late before there are no more pauses, and calls in a turn then; the sockets are
#: looked at between two turns.
MAX_LATE_SLOTS: Final = 2
CALLS_WHEN_LATE: Final = 128


class Timed(Protocol):
    """What can have a deadline: one at a time, whose slot it remembers for us; 0 for none."""

    due: int


T = TypeVar("T", bound=Timed)


class Deadlines(Generic[T]):
    """One deadline per object.

    :param on_due: called in the hub with each object whose deadline has passed; it may set another.
    :param on_fault: told of what that raised; raises nothing itself. The other deadlines go on.
    :param clock: seconds that never go back.
    """

    def __init__(
        self,
        on_due: Callable[[T], None],
        on_fault: Callable[[T, BaseException], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.grain_s = GRAIN_S
        #: Whether what is due together is spread over a slot. Not worth it for one of many processes on few
        #: cores, where each turn finds its caches cold, and so do those who hear of it: 17 workers on two
        #: cores with 2,500 answers/s to 50,000 long polls took 0.32 cores without it and 0.72 with it.
        self.spreads = True
        self._on_due = on_due
        self._on_fault = on_fault
        self._clock = clock
        # Each slot with its number, which all in it share: 32 bytes less each. A dict, since a set of few
        # hundred takes up to 90 bytes for each of them.
        self._slots: dict[int, tuple[int, dict[T, None]]] = {}
        self._next = self._slot_now()  # the first slot that has not been worked off
        #: The slot that the last look at the clock fell in: free to read, and fine for what may be late.
        self.now = self._next
        self._timer: Any = None
        # The rest of what was due at the last look: whether there is any, the timer until it goes on, calls
        # in a turn, seconds between two; 0 for none but a look at the sockets.
        self._under_way = False
        self._pause: Any = None
        self._calls = 0
        self._pause_s = 0.0

    def slots(self, seconds: float) -> int:
        """*seconds* in slots, rounded up."""
        return math.ceil(seconds / self.grain_s)

    def set(self, item: T, seconds: float) -> None:
        """Call for *item* when *seconds* from now have passed, and not at its former deadline."""
        self.set_slot(item, int((self._clock() + seconds) / self.grain_s))

    def set_slot(self, item: T, slot: int) -> None:
        """As `set`, at the end of a slot."""
        if self._timer is None:
            self.now = self._next = self._slot_now()
            # ref=False: that time passes is no reason for a program to stay.
            self._timer = get_hub().loop.timer(self.grain_s, self.grain_s, ref=False)
            self._timer.start(self.tick)
        elif item.due:
            self.cancel(item)
        slot = max(slot, self._next)
        found = self._slots.get(slot)
        if found is None:
            found = self._slots[slot] = (slot, {})
        item.due = found[0]
        found[1][item] = None

    def cancel(self, item: T) -> None:
        """Forget the deadline of *item*, if it has one."""
        found = self._slots.get(item.due)
        if found is not None:
            found[1].pop(item, None)
            if not found[1]:
                del self._slots[item.due]
        item.due = 0

    def tick(self) -> None:
        """Look at the clock; called every `grain_s` while there are deadlines."""
        self.now = self._slot_now()
        passed = range(self._next, self.now)
        due = sum(len(found[1]) for found in map(self._slots.get, passed) if found)
        if not self.spreads or (len(passed) > MAX_LATE_SLOTS and self._under_way):
            self._calls, self._pause_s = CALLS_WHEN_LATE, 0.0
        else:
            self._calls = min(max(due // TURNS_A_SLOT, MIN_CALLS), MAX_CALLS)
            self._pause_s = self.grain_s * self._calls / max(due, self._calls)
        if not self._under_way:
            self._work_off()

    def _work_off(self) -> None:
        """In the hub: call for some of what is due, and for the rest after a pause."""
        self._end_pause()
        began = monotonic()
        budget = self._calls
        while self._next < self.now:
            while (found := self._slots.get(self._next)) and found[1]:
                if not budget:
                    self._go_on_later(monotonic() - began)
                    return
                budget -= 1
                item, _ = found[1].popitem()
                item.due = 0
                try:
                    self._on_due(item)
                except BaseException as error:
                    self._on_fault(item, error)
            self._slots.pop(self._next, None)
            self._next += 1
        if not self._slots:
            self.stop()

    def _go_on_later(self, took_s: float) -> None:
        self._under_way = True
        if not self._pause_s:
            of_hub().after_poll(self._work_off)
            return
        # As long as the turn took at least: whoever heard from us shall have a core, too. But not if the
        # process was stopped meanwhile.
        pause_s = max(self._pause_s, min(took_s, self.grain_s))
        self._pause = get_hub().loop.timer(pause_s, ref=False)
        self._pause.start(self._work_off, update=True)  # the loop's clock has stood still in the turn

    def stop(self) -> None:
        """Until the next deadline is set, no timer is needed."""
        self._end_pause()
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _end_pause(self) -> None:
        self._under_way = False
        if self._pause is not None:
            self._pause.stop()
            self._pause.close()
            self._pause = None

    def clear(self) -> None:
        """Forget all."""
        self.stop()
        self._slots.clear()

    def _slot_now(self) -> int:
        return int(self._clock() / self.grain_s)
