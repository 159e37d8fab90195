"""The tables of a page: what a run was, what it counted, and what others have published."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from parked.loadtest.client.errors import RequestFailure
from parked.loadtest.report import locust_csv
from parked.loadtest.report.record import kernel_column, number, numbers
from parked.loadtest.terms.units import MIB, count, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parked.loadtest.report.record import Record


#: A run in 2013 and later ones of the same server, as their authors published them.
PUBLISHED = (
    ("http-kit, Clojure, 2013", "400,000", "10-90 s", "7,072", "104 s", "3 GB heap", "8 threads"),
    ("http-kit, Clojure", "600,000", "5-50 s, up to 4 KB", "20,027", "-", "3 GB heap", "8 threads"),
    ("http-kit, Clojure, a user's", "1,500,000", "-", "-", "-", "6 GB", "-"),
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A heading, a row of column names (none for name and value pairs), rows of text, and a remark."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str = ""


def of_run(record: Record, summary: dict[str, Any]) -> list[Table]:
    """All tables for which there is something to say."""
    made = [
        _by_name(summary),
        _errors(summary),
        _failures(summary),
        _exceptions(summary),
        _connections(record, summary),
        _both_sides(record, summary),
        _per_connection(record, summary),
        _workload(record, summary),
        _executed(summary),
        _hosts(record, summary),
        _workers(record),
        _machine(summary),
        _published(summary),
    ]
    return [table for table in made if table.rows]


def _by_name(summary: dict[str, Any]) -> Table:
    rows = [
        (
            f"{it['method']} {it['name']}",
            count(it["count"]),
            count(it["failures"]),
            *("-" if value is None else f"{value:,g} ms" for value in it["latency_ms"].values()),
        )
        for it in summary["requests_by_name"]
    ]
    return Table(
        "Requests by name",
        ("request", "number", "failed", "p50", "p90", "p99", "max"),
        rows,
        "Locust's own statistics of the whole run, ramp included; it rounds percentiles to two digits.",
    )


def _failures(summary: dict[str, Any]) -> Table:
    rows = [
        (f"{it['method']} {it['name']}", count(it["count"]), it["text"]) for it in summary["failures_by_text"]
    ]
    return Table("Failures by text", ("request", "number", "text"), rows)


def _exceptions(summary: dict[str, Any]) -> Table:
    rows = [(it["text"], count(it["count"])) for it in summary["task_exceptions"]]
    return Table("Exceptions in tasks", ("exception", "number"), rows, "Tracebacks: locust_exceptions.csv.")


def _published(summary: dict[str, Any]) -> Table:
    """Only for runs of the demo application with its own locustfile: others are something else."""
    server = summary["server"]
    if not (summary["workload"]["length_characters"] and server["own_counts"]):
        return Table("", (), ())
    this = (
        "this run",
        f"{summary['min_connections_in_hold']:,}",
        f"{_span(summary['workload']['think_s'], 's')}",
        f"{summary['hold_rps']:,.0f}",
        f"{summary['ramp_seconds']:,.0f} s",
        f"{size(server['pss_peak_bytes'])} PSS" if server["pss_peak_bytes"] else "-",
        f"{summary['machine'].get('cpu_count', '?')} cores, "
        + ("client and server" if server["processes"] else "client only"),
    )
    return Table(
        "Against what was published",
        ("who", "connections", "think time", "requests/s", "ramp", "server memory", "machine"),
        (this, *PUBLISHED),
        "Other machines, years and languages, as their authors state them: an order of magnitude, no ratio.",
    )


def _connections(record: Record, summary: dict[str, Any]) -> Table:
    totals, kinds, kernel = record.facts["totals"], summary["failures_by_kind"], summary["kernel"]
    spread = summary["client"]["connections_a_worker"]
    return Table(
        "Connections",
        (),
        [
            ("wanted", count(summary["target_connections"])),
            ("open at the peak", count(summary["peak_connections"])),
            ("open at the least in the hold", count(summary["min_connections_in_hold"])),
            *(
                [("per worker, least and most, at the end of the ramp",
                  f"{count(spread['least'])}, {count(spread['most'])}")]
                if spread
                else []
            ),
            ("opened in all", count(totals.get("opened"))),
            ("opened again (reconnects)", count(totals.get("reconnects"))),
            ("closed by the server", count(totals.get("closed_by_peer"))),
            ("not connected: refused, no port or descriptor", count(kinds.get("connect", 0))),
            ("timed out", count(kinds.get("timeout", 0))),
            ("TCP sockets that the kernel saw, most", count(kernel["sockstat_tcp_inuse_peak"])),
            ("SYNs dropped", count(kernel["listen_drops"])),
            ("listen-queue overflows", count(kernel["listen_overflows"])),
            ("segments retransmitted", count(kernel["retrans_segs"])),
        ],
        "The kernel's counts are of the whole machine" + (
            " and of both ends of each connection." if record.facts["server_is_local"] else "."
        ),
    )  # fmt: skip


def _both_sides(record: Record, summary: dict[str, Any]) -> Table:
    totals, told = record.facts["totals"], summary["server"]["own_counts"]
    rows = [
        ("connections opened, accepted", count(totals["opened"]), count(told["accepted"])),
        ("requests sent, answered", count(totals["requests_sent"]), count(told["requests"])),
        ("answers received, sent", count(totals["requests"] - totals["failures"]), count(told["requests"])),
        ("bytes received, sent", count(totals["received_bytes"]), count(told["sent_bytes"])),
    ] if told else []  # fmt: skip
    remark = "Of the whole run. Requests that were under way when it was stopped are the difference."
    return Table("As both sides count", ("", "clients", "server"), rows, remark)


def _errors(summary: dict[str, Any]) -> Table:
    meanings: dict[str, str] = {}
    pending = [RequestFailure]
    while pending:
        failure = pending.pop(0)
        meanings.setdefault(failure.kind, (failure.__doc__ or "").strip().splitlines()[0])
        pending.extend(failure.__subclasses__())
    meanings[RequestFailure.kind] = "Any other failure, also one that a task reports itself."
    kinds = sorted(summary["failures_by_kind"].items(), key=lambda item: -item[1])
    return Table(
        "Failures by kind",
        ("kind", "requests", "meaning"),
        [(kind, count(number_), meanings.get(kind, "")) for kind, number_ in kinds],
        "docs/errors.md has the usual cause and the remedy of each.",
    )


def _per_connection(record: Record, summary: dict[str, Any]) -> Table:
    """Memory at the fullest moment, divided; the kernel's is its growth, since others use slab too."""
    rows, peak = record.rows, summary["peak_connections"]
    if not peak or not rows:
        return Table("Memory per connection", (), ())
    first = rows[0]
    made = []
    opened = peak - (number(first, "connections") or 0)
    for side, column in (("server", "server_pss_bytes"), ("client", "client_pss_bytes")):
        most = max(numbers(rows, column), default=0.0)
        if most:
            each = _grown_each(rows, column, most, peak)
            what = "PSS of all its processes, at the peak"
            made.append((side, size(most), f"{most / peak:,.0f} B", each, what))
    kernel = kernel_column(rows)
    source = f"what sockets pin, by /proc/{record.facts.get('socket_bytes_from')}"
    for name, column in (("kernel", kernel), ("TCP buffers", "sockstat_tcp_mem_bytes")):
        known = numbers(record.hold() or rows, column)
        before = number(first, column)
        if known and before is not None and opened > 0:
            grown = max(known) - before
            grows = name if name != "kernel" else "slab" if kernel == "slab_bytes" else source
            what = f"growth of {grows}, since the first second"
            each = f"{max(0.0, grown) / opened:,.0f} B"
            made.append((name, size(max(0.0, grown)), each, each, what))
    remark = "Grown: from half of the connections on, so without what processes take by themselves."
    if record.facts["server_is_local"]:
        remark += " The kernel's is for both ends of a connection."
    return Table(
        f"Memory per connection, at {peak:,} connections",
        ("part", "in all", "per connection", "grown, per connection", "measured as"),
        made,
        remark,
    )


