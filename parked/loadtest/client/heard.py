"""What one process' streams have heard: events, gaps in their numbers, and how long they took to come."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from parked.loadtest.client.event_stream import Pieces
from parked.loadtest.terms.histogram import RANGE_US, new_histogram
from parked.loadtest.terms.sample import MOST_BROADCASTS, Broadcast, Heard

if TYPE_CHECKING:
    from parked.loadtest.client.event_stream import Event

#: What deliveries are rounded to, in microseconds: each takes a histogram 3 us, and a broadcast makes ten
#: thousands of them at once.
GRAIN_US = 100
#: Seconds beyond which a time of sending is taken for something else.
MOST_AWAY_S = 86_400.0


class HeardByProcess:
    """Counts of one process, and what its streams share.

    :ivar streams: responses that are awaited or have begun, and have no end yet.
    :ivar lost: numbers that were left out between two events of a stream.
    :ivar repeated: events with the number of the one before.
    :ivar disordered: events with a number below that.
    :ivar unnumbered: events that have no id.
    """

    def __init__(self) -> None:
        self._pieces: dict[tuple[object, bool], Pieces] = {}
        self.streams = self.streams_min = 0
        self.events = self.comments = 0
        self.lost = self.repeated = self.disordered = self.unnumbered = 0
        self.used = False
        #: Whether ids count up by one. Until two that do have been seen, what they leave out is no gap: they
        #: may be times, or positions in a log.
        self._counts_up = False
        self._left_out = 0
        self._deliveries_us: Counter[int] = Counter()
        self._broadcasts: dict[bytes, Broadcast] = {}

    def pieces_of(self, sent_at: object, chunked: bool) -> Pieces:
        """What streams have in common whose bytes mean the same."""
        return self._pieces.setdefault((sent_at, chunked), Pieces())

    def stream_began(self) -> None:
        self.used = True
        self.streams += 1

    def stream_ended(self) -> None:
        self.streams -= 1
        self.streams_min = min(self.streams_min, self.streams)

    def delivered(self, sent_unix_s: float, now_unix_s: float) -> None:
        """Something that was sent at that time has come."""
        took_s = now_unix_s - sent_unix_s
        if abs(took_s) < MOST_AWAY_S:
            self._deliveries_us[max(0, int(took_s * 1e6)) // GRAIN_US] += 1

    def take(self, last: Event | None, event: Event) -> Event | None:
        """An event has come to a stream whose last one was `last`; returns what is its last one now."""
        self.events += 1
        if event.id is None:
            self.unnumbered += 1
        elif last is not None and not self._follows(last, event):
            return last
        now = time.time()
        if event.sent is not None:
            self.delivered(event.sent, now)
        if event.id is None:
            return last
        broadcast = self._broadcasts.get(event.id)
        if broadcast is not None:
            broadcast[3] = now
            broadcast[4] += 1
        elif len(self._broadcasts) < MOST_BROADCASTS:
            id_ = event.id[:64].decode("latin-1")
            self._broadcasts[event.id] = [id_, event.sent, now, now, 1]
        return event

    def _follows(self, last: Event, event: Event) -> bool:
        """Count what lies between the two; whether the event is a new one for its stream."""
        if event.id == last.id:
            self.repeated += 1
            return False
        if event.number is None or last.number is None:
            return True
        step = event.number - last.number
        if step <= 0:
            if step:
                self.disordered += 1
            else:  # written in another way
                self.repeated += 1
            return False
        if self._counts_up:
            self.lost += step - 1
        elif step == 1:
            self._counts_up = True
            self.lost += self._left_out
        else:
            self._left_out += step - 1
        return True

    def sample(self) -> Heard:
        """The state now; what is told once, such as deliveries, is forgotten."""
        deliveries = new_histogram()
        for grains, count in self._deliveries_us.items():
            value_us = grains * GRAIN_US + GRAIN_US // 2
            deliveries.record_value(min(value_us, RANGE_US[1]), count)
        told: Heard = {
            "streams": self.streams,
            "streams_min": self.streams_min,
            "events": self.events,
            "events_lost": self.lost,
            "events_repeated": self.repeated,
            "events_disordered": self.disordered,
            "events_unnumbered": self.unnumbered,
            "comments": self.comments,
            "deliveries": deliveries.encode() if self._deliveries_us else b"",
            "broadcasts": list(self._broadcasts.values()),
        }
        self._deliveries_us, self._broadcasts = Counter(), {}
        self.streams_min = self.streams
        return told
