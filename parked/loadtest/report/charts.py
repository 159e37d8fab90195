"""What the charts of a page show: plain data, drawn by `assets/page.js` with uPlot.

Colours are indices into the page's palette (Okabe and Ito's, which colour-blind readers can tell apart, in
shades of their own for a dark page); lines that cross have different dashes as well.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import TYPE_CHECKING, Any

from parked.loadtest.report.record import Record, kernel_column, number, per_second
from parked.loadtest.terms.distribution import even
from parked.loadtest.terms.units import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parked.loadtest.terms.distribution import Distribution


#: Indices of the palette in `assets/page.css`.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = range(6)
#: Dashes in pixels, on and off.
DASHED, DOTTED, DASH_DOT = (7, 4), (2, 3), (9, 3, 2, 3)
#: Points of the latency curve for each tenfold of requests: enough for a smooth curve.
POINTS_A_DECADE = 24

Values = list[float | None]


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve, or one band of a stack."""

    name: str
    values: Values
    color: int
    dash: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """One picture. `x` is seconds since the start, 1 / (1 - share of requests) if `percentiles`, or what
    `x_label` says."""

    title: str
    unit: str
    x: Sequence[float | None]
    lines: Sequence[Line]
    log: bool = False
    stacked: bool = False
    percentiles: bool = False
    #: Name and unit of `x`, if it is neither time nor share.
    x_label: str = ""
    #: A height to compare with, and its name.
    mark: tuple[float, str] | None = None
    #: Name, begin and end.
    phases: Sequence[tuple[str, float, float]] = ()

    @property
    def known(self) -> bool:
        return any(value is not None for line in self.lines for value in line.values)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what the page's script reads."""
        made = dataclasses.asdict(self)
        made["x"] = list(self.x)
        for line in made["lines"]:
            line["values"] = [None if value is None else float(f"{value:.5g}") for value in line["values"]]
        return made


def of_run(record: Record, summary: dict[str, Any]) -> list[Chart]:
    """All charts of a run for which something was measured."""
    rows = record.rows
    seconds = [number(row, "time_s") for row in rows]
    spans = phases(record)

    def column(name: str, unit: float = 1.0) -> Values:
        return [None if (value := number(row, name)) is None else value / unit for row in rows]

    def over_time(title: str, unit: str, *lines: Line, **more: Any) -> Chart:
        return Chart(title, unit, seconds, lines, phases=spans, **more)

    def rate(total: str, unit: float = 1.0) -> Values:
        return per_second(column(total, unit), column("counted_unix_s"), seconds)

    def positive(name: str) -> Values:  # a log scale has no 0
        return [value or None for value in column(name)]

    think_s = sum(summary["workload"]["think_s"] or ()) / 2
    server, client, kernel = (column(f"{side}_cores") for side in ("server", "client", "kernel"))
    other = [
        None if busy is None else max(0.0, busy - sum(part or 0.0 for part in parts))
        for busy, *parts in zip(column("busy_cores"), server, client, kernel, strict=True)
    ]
    cores = summary["machine"].get("cpu_count")
    size, size_name = memory_unit(rows)
    buffers = column("sockstat_tcp_mem_bytes", size)
    slab = [
        None if value is None else value + (tcp or 0.0)
        for value, tcp in zip(column(kernel_column(rows), size), buffers, strict=True)
    ]
    charts = [
        over_time(
            "Connections",
            "connections",
            Line("wanted", column("connections_wanted"), GREY, DASHED),
            Line("established", column("connections"), BLUE),
            *_told(Line("as the server counts, up to 3 s ago", column("server_connections"), ORANGE, DOTTED)),
        ),
        over_time(
            "Failures, reconnects and dropped SYNs",
            "events/s",
            Line("failures", rate("failures_total"), RED),
            Line("reconnects", rate("reconnects_total"), PURPLE, DASHED),
            Line("SYN drops", steps(column("listen_drops")), GREY, DOTTED),
            Line("retransmits", steps(column("retrans_segs")), GREEN, DASH_DOT),
        ),
        over_time(
            "Requests",
            "requests/s",
            *([Line("offered", _offered(rows, think_s), GREY, DASHED)] if think_s else []),
            Line("answered", rate("requests_total"), BLUE),
        ),
        over_time("Received", "MiB/s", Line("received", rate("received_bytes_total", MIB), GREEN)),
        over_time(
            "Latency, from when a request was due",
            "ms, log scale",
            Line("p50", positive("latency_p50_ms"), BLUE),
            Line("p90", positive("latency_p90_ms"), GREEN, DASH_DOT),
            Line("p99", positive("latency_p99_ms"), RED),
            Line("max", positive("latency_max_ms"), GREY, DOTTED),
            log=True,
        ),
        percentiles(record.latencies_and_ages),
        over_time(
            "Event-loop lag, longest of any process",
            "ms",
            Line("client", column("loop_lag_max_ms"), ORANGE),
            *_told(Line("server", column("server_loop_lag_max_ms"), BLUE, DASHED)),
        ),
        over_time(
            "Garbage collection, longest pause of any process",
            "ms",
            *_told(Line("client", column("gc_pause_max_ms"), ORANGE)),
            *_told(Line("server", column("server_gc_pause_max_ms"), BLUE, DASHED)),
        ),
        over_time(
            "CPU",
            "busy cores",
            *_bands(("server", server), ("client", client), ("kernel", kernel), ("other programs", other)),
            stacked=True,
            mark=(cores, f"{cores} cores") if cores else None,
        ),
        over_time(
            "Memory",
            f"{size_name} in use",
            *_bands(
                ("server", column("server_pss_bytes", size)),
                ("client", column("client_pss_bytes", size)),
                ("kernel (sockets, TCP buffers)", slab),
            ),
            stacked=True,
        ),
        _drawn("Think times", "s", record.thinks_s, summary["workload"]["think_s"]),
        _drawn("Lengths of bodies", "bytes", record.lengths, summary["workload"]["length_characters"]),
    ]
    charts[4:4] = [
        over_time(
            "Events",
            "events/s, log scale",
            Line("arrived", [value or None for value in rate("events_total")], BLUE),
            Line("lost", [value or None for value in rate("events_lost_total")], RED, DASHED),
            log=True,
        ),
        over_time(
            "From sending to arrival",
            "ms, log scale",
            Line("p50", positive("delivery_p50_ms"), BLUE),
            Line("p90", positive("delivery_p90_ms"), GREEN, DASH_DOT),
            Line("p99", positive("delivery_p99_ms"), RED),
            Line("max", positive("delivery_max_ms"), GREY, DOTTED),
            log=True,
        ),
    ]
    late = steps(column("late_sends_total"))
    if any(late):  # a run's usual nothing needs no picture; the sentences below say it
        charts.append(over_time("Requests that left over 100 ms late", "requests/s", Line("late", late, RED)))
    return [chart for chart in charts if chart.known]


