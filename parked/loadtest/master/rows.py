"""A row of `samples.csv`: one second of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parked.loadtest.master import server_metrics
from parked.loadtest.terms.histogram import values_at

if TYPE_CHECKING:
    from parked.loadtest.machine.monitor import MachineSample
    from parked.loadtest.master.fleet import Second

#: Columns of samples.csv that come from the workers; SERVER_COLUMNS come from the server's own metrics and
#: are empty without them, MACHINE_COLUMNS come from the monitor. Units are in the names, *_total are since
#: the start; `requests`, `failures`, `reconnects` and `received_bytes` are what was counted since the row
#: before, until `counted_unix_s`: :func:`parked.loadtest.report.record.per_second` makes rates of them.
FLEET_COLUMNS = (
    "time_s",
    "unix_time_s",
    "counted_unix_s",
    "phase",
    "users",
    "connections_wanted",
    "connections",
    "connections_min",
    "opened_total",
    "reconnects_total",
    "requests_total",
    "requests_sent_total",
    "failures_total",
    "late_sends_total",
    "received_bytes_total",
    "requests",
    "failures",
    "reconnects",
    "received_bytes",
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "latency_max_ms",
    "requests_open",
    "open_oldest_ms",
    "burst_10ms_max",
    "loop_lag_max_ms",
    "gc_pause_max_ms",
)
#: Those of users that wait for what is sent; empty where there are none. `streams` are responses that are
#: awaited or have begun, deliveries are timed from their sending to their arrival.
HEARD_COLUMNS = (
    "streams",
    "streams_min",
    "events_total",
    "events_lost_total",
    "events_repeated_total",
    "events_disordered_total",
    "events_unnumbered_total",
    "comments_total",
    "deliveries",
    "delivery_p50_ms",
    "delivery_p90_ms",
    "delivery_p99_ms",
    "delivery_max_ms",
)
MACHINE_COLUMNS = (
    "server_cores",
    "client_cores",
    "kernel_cores",
    "busy_cores",
    "server_pss_bytes",
    "client_pss_bytes",
    "slab_bytes",
    "socket_bytes",
    "memory_available_bytes",
    "sockstat_tcp_inuse",
    "sockstat_tcp_tw",
    "sockstat_tcp_mem_bytes",
    "listen_overflows",
    "listen_drops",
    "retrans_segs",
    "server_processes",
    "client_processes",
)
SERVER_COLUMNS = server_metrics.COLUMNS
COLUMNS = FLEET_COLUMNS + HEARD_COLUMNS + SERVER_COLUMNS + MACHINE_COLUMNS
#: Names and percentiles of a second's latencies.
_PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def counted(second: Second, before: dict[str, float], phase: str) -> dict[str, Any]:
    """The cells that come from the workers' counts; `before`: their totals in the row before.

    Latencies of a stop are left out: what is still answered meanwhile waits for all that is being closed, and
    a run's last line and the ends of its charts would show that as if it were the server's.
    """
    totals = second.totals
    since = {name: totals[name] - before.get(name, 0) for name in totals}
    cells: dict[str, Any] = {
        "users": second.users,
        "connections": second.connections,
        "connections_min": second.connections_min,
        "opened_total": totals["opened"],
        "reconnects_total": totals["reconnects"],
        "requests_total": totals["requests"],
        "requests_sent_total": totals["requests_sent"],
        "failures_total": totals["failures"],
        "late_sends_total": totals["late_sends"],
        "received_bytes_total": totals["received_bytes"],
        "requests": since["requests"],
        "failures": since["failures"],
        "reconnects": since["reconnects"],
        "received_bytes": since["received_bytes"],
        "requests_open": second.open_s.count,
        "open_oldest_ms": round(second.open_s.most * 1000, 3) if second.open_s.count else 0.0,
        "burst_10ms_max": second.burst_10ms_max,
        "loop_lag_max_ms": round(second.loop_lag_max_s * 1000, 1),
        "gc_pause_max_ms": round(second.gc_pause_max_s * 1000, 1),
    }
    if phase != "stop":
        cells |= _percentiles("latency", second.latencies)
    if (heard := second.heard) is not None:
        cells |= {"streams": heard.streams, "streams_min": heard.streams_min}
        cells |= {f"{name}_total": count for name, count in heard.totals.items()}
        cells["deliveries"] = heard.deliveries.get_total_count()
        if phase != "stop":
            cells |= _percentiles("delivery", heard.deliveries)
    return cells


def _percentiles(what: str, histogram: Any) -> dict[str, float]:
    if not histogram.get_total_count():
        return {}
    values_us = values_at(histogram, list(_PERCENTILES.values()))
    return {
        f"{what}_{name}_ms": round(us / 1000, 3) for name, us in zip(_PERCENTILES, values_us, strict=True)
    }


def measured(machine: MachineSample) -> dict[str, Any]:
    """The cells that come from the monitor."""
    return {name: _rounded(getattr(machine, name)) for name in MACHINE_COLUMNS}


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