def _grown_each(rows: Sequence[dict[str, str]], column: str, most: float, peak: int) -> str:
    """Bytes per connection from half of the connections on: what processes take by themselves, and what was
    not read yet in the first seconds, is in both."""
    half = next((row for row in rows if (number(row, "connections") or 0) >= peak / 2), None)
    before, more = number(half, column), peak - (number(half, "connections") or 0)
    return f"{max(0.0, most - before) / more:,.0f} B" if before and more >= peak / 4 else "-"


def _workload(record: Record, summary: dict[str, Any]) -> Table:
    workload = summary["workload"]
    rows = [
        (f"{name} asked for", f"{_span(asked, unit)}, uniform; mean {sum(asked) / 2:,g} {unit}")
        for name, asked, unit in (
            ("think time", workload["think_s"], "s"),
            ("body length", workload["length_characters"], "characters"),
        )
        if asked
    ]
    hold, requests = record.facts["hold"], summary["hold_requests"]
    if requests:
        users = numbers(record.hold(), "users") or [summary["target_connections"]]
        between_s = sum(users) / len(users) * record.facts["hold_s"] / requests
        rows += [
            (
                "measured: mean time between two requests of a user",
                f"{between_s:.2f} s (hold seconds x users / requests)",
            ),
            (
                "measured: mean received per response",
                f"{hold['received_bytes'] / requests:,.0f} bytes, header fields included",
            ),
            ("measured: mean sent per request", f"{hold.get('sent_bytes', 0) / requests:,.0f} bytes"),
        ]
    if (delay_ms := summary["send_delay_mean_ms"]) is not None:
        rows.append(("measured: a request left after it was due", f"{delay_ms:.2f} ms on average"))
    (body,) = locust_csv.aggregated(record.folder, "Average Content Size")
    if body:
        rows.append(("measured by Locust: mean body", f"{body:,.0f} bytes"))
    return Table(
        f"The workload, as {'asked for and ' if workload['think_s'] else ''}executed",
        (),
        rows,
        "First think times are randomised so that the load is steady from the first second."
        if workload["think_s"]
        else "",
    )


