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
#: What arrives of a broadcast that has been arriving for some time may lie for this share of it, at most so
#: many seconds, and is then fetched together; that makes a long broadcast shorter. 22 processes of server and
#: client each on two cores, both ends: 100 us per event where each process was woken for a few at a time, 45
#: at intervals of 30 to 90 ms.
PAUSE_SHARE = 0.1
PAUSE_MOST_S = 0.06
#: Shorter ones save no wake-up.
PAUSE_LEAST_S = 0.005
#: Seconds beyond which a time of sending is taken for something else.
MOST_AWAY_S = 86_400.0
#: Lost events that are told of: numbers are the server's to choose, and no message holds all of them.
MOST_LOST = 10**12


class HeardByProcess:
    """Counts of one process, and what its streams share.

    :ivar streams: responses that are awaited or have begun, and have no end yet.
    :ivar lost: numbers that were left out between two events of a stream.
    :ivar repeated: events with the number of the one before.
    :ivar disordered: events with a number below that.
    :ivar unnumbered: events that have no id, or an empty one.
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
        #: The last event that followed its stream's last one as it should, that one, and its broadcast: the
        #: next stream will mostly say the same.
        self._event: Event | None = None
        self._before: Event | None = None
        self._broadcast: Broadcast = ["", None, 0.0, 0.0, 0]
        #: The broadcast that is arriving, and since when.
        self._arriving: bytes | None = None
        self._began_unix_s = 0.0
        self._events_before = 0

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
        if event is self._event and last is self._before:
            broadcast = self._broadcast
            broadcast[3] = now = time.time()
            broadcast[4] += 1
            if (sent := event.sent) is not None:
                self.delivered(sent, now)
            return event
        if not event.id:
            self.unnumbered += 1
        elif last is not None and not self._follows(last, event):
            return last
        now = time.time()
        if event.sent is not None:
            self.delivered(event.sent, now)
        if not event.id:
            return last if event.id is None else event  # an empty one: the next request shall say none
        known = self._broadcasts.get(event.id)
        if known is not None:
            known[3] = now
            known[4] += 1
            if last is None or (
                self._counts_up and last.number is not None and event.number == last.number + 1
            ):
                self._event, self._before, self._broadcast = event, last, known
        if event.id != self._arriving:
            self._arriving, self._began_unix_s = event.id, now
        if known is None and len(self._broadcasts) < MOST_BROADCASTS:
            id_ = event.id[:64].decode("latin-1")
            self._broadcasts[event.id] = [id_, event.sent, now, now, 1]
        return event

    def pause_s(self) -> float:
        """Seconds that what comes next may lie; 0 if nothing of a broadcast has come since the last call."""
        events, self._events_before = self._events_before, self.events
        if self.events == events or self._event is None:
            return 0.0
        pause_s = min(PAUSE_SHARE * (time.time() - self._began_unix_s), PAUSE_MOST_S)
        return pause_s if pause_s >= PAUSE_LEAST_S else 0.0

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
            "events_lost": min(self.lost, MOST_LOST),
            "events_repeated": self.repeated,
            "events_disordered": self.disordered,
            "events_unnumbered": self.unnumbered,
            "comments": self.comments,
            "deliveries": deliveries.encode() if self._deliveries_us else b"",
            "broadcasts": list(self._broadcasts.values()),
        }
        self._deliveries_us, self._broadcasts, self._event = Counter(), {}, None
        self.streams_min = self.streams
        return told
