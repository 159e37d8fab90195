"""How far this machine's wall clock is from another's, from messages that go there and back.

One exchange gives (their time) - (the middle of our sending and receiving), wrong by at most half the round
trip. The exchange with the shortest round trip is the best one of those at hand (the clock filter of
RFC 5905, section 10): queues and busy processes only ever lengthen a trip.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

#: Exchanges kept: at one a second half a minute, in which a clock that drifts by 50 us/s moves 1.5 ms.
EXCHANGES = 30


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
        if trip_s >= 0:  # otherwise our clock was set back meanwhile
            self._exchanges.append(Offset(theirs_s - (sent_s + received_s) / 2, trip_s / 2))

    @property
    def offset(self) -> Offset | None:
        """None before the first exchange."""
        return min(self._exchanges, key=lambda known: known.error_s, default=None)