def _span(ends: Sequence[float] | None, unit: str) -> str:
    return "-" if ends is None else f"{ends[0]:,g}-{ends[1]:,g} {unit}"


def _executed(summary: dict[str, Any]) -> Table:
    executed, workload = summary["workload"]["executed"], summary["workload"]
    rows: list[tuple[str, ...]] = []
    for name, text, asked in (
        ("think_s", "think time, s", workload["think_s"]),
        ("length_bytes", "body, bytes", workload["length_characters"]),
    ):
        if drawn := executed[name]:
            if asked:
                low, high = asked
                middle = f"{(low + high) / 2:,.5g}"
                rows.append((f"{text}: asked for", "-", f"{low:,.5g}", middle, middle, f"{high:,.5g}", "-"))
            far = drawn["distance"]
            rows.append(
                (
                    f"{text}: measured",
                    count(drawn["count"]),
                    *(f"{drawn[key]:,.5g}" for key in ("min", "mean", "p50", "max")),
                    "-" if far is None else f"{100 * far:.2f} %",
                )
            )
    return Table(
        "Think times and lengths in the hold",
        ("", "number", "least", "mean", "median", "most", "distance"),
        rows,
        "Think time is from a response to the moment at which the next request is due. Distance: greatest "
        "difference in share to an even distribution (Kolmogorov-Smirnov).",
    )


def _hosts(record: Record, summary: dict[str, Any]) -> Table:
    """Each host of a run of several, as its own agent and its own workers saw it."""
    rows = []
    for host in summary.get("hosts", ()):
        offset_ms, error_ms, lost_s = host["clock_offset_ms"], host["clock_error_ms"], host["lost_at_s"]
        rows.append(
            (
                host["name"] + ("" if lost_s is None else f" (lost at {lost_s:.0f} s)"),
                count(host["workers"]),
                count(host["peak_connections"]),
                count(host["min_connections_in_hold"]),
                f"{host['hold_rps']:,.1f}",
                count(host["failures"]),
                f"{host['client_cpu_seconds_in_hold']:,.1f} s",
                size(host["client_pss_peak_bytes"]),
                count(host["sockstat_tcp_inuse_peak"]),
                count(host["retrans_segs"]),
                "unknown" if offset_ms is None else f"{offset_ms:+,.1f} ± {error_ms:,.1f} ms",
            )
        )
    columns = (
        "host",
        "workers",
        "connections, most",
        "least in the hold",
        "requests/s",
        "failed",
        "CPU in the hold",
        "memory",
        "TCP sockets",
        "retransmits",
        "clock",
    )
    kernels = {host["kernel_id"] for host in record.facts.get("hosts", ())}
    shared = "" if len(kernels) == len(rows) else " Hosts that share a kernel share its machine."
    return Table(
        "Hosts",
        columns,
        rows,
        "CPU and memory are of the load test's processes, sockets and retransmits of the host's kernel. "
        f"Clock: its largest distance from the master's; times in these results are corrected by it.{shared}",
    )


def _workers(record: Record) -> Table:
    rows = [
        (
            f"{worker['worker']}{' (lost)' if worker['lost'] else ''}",
            worker["source"] or "-",
            _known(worker.get("connections_at_hold"), "{:,}"),
            *(count(worker[name]) for name in ("opened", "requests", "failures", "reconnects", "late_sends")),
            _known(worker.get("cpu_s"), "{:.1f} s"),
            _known(worker.get("loop_lag_max_s"), "{:,.0f} ms", 1000),
            _known(worker.get("gc_pause_max_s"), "{:,.1f} ms", 1000),
            _known(worker.get("gc_pause_s"), "{:.2f} s"),
        )
        for worker in record.facts["workers"]
    ]
    columns = (
        "worker",
        "source address",
        "held",
        "opened",
        "requests",
        "failed",
        "reconnects",
        "sent late",
        "CPU",
        "longest lag",
        "longest GC",
        "GC in all",
    )
    remark = "Held: connections when the hold began. The others are of the whole run, ramp and stop included."
    return Table("Locust workers", columns, rows, remark)


def _known(value: float | None, form: str, factor: float = 1) -> str:
    return "-" if value is None else form.format(value * factor)


def _machine(summary: dict[str, Any]) -> Table:
    software = summary["server"]["software"]  # of its Server header
    rows = [
        ("started", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(summary["started_unix_s"]))),
        ("target", summary["workload"]["host"] + (f" ({software})" if software else "")),
        (
            "processes",
            f"server {summary['server']['processes'] or 0}, client {summary['client']['processes'] or 0}",
        ),
        *(
            (name.removesuffix("_bytes").replace("_", " "), _value(name, value))
            for name, value in summary["machine"].items()
        ),
        *summary["versions"].items(),
        ("command", summary["command"]),
    ]
    return Table("Machine, limits, versions, command", (), rows)


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, list):
        return ", ".join(_value(name, part) for part in value) or "none"
    if isinstance(value, int) and name.endswith("_bytes"):
        return size(value) if value >= MIB else f"{value:,} B"
    return f"{value:,}" if isinstance(value, int) and "port" not in name else str(value)
