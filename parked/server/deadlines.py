"""Deadlines of very many objects at O(1) each: a slot for each quarter of a second, a dict in each slot.

Unlike the timeouts of `parking`, which are all equally long, these are as long as an application says. One
timer looks at them, and runs only while there are any. What is due together is worked off in portions: after
a broadcast the heartbeats of all streams fall into one slot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from gevent.hub import get_hub

from parked.server.turns import of_hub

#: Seconds of one slot, and between two looks at the clock: late by twice this at most, never early.
GRAIN_S: Final = 0.25
#: Called in one go, some 5-10 us each when they write; then the sockets are looked at.
CALLS_A_TURN: Final = 128


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
        self._scheduled = False

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
        if not self._scheduled:
            self._work_off()

    def _work_off(self) -> None:
        """In the hub: call for what is due, and for the rest when the sockets have been looked at."""
        self._scheduled = False
        budget = CALLS_A_TURN
        while self._next < self.now:
            while (found := self._slots.get(self._next)) and found[1]:
                if not budget:
                    self._scheduled = True
                    of_hub().after_poll(self._work_off)
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

    def stop(self) -> None:
        """Until the next deadline is set, no timer is needed."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def clear(self) -> None:
        """Forget all."""
        self.stop()
        self._slots.clear()

    def _slot_now(self) -> int:
        return int(self._clock() / self.grain_s)
