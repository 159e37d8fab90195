"""What a worker counts of its responses."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator

from parked.prefork.scoreboard import STATUSES, TIME_BUCKETS_S
from parked.shared.pauses import Collections, LoopLag

_KNOWN = frozenset(STATUSES)


class Statistics:
    """Statuses, bytes and times of the responses of this process, and its pauses."""

    def __init__(self) -> None:
        self._collections = Collections()
        self._lag = LoopLag()
        self.statuses: defaultdict[int, int] = defaultdict(int)
        self.buckets = [0] * (len(TIME_BUCKETS_S) + 1)
        self.sent_bytes = 0
        self.seconds = 0.0

    def note(self, status: int | None, sent_bytes: int, seconds: float) -> None:
        """Count one response; 0.4 us. A negative status is pywsgi's mark for one that could not be sent."""
        self.statuses[status if status and status > 0 else 0] += 1
        self.buckets[bisect_left(TIME_BUCKETS_S, seconds)] += 1
        self.sent_bytes += sent_bytes
        self.seconds += seconds

    def note_refusal(self, status: int) -> None:
        """Count an answer that no application had a part in."""
        self.statuses[status] += 1

    def counters(self, figures: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
        """What a worker has counted, as the scoreboard names it; *figures* are the server's own.

        `ready`, `owner`, `turned` and `leaving`, which say what a process is about, are set elsewhere.
        """
        yield from figures
        yield "sent_bytes", self.sent_bytes
        yield "request_us", int(self.seconds * 1e6)
        for pauses, name, names in (
            (self._collections, "collection", "collections"),
            (self._lag, "lag", "lags"),
        ):
            yield names, pauses.count
            yield f"{name}_us", int(pauses.seconds * 1e6)
            yield f"{name}_longest_us", int(pauses.longest * 1e6)
            pauses.begin_window()
        other = 0
        for status, count in self.statuses.items():
            if status in _KNOWN and status:
                yield f"status_{status}", count
            else:
                other += count
        yield "status_0", other
        for number, count in enumerate(self.buckets):
            yield f"bucket_{number}", count
