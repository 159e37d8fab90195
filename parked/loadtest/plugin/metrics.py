"""/metrics of the load test in Prometheus' text format, from the Locust master (docs/monitoring.md).

Everything comes from the sample a second that the recorder makes anyway; a request costs nothing for it.
Counters are of a run: they begin anew with the next one of a web UI, which Prometheus recognises.

Latencies are a histogram with buckets. Unlike ready-made quantiles, buckets add up over time and over load
tests, so Grafana can show any percentile of any span. They are cut from the merged HdrHistogram, whose own
resolution of 0.1 % is what a bucket's limit may be off by. Within a bucket a percentile is interpolated, so
those of the hold, which the report states, are given as they are too.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING, Any, Final

from gevent.pywsgi import WSGIServer
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from parked.loadtest.client.errors import KINDS
from parked.loadtest.terms import options, values
from parked.loadtest.terms.histogram import new_histogram
from parked.shared import exposition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from locust.env import Environment
    from locust.event import Events

    from parked.loadtest.master.heard import HeardSecond
    from parked.loadtest.master.run import Run
    from parked.loadtest.terms.sample import HeardCounter

logger = logging.getLogger(__name__)

#: Upper bounds of the latency buckets in seconds: ten a decade from 1 ms to 63 s (the Renard series R10), so
#: that a percentile that is interpolated within one is off by 12 % at most.
BUCKETS_S: Final = tuple(
    float(f"{step * 10**power:.6g}")
    for power in range(-3, 2)
    for step in (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
    if step * 10**power <= 63
)
#: What the report states of the hold.
HOLD_PERCENTILES: Final = (50, 90, 99, 99.9, 100)
PHASES = ("idle", "ramp", "hold", "stop")

#: Counters of all workers: their name here, in a fleet's totals, and what they count.
_COUNTERS = (
    ("connections_opened", "opened", "Connections opened, also again."),
    ("reconnects", "reconnects", "Connections opened again after one was lost."),
    ("connections_closed_by_server", "closed_by_peer", "Connections that the server closed."),
    ("requests", "requests", "Requests that have ended, failed ones included."),
    ("late_sends", "late_sends", "Requests that left more than 100 ms after they were due."),
    ("received_bytes", "received_bytes", "Bytes received."),
    ("sent_bytes", "sent_bytes", "Bytes sent."),
)
#: The same of what is heard by users that wait.
_HEARD_COUNTERS: tuple[tuple[str, HeardCounter, str], ...] = (
    ("events", "events", "Events that have come."),
    ("events_lost", "events_lost", "Numbers that were left out between two events of a stream."),
    ("events_repeated", "events_repeated", "Events that came twice to a stream."),
    ("events_disordered", "events_disordered", "Events that came behind later ones."),
    ("events_unnumbered", "events_unnumbered", "Events without an id."),
    ("comments", "comments", "Comments in event streams, such as heartbeats."),
)
#: Gauges of a row: name here, column, factor to the unit, and what it is.
_GAUGES = (
    ("users", "users", 1, "Users that are running."),
    ("connections_wanted", "connections_wanted", 1, "Connections asked for."),
    ("connections", "connections", 1, "Connections that are established."),
    ("connections_least", "connections_min", 1, "The least there were within the last second."),
    ("latency_max_seconds", "latency_max_ms", 1e-3, "Longest latency of the last second."),
    ("streams", "streams", 1, "Responses that are awaited or have begun, where users wait for what is sent."),
    ("delivery_max_seconds", "delivery_max_ms", 1e-3, "Longest time from sending to arrival, last second."),
    ("burst_requests", "burst_10ms_max", 1, "Most requests sent within 10 ms of the last second."),
    ("loop_lag_seconds", "loop_lag_max_ms", 1e-3, "Longest lag of a worker's event loop in the last second."),
    ("kernel_cores", "kernel_cores", 1, "Cores that the kernel was busy with for nobody, mostly interrupts."),
    ("busy_cores", "busy_cores", 1, "Cores that were busy, of all programs."),
    ("memory_available_bytes", "memory_available_bytes", 1, "Memory that is left on this machine."),
    ("tcp_memory_bytes", "sockstat_tcp_mem_bytes", 1, "TCP buffers, of the whole network namespace."),
)
#: Series with a label: name here, label, its values with their columns, and what they are.
_LABELLED = (
    (
        "memory_bytes",
        "side",
        {"server": "server_pss_bytes", "client": "client_pss_bytes", "kernel": "slab_bytes"},
        "PSS of the processes of a side; the slab of the kernel.",
    ),
    (
        "processes",
        "side",
        {"server": "server_processes", "client": "client_processes"},
        "Processes of a side.",
    ),
    (
        "tcp_sockets",
        "state",
        {"inuse": "sockstat_tcp_inuse", "time_wait": "sockstat_tcp_tw"},
        "TCP sockets as the kernel counts them, both ends on loopback.",
    ),
)
#: Counters of the kernel since the run began: name here, and column.
_KERNEL_COUNTERS = (
    ("listen_overflows", "listen_overflows", "Connections that a full accept queue turned away."),
    ("listen_drops", "listen_drops", "SYNs dropped for a listening socket."),
    ("retransmits", "retrans_segs", "TCP segments sent again."),
)


class Metrics:
    """The newest second of a run; a collector as prometheus_client defines it."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._taken: Any = None
        self._latencies, self._deliveries = Latencies(), Latencies()

    def take(self, run: Run, **_: Any) -> None:
        """A second of `run` has passed, or it has ended."""
        if run is not self._run:
            self._run = run
            self._latencies, self._deliveries = Latencies(), Latencies()
        if run.second_now is not self._taken and run.second_now is not None:
            self._taken = run.second_now
            self._latencies.add(run.second_now.latencies)
            if run.second_now.heard is not None:
                self._deliveries.add(run.second_now.heard.deliveries)

    def collect(self) -> Iterator[Any]:
        run, row = self._run, self._run.row if self._run else {}
        phases = GaugeMetricFamily(
            "parked_loadtest_phase", "1 for the phase that the run is in.", labels=["phase"]
        )
        current = "idle" if run is None or run.ended else row.get("phase", "ramp")
        for phase in PHASES:
            phases.add_metric([phase], int(phase == current))
        yield phases
        if run is None or run.second_now is None:
            return
        for name, key, text in _COUNTERS:
            yield CounterMetricFamily(f"parked_loadtest_{name}", text, run.second_now.totals[key])
        failures = CounterMetricFamily("parked_loadtest_failures", "Requests that failed.", labels=["kind"])
        for kind in dict.fromkeys((*KINDS, *run.second_now.failures_by_kind)):
            failures.add_metric([kind], run.second_now.failures_by_kind.get(kind, 0))
        yield failures
        yield HistogramMetricFamily(
            "parked_loadtest_latency_seconds",
            "Time from when a request was due to the end of its response.",
            buckets=self._latencies.cumulative(),
            sum_value=self._latencies.sum_s,
        )
        if run.second_now.heard is not None:
            yield from self._of_heard(run.second_now.heard)
        if run.hold.latencies.get_total_count():
            quantiles = GaugeMetricFamily(
                "parked_loadtest_hold_latency_seconds", "Percentiles of the hold so far.", labels=["quantile"]
            )
            found_us = run.hold.latencies.get_percentile_to_value_dict(HOLD_PERCENTILES)
            for percent, value_us in found_us.items():
                quantiles.add_metric([f"{percent / 100:g}"], value_us / 1e6)
            yield quantiles
        if run.offered_per_s is not None:
            text = "Requests a second that fall due, at the connections there are and their mean think time."
            yield GaugeMetricFamily("parked_loadtest_offered_requests_per_second", text, run.offered_per_s)
        yield from _of_row(row)
        yield from _of_workers(run)
        if run.machine_now is not None:
            cpu = CounterMetricFamily(
                "parked_loadtest_cpu_seconds", "CPU time of a side's processes.", labels=["side"]
            )
            if run.machine_now.server_cpu_seconds is not None:
                cpu.add_metric(["server"], run.machine_now.server_cpu_seconds)
            cpu.add_metric(["client"], run.machine_now.client_cpu_seconds)
            yield cpu

    def _of_heard(self, heard: HeardSecond) -> Iterator[Any]:
        for name, key, text in _HEARD_COUNTERS:
            yield CounterMetricFamily(f"parked_loadtest_{name}", text, heard.totals[key])
        yield HistogramMetricFamily(
            "parked_loadtest_delivery_seconds",
            "Time from when something was sent, as it says, to its arrival.",
            buckets=self._deliveries.cumulative(),
            sum_value=self._deliveries.sum_s,
        )


