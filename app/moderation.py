"""Fewer wake-ups where many processes share too few cores.

A worker that is woken for a single request finds the processor's caches full of other workers' data: with 44
processes on two cores a wake-up costs 145 us, and each request in it 55 us more. When cores are short, events
are therefore fetched at intervals, several at once, as network drivers do with interrupts (Linux,
Documentation/networking/napi.rst, "Software IRQ coalescing"). That cores are short shows in how long the
process waits for one each time it has something to do (Documentation/scheduler/sched-stats.rst,
/proc/PID/schedstat). Where there are cores to spare, this never begins, and all is answered at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

#: Intervals in seconds between two fetches of events, by level; at the first they are fetched as they come.
WINDOWS_S: Final = (0.0, 0.01, 0.02, 0.04, 0.08)
#: Mean wait for a core, in seconds, by level: above the one the next level begins, below the other the last
#: one is gone back to. A window is worth its delay while the wait without it would be longer.
TOO_LONG_S: Final = (0.0025, 0.01, 0.02, 0.04, float("inf"))
SHORT_S: Final = (0.0, 0.0003, 0.0025, 0.005, 0.01)
#: Events that a window should bring on average, or it saves no wake-up.
EVENTS_A_WINDOW: Final = 2.0

_SCHEDSTAT: Final = Path("/proc/self/schedstat")


class Moderation:
    """Chooses the window anew at each look."""

    def __init__(self, schedstat: Path = _SCHEDSTAT, clock: Callable[[], float] = monotonic) -> None:
        self._schedstat = schedstat
        self._clock = clock
        self._level = 0
        self._waited_ns = self._turns = 0
        self._looked = clock()

    def look(self, events: int) -> float:
        """Seconds between two fetches of events until the next look; 0 to fetch them as they come.

        :param events: fetched since the look before.
        """
        now = self._clock()
        events_per_s = events / max(now - self._looked, 1e-3)
        self._looked = now
        try:
            _, waited_ns, turns = map(int, self._schedstat.read_text().split())
        except (OSError, ValueError):  # a kernel without CONFIG_SCHED_INFO
            return 0.0
        wait_s = (waited_ns - self._waited_ns) / 1e9 / max(turns - self._turns, 1)
        self._waited_ns, self._turns = waited_ns, turns
        if wait_s > TOO_LONG_S[self._level]:
            self._level += 1
        elif wait_s < SHORT_S[self._level]:
            self._level -= 1
        if not self._level:
            return 0.0
        useful = (window for window in WINDOWS_S[self._level :] if events_per_s * window >= EVENTS_A_WINDOW)
        return next(useful, 0.0)
