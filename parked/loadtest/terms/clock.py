"""The wall clock of a run, which does not step, and how far it is from another machine's.

Samples, rows and the server's counts are put in order and divided by the time between them. A wall clock
that is set in the middle of a run, by hand, by NTP or after a suspended host wakes, would make rates of it
that nobody saw, and samples that are older than those before them. So each process reads the wall clock once,
when it starts, and goes on from there with the monotonic one (clock_gettime(2), CLOCK_MONOTONIC).

The distance between two machines comes from messages that go there and back. One exchange gives (their time)
- (the middle of our sending and receiving), wrong by at most half the round trip. The exchange with the
shortest round trip is the best one of those at hand (the clock filter of RFC 5905, section 10): queues and
busy processes only ever lengthen a trip.
"""

from __future__ import annotations

from collections import deque
from time import monotonic, time
from typing import NamedTuple

#: Exchanges kept: at one a second half a minute, in which a clock that drifts by 50 us/s moves 1.5 ms.
EXCHANGES = 30

_BEGAN_UNIX_S = time() - monotonic()


def unix_time_s() -> float:
    """Seconds since 1970 by the wall clock as it was set when this process began."""
    return _BEGAN_UNIX_S + monotonic()


def step_s() -> float:
    """Seconds by which the wall clock has been set ahead since then; negative: back."""
    return time() - unix_time_s()


class Offset(NamedTuple):
    """What to add to our clock to get theirs, and by how much that may be wrong; seconds."""

    offset_s: float
    error_s: float


class Clock:
    """Takes exchanges, knows the offset."""

    def __init__(self) -> None:
        self._exchanges: deque[Offset] = deque(maxlen=EXCHANGES)

    def exchanged(self, sent_s: float, theirs_s: float, received_s: float) -> None:
        """A message went out at `sent_s` and its answer, of `theirs_s`, came at `received_s`."""
        trip_s = received_s - sent_s
        if trip_s >= 0:
            self._exchanges.append(Offset(theirs_s - (sent_s + received_s) / 2, trip_s / 2))

    @property
    def offset(self) -> Offset | None:
        """None before the first exchange."""
        return min(self._exchanges, key=lambda known: known.error_s, default=None)
