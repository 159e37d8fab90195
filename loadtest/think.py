"""Think times: one coarse timer for all users of a process.

Think times are tens of seconds, so their ends are gathered in slots of a few milliseconds. A user's think
time ends with its slot, whose end is the moment from which the next request's response time counts: waking
late shows as latency. Each process draws the phase of its slots, or all of them would send at the same
instants.
"""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import gevent

if TYPE_CHECKING:
    from collections.abc import Callable

#: Length of a slot. Shorter ones spread requests more evenly and wake the process more often, a hundred times
#: a second at 10 ms.
SLOT_S = 0.01


class Sleeper(Protocol):
    """What can be put to sleep. `slot` is set while it sleeps, None while it does not."""

    slot: int | None


S = TypeVar("S", bound=Sleeper)


class ThinkTimer(Generic[S]):
    """Calls `wake(sleeper, due)` for each sleeper in the hub, `due` on the `time.perf_counter` scale."""

    def __init__(self, wake: Callable[[S, float], None], slot_s: float = SLOT_S) -> None:
        self._wake = wake
        self._slot_s = slot_s
        self._origin = time.perf_counter() - random.random() * slot_s
        self._slots: dict[int, list[S]] = {}
        self._next = 0
        #: Slots that are served together, late by as many, to be woken less often; and what is called before.
        self.slots_a_tick = 1
        self.before_tick: Callable[[], None] | None = None
        #: The longest that a slot was served late, in seconds, since it was last reset by whoever reports it.
        self.lag_max_s = 0.0
        self._loop = gevent.get_hub().loop
        self._timer = self._loop.timer(slot_s)
        self._timer.start(self._tick)

    def close(self) -> None:
        self._timer.stop()
        self._timer.close()

    def sleep(self, sleeper: S, seconds: float) -> float:
        """Wake it in `seconds`, rounded to the nearest slot still to come; returns how many that is."""
        now = time.perf_counter()
        slot = max(round((now + seconds - self._origin) / self._slot_s), self._next)
        sleeper.slot = slot
        try:
            self._slots[slot].append(sleeper)
        except KeyError:
            self._slots[slot] = [sleeper]
        return self._origin + slot * self._slot_s - now

    def forget(self, sleeper: S) -> None:
        """Let it sleep for ever: its place is skipped when its time comes."""
        sleeper.slot = None

    def _tick(self) -> None:
        now = time.perf_counter()
        current = math.floor((now - self._origin) / self._slot_s)
        if self.before_tick is not None:
            self.before_tick()
        for slot in range(self._next, current + 1):
            self._next = slot + 1
            sleepers = self._slots.pop(slot, None)
            if sleepers is None:
                continue
            due = self._origin + slot * self._slot_s
            self.lag_max_s = max(self.lag_max_s, time.perf_counter() - due)
            for sleeper in sleepers:
                if sleeper.slot == slot:
                    sleeper.slot = None
                    self._wake(sleeper, due)
        # Not a repeating timer: libev starts its period anew wherever it was once late, and the ticks would
        # then come at some other point between two slots, to which all latencies would be added.
        self._timer.close()
        next_tick = self._origin + (self._next + self.slots_a_tick - 1) * self._slot_s
        self._timer = self._loop.timer(max(0.0, next_tick - time.perf_counter()))
        self._timer.start(self._tick, update=True)
