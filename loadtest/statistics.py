"""Locust's statistics, filled in batches.

Locust logs each request into two `StatsEntry` objects as it ends, about 5 us. Here requests are gathered and,
twice a second, folded into the same objects by Locust's own `StatsEntry.extend`, so that its web UI, CSV
files, events and percentiles are what they would have been. If anybody but Locust listens to the request
event, it is fired for each request as usual instead, and Locust's own listener does the counting.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from locust import stats as locust_stats
from locust.stats import StatsEntry

if TYPE_CHECKING:
    from locust.env import Environment

#: Seconds between two foldings.
FOLD_S = 0.5


class BatchedStatistics:
    """Gathers one process's requests for its Locust environment."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._listeners = environment.events.request._handlers
        #: (response time in ms, content length in bytes) of the requests of each (name, method).
        self._done: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)

    @property
    def only_locust_listens(self) -> bool:
        """Whether the runner's own listener, which is always there, is the only one (`Runner.__init__`)."""
        return len(self._listeners) == 1

    def log(self, method: str, name: str, response_time_ms: float, length_bytes: int, failure: Any) -> None:
        self._done[name, method].append((response_time_ms, length_bytes))
        if failure is not None:
            self._environment.stats.log_error(method, name, failure)

    def fold(self) -> None:
        """Hand over what was gathered."""
        done, self._done = self._done, defaultdict(list)
        stats = self._environment.stats
        now = time.time()
        for (name, method), requests in done.items():
            times_ms = [time_ms for time_ms, _ in requests]
            entry = StatsEntry(stats, name, method)
            entry.num_requests = len(requests)
            entry.total_response_time = sum(times_ms)  # type: ignore[assignment] # Locust itself puts floats here
            entry.min_response_time = min(times_ms)  # type: ignore[assignment]
            entry.max_response_time = max(times_ms)  # type: ignore[assignment]
            entry.total_content_length = sum(length_bytes for _, length_bytes in requests)
            entry.response_times = dict(Counter(map(locust_stats.bucket_response_time, times_ms)))
            entry.num_reqs_per_sec = {int(now): len(requests)}
            entry.last_request_timestamp = now
            for total in (stats.entries[name, method], stats.total):
                # extend() takes the earlier start: a batch must not seem to have begun after its entry.
                entry.start_time = total.start_time
                total.extend(entry)