def _of_row(row: dict[str, Any]) -> Iterator[Any]:
    """What the kernel does not show is left out."""
    for name, column, factor, text in _GAUGES:
        if (value := row.get(column)) is not None:
            yield GaugeMetricFamily(f"parked_loadtest_{name}", text, value * factor)
    for name, label, columns, text in _LABELLED:
        family = GaugeMetricFamily(f"parked_loadtest_{name}", text, labels=[label])
        for side, column in columns.items():
            if (value := row.get(column)) is not None:
                family.add_metric([side], value)
        yield family
    for name, column, text in _KERNEL_COUNTERS:
        if (value := row.get(column)) is not None:
            yield CounterMetricFamily(f"parked_loadtest_{name}", text, value)


def _of_workers(run: Run) -> Iterator[Any]:
    """Series a worker, which are as many as there are worker processes: some 50 for a million connections."""
    labels = ["worker", "source"]
    connections = GaugeMetricFamily(
        "parked_loadtest_worker_connections", "Established, by worker.", labels=labels
    )
    requests = CounterMetricFamily(
        "parked_loadtest_worker_requests", "Requests that have ended.", labels=labels
    )
    cpu = CounterMetricFamily("parked_loadtest_worker_cpu_seconds", "CPU time of a worker.", labels=labels)
    alive = 0
    for number, worker in enumerate(run.fleet.workers.values()):
        alive += not worker.lost
        values = [str(number), worker.sample["source"]]
        connections.add_metric(values, 0 if worker.lost else worker.sample["connections"])
        requests.add_metric(values, worker.sample["requests"])
        cpu.add_metric(values, worker.sample["cpu_s"])
    yield from (connections, requests, cpu)
    workers = GaugeMetricFamily("parked_loadtest_workers", "Locust workers.", labels=["state"])
    workers.add_metric(["alive"], alive)
    workers.add_metric(["lost"], len(run.fleet.workers) - alive)
    yield workers


