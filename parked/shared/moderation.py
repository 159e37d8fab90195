"""Fewer wake-ups where many processes share too few cores.

A worker that is woken for a single request or response finds the processor's caches full of other processes'
data. When cores are short, events are therefore fetched at intervals, several at once, as network drivers do
with interrupts (Linux, Documentation/networking/napi.rst, "Software IRQ coalescing"); a load test fetches its
responses together with the end of think times. 55 processes on two cores, 300 to 350 requests/s per worker,
CPU per request: 94-127 us at intervals of 10 ms, 73-90 at 20, 53-62 at 40, 45-55 at 80. That cores are short
shows in how long the process waits for one each time it has something to do
(Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat). Where a process gets a core as soon as it
wants one, this never begins, and all is answered at once. New connections are taken at intervals sooner,
while they stay: whoever does not ask at once waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

#: Intervals in seconds between two fetches of events, by level; at the first they are fetched as they come.
#: Shorter ones save too little CPU time to be worth their delay.
WINDOWS_S: Final = (0.0, 0.03, 0.06, 0.09)
#: Mean wait for a core, in seconds, above which the next level begins, by level: a window is worth its delay
#: while the wait without it would be longer.
TOO_LONG_S: Final = (0.02, 0.04, 0.08, float("inf"))
#: Idle share of all cores below which the next level begins too, if it lasts: turns may be so short that
#: nobody waits long for one, and yet the work is not done in time. One second without an idle core is no
#: shortage yet, and neither is a process that has a core of its own.
NONE_IDLE: Final = 0.005
LASTING_LOOKS: Final = 3
OF_ITS_OWN_S: Final = 0.0003
#: Idle share of all cores above which the level before is gone back to, by level: it needs so much more CPU
#: time. Not while the process itself waits: its own share of the cores may be smaller than all of them.
SPARE_IDLE: Final = (float("inf"), 0.15, 0.2, 0.15)
#: Events that a window should bring on average, or it saves no wake-up.
EVENTS_A_WINDOW: Final = 2.0
#: Most that a window may take of the mean time between two events of a connection: where each client waits
#: for its answer before it asks again, so much fewer requests come. A benchmark of a hundred connections in a
#: tight loop is never slowed down, nor are those who share a process with very many that wait for an answer.
SHARE_OF_CYCLE: Final = 0.01
#: Idle share of all cores below which new connections are taken at intervals, how many of them an interval
#: should bring if it can, and the share that may end meanwhile: others come for one answer, and wait for it.
BUSY_IDLE: Final = 0.5
MANY_A_WINDOW: Final = 6.0
FEW_END: Final = 0.1
#: Share of the events from which on those who ask beside others that wait are looked at by themselves: for a
#: connection that asks how the process is, thousands of long polls need no more wake-ups.
MANY_ASK: Final = 0.1

_SCHEDSTAT: Final = Path("/proc/self/schedstat")
_STAT: Final = Path("/proc/stat")


class Moderation:
    """Chooses the window anew at each look."""

    def __init__(
        self, schedstat: Path = _SCHEDSTAT, stat: Path = _STAT, clock: Callable[[], float] = monotonic
    ) -> None:
        self._schedstat = schedstat
        self._stat = stat
        self._clock = clock
        self._level = self._looks_without_idle = 0
        self._waited_ns = self._turns = 0
        self._idle_ticks = self._all_ticks = 0
        self._looked = clock()
        self._seconds = 0.0  # between the last two looks
        self._is_busy = False
        #: What is known of waits and cores is of longer ago than the look before.
        self._is_stale = True

    def look(self, events: int, connections: int, unasked: int = 0, pending: int = 0) -> float:
        """Seconds between two fetches of events until the next look; 0 to fetch them as they come.

        :param events: fetched since the look before.
        :param connections: that are open.
        :param unasked: of these events, those for which nobody waits: new connections, and requests whose
            answer is for later.
        :param pending: of these connections, those that wait for such an answer.
        """
        now = self._clock()
        self._seconds = max(now - self._looked, 1e-3)
        events_per_s = events / self._seconds
        self._looked = now
        self._is_busy = False
        if not self._level and events_per_s * WINDOWS_S[-1] < EVENTS_A_WINDOW:
            self._is_stale = True
            return 0.0  # whatever the cores do; to ask for that would be much of what an idle process does
        try:
            _, waited_ns, turns = map(int, self._schedstat.read_text().split())
            idle = self._idle_share()
        except (OSError, ValueError):  # a kernel without CONFIG_SCHED_INFO, or no descriptor left
            return 0.0
        wait_s = (waited_ns - self._waited_ns) / 1e9 / max(turns - self._turns, 1)
        self._waited_ns, self._turns = waited_ns, turns
        if self._is_stale:
            self._is_stale = False
            return 0.0
        self._is_busy = idle < BUSY_IDLE
        none_idle = idle < NONE_IDLE and wait_s > OF_ITS_OWN_S
        self._looks_without_idle = self._looks_without_idle + 1 if none_idle else 0
        if wait_s > TOO_LONG_S[self._level] or self._looks_without_idle >= LASTING_LOOKS:
            self._level = min(self._level + 1, len(WINDOWS_S) - 1)
            self._looks_without_idle = 0
        elif idle > SPARE_IDLE[self._level] and wait_s <= TOO_LONG_S[self._level - 1]:
            self._level -= 1
        if not self._level:
            return 0.0
        asked = 1 - unasked / max(events, 1)
        most = SHARE_OF_CYCLE * (connections - pending) / asked if asked >= MANY_ASK else float("inf")
        sound = [window for window in WINDOWS_S if EVENTS_A_WINDOW <= events_per_s * window <= most]
        wider = [window for window in sound if window >= WINDOWS_S[self._level]]
        return wider[0] if wider else sound[-1] if sound else 0.0

    def look_at_new(self, new: int, ended: int) -> float:
        """Seconds between two looks for new connections until the next one; 0 to take them as they come.

        To call after `look`. A client whose connection the kernel has opened does not wait for it to be
        taken, unless it asks at once; and of those who stay each does so once.

        :param new: connections that have come since the look before.
        :param ended: connections that have ended since.
        """
        if not self._is_busy or not new or ended > FEW_END * new:
            return 0.0
        per_s = new / self._seconds
        sound = [window for window in WINDOWS_S if per_s * window >= EVENTS_A_WINDOW]
        return next((window for window in sound if per_s * window >= MANY_A_WINDOW), max(sound, default=0.0))

    def _idle_share(self) -> float:
        """Of all cores, since the look before (proc(5), /proc/stat: the fourth and fifth figure are idle)."""
        with self._stat.open() as lines:
            ticks = [int(figure) for figure in lines.readline().split()[1:9]]
        idle_ticks, all_ticks = sum(ticks[3:5]), sum(ticks)
        share = (idle_ticks - self._idle_ticks) / max(all_ticks - self._all_ticks, 1)
        self._idle_ticks, self._all_ticks = idle_ticks, all_ticks
        return share
