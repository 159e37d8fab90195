"""Locust's statistics, filled in batches.

Locust logs each request into two `StatsEntry` objects as it ends, 2.2 us. Here requests are gathered
and, once a second and before anybody looks, folded into the same objects by Locust's own `StatsEntry.extend`,
so that its web UI, CSV files, events and percentiles are what they would have been. If anybody but Locust
listens to the request event, it is fired for each request as usual instead, and Locust's own listener does
the counting.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, ClassVar

from greenlet import getcurrent
from locust import stats as locust_stats
from locust.stats import RequestStats, StatsEntry

if TYPE_CHECKING:
    from locust.env import Environment


def _up_to_date(name: str) -> Any:
    def look(stats: UpToDate) -> Any:
        stats.parked_batches.fold_what_is_there()
        return vars(stats)[name]

    def put(stats: UpToDate, value: Any) -> None:
        vars(stats)[name] = value

    return property(look, put)


class UpToDate(RequestStats):
    """A process' statistics, which take in what was gathered before they are looked at or begun anew."""

    parked_batches: BatchedStatistics
    total = _up_to_date("total")
    entries = _up_to_date("entries")
    errors = _up_to_date("errors")

    def clear_all(self) -> None:
        self.parked_batches.fold_what_is_there()
        super().clear_all()


class BatchedStatistics:
    """Gathers one process's requests for its Locust environment."""

    #: Whether Locust's statistics are known to take batches; otherwise each request is told by itself.
    may_fold: ClassVar[bool] = False

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._listeners = environment.events.request._handlers
        #: The runner's own listener, which counts (`Runner.__init__`).
        self._locusts = next((own for own in self._listeners if own.__module__ == "locust.runners"), None)
        #: Requests that others tell of, such as an HttpUser or a task's own `events.request.fire`.
        self.others = self.others_failed = 0
        self._tellers: set[Any] = set()
        self._own = self._note_other
        environment.events.request.add_listener(self._own)
        self._alone = [self._locusts, self._own]
        self._folded = time.time()
        #: (response time in ms, content length in bytes) of the requests of each (name, method).
        self._done: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
        #: (method, name, failure): counted with their requests, or the share of failures would exceed 100 %.
        self._failed: list[tuple[str, str, Any]] = []
        stats: Any = environment.stats
        if type(stats) in (RequestStats, UpToDate):
            stats.__class__ = UpToDate
            stats.parked_batches = self

    @property
    def only_locust_listens(self) -> bool:
        """Whether nobody but the runner is told of each request."""
        return self.may_fold and self._listeners == self._alone

    def tell(self, **request: Any) -> None:
        """Fire the request event, since somebody else listens."""
        teller = getcurrent()  # listeners may let others run
        self._tellers.add(teller)
        try:
            self._environment.events.request.fire(**request)
        finally:
            self._tellers.discard(teller)

    def _note_other(self, exception: Any = None, **_: Any) -> None:
        teller = getcurrent()
        if teller in self._tellers:
            self._tellers.remove(teller)  # told once: a listener that tells more tells of others
        else:
            self.others += 1
            self.others_failed += exception is not None

    def log(self, method: str, name: str, response_time_ms: float, length_bytes: int, failure: Any) -> None:
        self._done[name, method].append((response_time_ms, length_bytes))
        if failure is not None:
            self._failed.append((method, name, failure))

    def fold_what_is_there(self) -> None:
        """Hand over what was gathered, if anything was."""
        if self._done or self._failed:
            self.fold()

    def fold(self) -> None:
        """The same each second: what comes next has come since."""
        done, self._done = self._done, defaultdict(list)
        failed, self._failed = self._failed, []
        began, self._folded = self._folded, time.time()
        stats = self._environment.stats
        # Looked up each time, since Locust lets a test replace it.
        bucket = getattr(locust_stats, "bucket_response_time", _two_digits)
        for (name, method), requests in done.items():
            times_ms = [time_ms for time_ms, _ in requests]
            entry: Any = StatsEntry(stats, name, method)
            entry.start_time = began  # extend() keeps the earlier one
            entry.num_requests = len(requests)
            entry.total_response_time = sum(times_ms)
            entry.min_response_time = min(times_ms)
            entry.max_response_time = max(times_ms)
            entry.total_content_length = sum(length_bytes for _, length_bytes in requests)
            entry.response_times = Counter(map(bucket, times_ms))
            entry.num_reqs_per_sec = {int(self._folded): len(requests)}
            entry.last_request_timestamp = self._folded
            stats.entries[name, method].extend(entry)
            stats.total.extend(entry)
        for method, name, failure in failed:
            try:
                stats.log_error(method, name, failure)
            except Exception:  # a task's own exception, which can't be told in words
                stats.log_error(method, name, type(failure).__name__)


def _two_digits(time_ms: float) -> int:
    """How Locust rounds a response time before 2.43.4, where it is a part of `StatsEntry`."""
    return int(
        round(time_ms, 0 if time_ms < 100 else -1 if time_ms < 1000 else -2 if time_ms < 10000 else -3)
    )