class Latencies:
    """All latencies of a run in buckets."""

    def __init__(self) -> None:
        self.sum_s = 0.0
        self._counts = [0] * (len(BUCKETS_S) + 1)
        # The last place in a histogram's counts that belongs to each bucket.
        places = new_histogram()
        self._ends = [places.get_counts_array_index(round(bound * 1e6)) + 1 for bound in BUCKETS_S]

    def add(self, histogram: Any) -> None:
        """Add a second's: 1-2 ms, most of it for looking at 23,000 counts."""
        if not histogram.get_total_count():
            return
        counts = histogram.counts[:]
        begin = 0
        for place, end in enumerate((*self._ends, len(counts))):
            self._counts[place] += sum(counts[begin:end])
            begin = end
        value_of = histogram.get_value_from_index
        self.sum_s += sum(count * value_of(place) for place, count in enumerate(counts) if count) / 1e6

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, requests up to it), as the text format has them."""
        total, found = 0, []
        for bound, count in zip((*BUCKETS_S, math.inf), self._counts, strict=True):
            total += count
            found.append(("+Inf" if math.isinf(bound) else str(bound), float(total)))
        return found


def attach(events: Events) -> None:
    """Serve them on the master, if --metrics says so. To be called after the recorder's."""

    def on_init(environment: Environment, **_: Any) -> None:
        recorder, chosen = getattr(environment, "parked_recorder", None), environment.parsed_options
        if recorder is None or chosen is None or not (chosen := options.ours(chosen)).metrics:
            return
        metrics = Metrics()
        recorder.seconds.add_listener(metrics.take)
        server = WSGIServer(values.listen_address(chosen.metrics), exposition.application(metrics), log=None)
        try:
            server.start()
        except OSError as error:
            sys.exit(f"--metrics {chosen.metrics}: {error.strerror}")
        logger.info("metrics at http://%s/metrics", chosen.metrics)

    events.init.add_listener(on_init)
