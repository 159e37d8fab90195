"""/metrics in Prometheus' text format, over all workers, from a small process and an address of its own.

The figures come from the scoreboard, where workers leave them once a second; asking for them costs the
workers nothing. What counts up goes on when workers are replaced, and over a HUP, unless that brings a
version that counts other things.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Final

from parked.prefork.scoreboard import STATUSES, TIME_BUCKETS_S, Scoreboard
from parked.server.pending import REASONS
from parked.shared.pauses import LOOK_S

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
#: Seconds for which a worker's memory is not read again: the kernel walks its page tables for it, 0.1-2 ms.
_PSS_KEPT_S: Final = 10.0


def memory_bytes(pid: int) -> int:
    """Proportional set size of a process: its own and its share of what several map; 0 if it is gone."""
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text("ascii"))
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


class WorkersCollector:
    """Reads the scoreboard when it is asked; a collector as prometheus_client defines it."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        #: By process id: when it was read, and bytes.
        self._memory: dict[int, tuple[float, int]] = {}

    def _column(self, counter: str) -> list[int]:
        return self._scoreboard.column(counter)

    def _sum(self, counter: str) -> int:
        return sum(self._column(counter))

    def _memory_of(self, pid: int) -> int:
        read_at, size = self._memory.get(pid, (0.0, 0))
        if not size or monotonic() - read_at > _PSS_KEPT_S:
            size = memory_bytes(pid)
            self._memory[pid] = monotonic(), size
        return size

    def collect(self) -> Iterator[Any]:
        core = importlib.import_module("prometheus_client.core")
        counter, gauge_family = core.CounterMetricFamily, core.GaugeMetricFamily
        connections, active, pending = map(self._sum, ("connections", "active", "pending"))
        gauge = gauge_family("parked_connections", "Client connections.", labels=["state"])
        gauge.add_metric(["open"], connections)
        gauge.add_metric(["active"], active)
        gauge.add_metric(["pending"], pending)
        gauge.add_metric(["idle"], max(0, connections - active - pending))
        yield gauge
        yield counter("parked_accepted", "Connections accepted.", self._sum("accepted"))
        yield counter("parked_rejected", "Connections refused: 503.", self._sum("rejected"))
        yield counter("parked_refused", "Answers to what was no request.", self._sum("refused"))
        yield counter(
            "parked_failed_handshakes", "TLS handshakes that failed.", self._sum("failed_handshakes")
        )
        yield counter("parked_faults", "Errors of the server itself.", self._sum("faults"))
        timeouts = counter("parked_timeouts", "Connections timed out.", labels=["kind"])
        for kind in ("idle", "header", "body", "write"):
            timeouts.add_metric([kind], self._sum(f"{kind}_timeouts"))
        yield timeouts
        requests = counter("parked_requests", "Requests answered.", labels=["status"])
        for status in STATUSES:
            if count := self._sum(f"status_{status}"):
                requests.add_metric([str(status) if status else "other"], count)
        yield requests
        yield counter("parked_deferred", "Responses left for later.", self._sum("deferred"))
        yield counter("parked_pending_messages", "Sent into these.", self._sum("pending_messages"))
        yield counter("parked_pending_heartbeats", "Heartbeats.", self._sum("pending_heartbeats"))
        ends = counter("parked_pending_ended", "Pending responses that have ended.", labels=["reason"])
        for reason in REASONS:
            ends.add_metric([reason], self._sum(f"pending_{reason}"))
        yield ends
        yield counter("parked_sent_bytes", "Bytes of responses.", self._sum("sent_bytes"))
        total, buckets = 0, []
        for number, bound in enumerate((*TIME_BUCKETS_S, float("inf"))):
            total += self._sum(f"bucket_{number}")
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        yield core.HistogramMetricFamily(
            "parked_request_seconds",
            "Time from a complete request head to the end of its response.",
            buckets=buckets,
            sum_value=self._sum("request_us") / 1e6,
        )
        memory = gauge_family("parked_worker_memory_bytes", "PSS of each.", labels=["worker"])
        share = gauge_family("parked_worker_connections", "Client connections.", labels=["worker"])
        ready = self._column("ready")
        self._memory = {pid: kept for pid, kept in self._memory.items() if pid in ready}
        for row, pid in enumerate(ready):
            if pid:
                memory.add_metric([str(row)], self._memory_of(pid))
                share.add_metric([str(row)], self._scoreboard.get(row, "connections"))
        yield memory
        yield share
        yield from self._pauses("gc_pause", "collection", "collections", "Garbage collections of all workers")
        yield from self._pauses(
            "loop_lag", "lag", "lags", f"Lateness of the event loops, {1 / LOOK_S:g} looks a second each"
        )

    def _pauses(self, name: str, column: str, number: str, text: str) -> Iterator[Any]:
        core = importlib.import_module("prometheus_client.core")
        seconds = self._sum(f"{column}_us") / 1e6
        yield core.SummaryMetricFamily(
            f"parked_{name}_seconds", f"{text}.", count_value=self._sum(number), sum_value=seconds
        )
        longest = max(self._column(f"{column}_longest_us"), default=0) / 1e6
        gauge = core.GaugeMetricFamily
        yield gauge(f"parked_{name}_longest_seconds", f"{text}: longest of the last 1-2 s.", longest)
