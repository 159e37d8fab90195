"""The hold: what was counted from when all connections were established until the test was stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from parked.loadtest.master.heard import HeardInHold
from parked.loadtest.terms.clock import unix_time_s
from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.histogram import new_histogram

if TYPE_CHECKING:
    from parked.loadtest.machine.monitor import MachineSample
    from parked.loadtest.master.fleet import Second


class _Mark(NamedTuple):
    """One end of the hold: when it was (monotonic), when its counts were made, and the counts."""

    at: float
    counted_unix_s: float
    totals: dict[str, float]
    server_cpu_s: float | None
    client_cpu_s: float | None

    @classmethod
    def of(cls, at: float, counted_unix_s: float, second: Second, machine: MachineSample | None) -> _Mark:
        cpu_s = (machine.server_cpu_seconds, machine.client_cpu_seconds) if machine else (None, None)
        return cls(at, counted_unix_s, second.totals, *cpu_s)


class Hold:
    """Empty until it begins; a run that is asked for more connections begins another one.

    :ivar latencies: of all its requests, a histogram of microseconds.
    """

    def __init__(self) -> None:
        self.latencies = new_histogram()
        self._thinks_s, self._lengths = Distribution(), Distribution()
        self._open_s = Distribution()
        self._first: _Mark | None = None
        self._last: _Mark | None = None
        self._connections_min: int | None = None
        self._burst_10ms_max = 0
        self._heard: HeardInHold | None = None

    def begin(self, at: float, counted_unix_s: float, second: Second, machine: MachineSample | None) -> None:
        """All connections are established in this second, which is the last one before the hold."""
        self._first = self._last = _Mark.of(at, counted_unix_s, second, machine)
        self._connections_min = second.connections
        if second.heard is not None:
            self._heard = HeardInHold(second.heard, unix_time_s())

    def add(self, at: float, counted_unix_s: float, second: Second, machine: MachineSample | None) -> None:
        """A second of it."""
        self._last = _Mark.of(at, counted_unix_s, second, machine)
        self._connections_min = min(self._connections_min or 0, second.connections_min)
        self.latencies.add(second.latencies)
        self._thinks_s.merge(second.thinks_s)
        self._lengths.merge(second.lengths)
        self._open_s = second.open_s
        self._burst_10ms_max = max(self._burst_10ms_max, second.burst_10ms_max)
        if self._heard is not None and second.heard is not None:
            self._heard.add(second.heard)

    @property
    def began(self) -> float | None:
        """When (monotonic); None before."""
        return None if self._first is None else self._first.at

    @property
    def seconds(self) -> float:
        first, last = self._first, self._last
        return 0.0 if first is None or last is None else last.at - first.at

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        first, last = self._first or _NOTHING, self._last or _NOTHING
        return {
            "hold_s": self.seconds,
            "hold_counted_s": last.counted_unix_s - first.counted_unix_s,
            "min_connections_in_hold": self._connections_min,
            "hold": {name: last.totals[name] - count for name, count in first.totals.items()},
            "hold_cpu_s": {
                "server": _grown(first.server_cpu_s, last.server_cpu_s),
                "client": _grown(first.client_cpu_s, last.client_cpu_s),
            },
            "burst_10ms_max": self._burst_10ms_max,
            "hold_latencies": self.latencies.encode().decode(),  # base64 by itself
            "hold_thinks_s": self._thinks_s.as_list(),
            "hold_lengths": self._lengths.as_list(),
            # Requests that were under way at its end, with the age that they had.
            "hold_open_s": self._open_s.as_list(),
            **({} if self._heard is None else {"heard": self._heard.facts()}),
        }


def _grown(first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None else last - first


_NOTHING = _Mark(0.0, 0.0, {}, None, None)