def _offered(rows: list[dict[str, str]], think_s: float) -> Values:
    """Requests/s of the connections that are open; in the hold of all that are wanted: a lost one still has
    requests due."""
    open_ = [number(row, "connections_wanted" if row["phase"] == "hold" else "connections") for row in rows]
    return [None if connections is None else connections / think_s for connections in open_]


def _told(line: Line) -> list[Line]:
    """Nothing, if nothing of it is known: not every server tells its counts."""
    return [line] if any(value is not None for value in line.values) else []


def _drawn(title: str, unit: str, measured: Distribution, asked: Sequence[float] | None) -> Chart:
    """What was drawn in the hold, as its distribution function, beside what was asked for."""
    shares = dict(measured.shares_below())
    asked = asked if asked and any(asked) else None
    x = sorted({*shares, *(asked or ())}) if shares else []
    lines = [Line("measured", [None if value not in shares else 100 * shares[value] for value in x], BLUE)]
    if asked:
        low, high = asked
        lines.insert(0, Line("asked for", [100 * even(value, low, high) for value in x], GREY, DASHED))
    label = f"{title.lower()}, {unit}"
    what = f"{title}, measured{' and asked for' if asked else ''}"
    return Chart(what, "share below, %", x, lines, x_label=label)


def _bands(*bands: tuple[str, Values]) -> list[Line]:
    colors = (BLUE, ORANGE, GREEN, PURPLE)
    return [Line(name, values, color) for (name, values), color in zip(bands, colors, strict=False)]


def phases(record: Record) -> list[tuple[str, float, float]]:
    """Name, begin and end in seconds; one follows the other without a gap."""
    spans: list[tuple[str, float, float]] = []
    before_s = 0.0
    for row in record.rows:
        now_s = number(row, "time_s")
        if now_s is None:
            continue
        if spans and spans[-1][0] == row["phase"]:
            spans[-1] = (row["phase"], spans[-1][1], now_s)
        else:
            spans.append((row["phase"], before_s, now_s))
        before_s = now_s
    return spans


def percentiles(histogram: Any) -> Chart:
    """Latency by share of requests, as HdrHistogram's own plots have it: each nine gets the same width."""
    total = histogram.get_total_count()
    heights: Values = []
    counts: list[int] = []
    so_far = 0
    for index, count in enumerate(histogram.counts[:]):  # the library's own iterator takes five times as long
        if count:
            value_us = histogram.get_highest_equivalent_value(histogram.get_value_from_index(index))
            heights.append(value_us / 1000)
            counts.append(so_far := so_far + count)
    places = []
    step = 0
    while total and (place := 10 ** (step / POINTS_A_DECADE)) < total:
        places.append(place)
        step += 1
    if total:
        places.append(float(total))
    values = [
        heights[min(bisect.bisect_left(counts, total * (1 - 1 / place)), len(counts) - 1)] for place in places
    ]
    return Chart(
        "Latency of the hold by share of requests",
        "ms, log scale",
        [float(f"{place:.6g}") for place in places],
        [Line("latency", values, BLUE)],
        log=True,
        percentiles=True,
    )


def steps(totals: Values) -> Values:
    """Growth from row to row of a counter."""
    grown: Values = []
    before = 0.0
    for total in totals:
        grown.append(None if total is None else total - before)
        before = before if total is None else total
    return grown


def memory_unit(rows: list[dict[str, str]]) -> tuple[float, str]:
    """The unit in which the largest part is readable."""
    most = max(
        (number(row, name) or 0.0 for row in rows for name in ("client_pss_bytes", kernel_column(rows))),
        default=0,
    )
    return (GIB, "GiB") if most >= 2 * GIB else (MIB, "MiB")
