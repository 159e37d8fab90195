"""Cross-checks between records of a run that were made independently of each other.

Six tell of the same run: the rows of `samples.csv`, the totals that the master kept (`run.json`), what each
Locust worker counted, Locust's own statistics, the kernel (`/proc/net/sockstat`), and the server's own
counters, if it is this project's. `logfile` and the histogram repeat parts of the first two. A run in which
they disagree has no figures to trust, whichever of them is right, and can't pass.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from parked.loadtest.report import heard, locust_csv
from parked.loadtest.report.hearing import Hearing, told
from parked.loadtest.report.record import number, numbers
from parked.loadtest.terms import console, files
from parked.loadtest.terms.sample import CUMULATIVE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from parked.loadtest.report.record import Record

#: Of the connections that the clients count, the share of sockets that the kernel must have seen.
SOCKET_SHARE = 0.999
#: Seconds by which two clocks, or a phase and its rows, may differ: time_s has one digit.
CLOCK_S = 0.3
#: Seconds by which the workers' samples may be further behind the rows at one end of the hold than at the
#: other.
SAMPLES_S = 2.5
#: Seconds that the wall clock may drift from the monotonic one (NTP slews 0.5 ms/s at most: half an hour).
WALL_CLOCK_S = 2.0
#: CPU of the hold, from the rows against the processes' own: rows have three digits and lag by a second.
CPU_SHARE, CPU_S = 0.05, 0.5
#: Seconds of requests that Locust may not know of a worker that was killed: it hears of them every 3 s.
LOCUST_REPORT_S = 4.0

#: Seconds by which the server's counts may be behind: its workers tell once a second, and are asked as often.
#: More by as much as their event loops were late, which is when they can't tell.
SERVER_BEHIND_S = 3.0
#: Seconds by which workers' samples may be behind the mean of their times.
SAMPLES_SPREAD_S = 1.5
#: Seconds of requests that nobody knows of a server process or a Locust worker that was killed.
UNTOLD_S = 2.0
#: Rows that one of the server's counts is held against: an hour. Folders may say that there are more.
MOST_BETWEEN = 3_600
#: Connections to the server beside those of the test that need no word: somebody looks whether it is well.
VISITORS = 5

#: Cells of a row's second, each with its total, and the other counters that only grow.
_STEPS = ("requests", "failures", "reconnects", "received_bytes")
_GROWING = ("opened", "late_sends", "requests_sent", *_STEPS)
_SERVER_GROWING = ("server_accepted_total", "server_requests_total", "server_sent_bytes_total")
_PHASES = ("ramp", "hold", "stop")
_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}


def hear(record: Record) -> Hearing:
    """Ask all of them."""
    hearing = Hearing()
    asked = (_rows, _totals, _phases, _workers, _hosts, _histogram, _workload, heard.agree,
             _kernel, _server, _logfile, _locust)  # fmt: skip
    for ask in asked:
        ask(record, hearing)
    return hearing


def _rows(record: Record, hearing: Hearing) -> None:
    """Each row continues the one before."""
    rows = record.rows
    stated = record.facts.get("rows", len(rows))
    hearing.that(len(rows) >= stated, f"rows: samples.csv has {len(rows):,}, run.json {stated:,}")
    for name in _STEPS:
        wrong, before = [], 0.0
        for row in rows:
            total, step = number(row, f"{name}_total"), number(row, name)
            if total is None or step is None:
                continue
            if total - before != step:
                wrong.append(
                    f"{_at(row)}: {name}_total grows by {told(total - before)}, {name} is {row[name]}"
                )
            before = total
        hearing.rows(wrong)
    for name in ("time_s", *(f"{name}_total" for name in _GROWING)):
        pairs = [(number(a, name), number(b, name), b) for a, b in itertools.pairwise(rows)]
        hearing.rows([
            f"{_at(row)}: {name} falls" for a, b, row in pairs if a is not None and b is not None and b < a
        ])  # fmt: skip
    hearing.that(_in_order(record), "samples.csv: phases not in order")
    hearing.rows([f"{_at(row)}: percentiles not in order" for row in rows if not _ascending(row)])
    started = record.facts["started_unix_s"]
    hearing.rows([
        f"{_at(row)}: unix_time_s tells another time"
        for row in rows
        if (wall := number(row, "unix_time_s")) is not None
        and abs(wall - started - (number(row, "time_s") or 0)) > WALL_CLOCK_S
    ])  # fmt: skip


def _in_order(record: Record) -> bool:
    """Ramp, hold, stop; and back to the ramp where the run was asked for something else."""
    changed_s = sorted(float(change["time_s"]) for change in record.facts.get("changes", ()))
    before = 0
    for row in record.rows:
        if row["phase"] not in _PHASES:
            return False
        order = _PHASES.index(row["phase"])
        if order < before:
            at_s = number(row, "time_s") or 0.0
            place = bisect.bisect_left(changed_s, at_s - CLOCK_S)
            if row["phase"] != "ramp" or place == len(changed_s) or changed_s[place] > at_s + CLOCK_S:
                return False
        before = order
    return True


def _totals(record: Record, hearing: Hearing) -> None:
    """The master's totals of the run and of the hold, against the rows."""
    facts, rows = record.facts, record.stated
    last, begin, hold = (rows[-1] if rows else None), record.before_hold(), record.hold()
    for name in _GROWING:
        column = f"{name}_total"
        hearing.equal(f"{name} in all", run=facts["totals"].get(name), samples=number(last, column))
        if hold and begin is not None:
            first, end = number(begin, column), number(hold[-1], column)
            grown = None if first is None or end is None else end - first
            hearing.equal(f"{name} in the hold", run=facts["hold"].get(name), samples=grown)
    peak = max(numbers(rows, "connections"), default=None)
    hearing.equal("peak connections", run=facts["peak_connections"], samples=peak)
    opened = facts["totals"].get("opened")
    hearing.that(
        opened is None or opened >= facts["peak_connections"],
        f"{facts['peak_connections']:,} connections at the peak, only {told(opened or 0)} were ever opened",
    )
    kinds = sum(facts["failures_by_kind"].values())
    hearing.equal("failures", totals=facts["totals"].get("failures", 0), kinds=kinds)
    if rows:
        wanted = max(numbers(rows[-1:], "connections_wanted"), default=None)
        hearing.equal("target connections", run=facts["target_connections"], samples=wanted)


def _phases(record: Record, hearing: Hearing) -> None:
    """Length of ramp and hold, and what is a minimum, a maximum or a sum over the hold."""
    facts, begin, hold = record.facts, record.before_hold(), record.hold()
    hearing.that(
        bool(hold) or not facts["hold_s"], f"samples.csv has no hold, run.json {facts['hold_s']:.0f} s of it"
    )
    if not hold or begin is None:
        return
    begun_s = number(begin, "time_s")
    ended_s = number(hold[-1], "time_s")
    hearing.equal("seconds of ramp", CLOCK_S, run=facts["ramp_s"], samples=begun_s)
    if begun_s is not None and ended_s is not None:
        hearing.equal("seconds of hold", CLOCK_S, run=facts["hold_s"], samples=ended_s - begun_s)
    counted_s = facts.get("hold_counted_s")
    first, last = number(begin, "counted_unix_s"), number(hold[-1], "counted_unix_s")
    if first is not None and last is not None:
        hearing.equal("seconds that the hold's counts are of", 0.01, run=counted_s, samples=last - first)
    if not (facts["workers"] and all(worker.get("lost") for worker in facts["workers"])):  # none counts on
        hearing.equal("seconds of hold and of its counts", SAMPLES_S, run=facts["hold_s"], workers=counted_s)
    least = min([*numbers([begin], "connections"), *numbers(hold, "connections_min")], default=None)
    hearing.equal("fewest connections in the hold", run=facts["min_connections_in_hold"], samples=least)
    burst = max(numbers(hold, "burst_10ms_max"), default=None)
    hearing.equal("burst_10ms_max in the hold", run=facts["burst_10ms_max"], samples=burst)
    for side in ("server", "client"):
        said, cpu_s, before_s = facts["hold_cpu_s"][side], 0.0, begun_s or 0.0
        for row in hold:
            now_s = number(row, "time_s") or before_s
            cpu_s += (number(row, f"{side}_cores") or 0.0) * (now_s - before_s)
            before_s = now_s
        if said is not None and numbers(hold, f"{side}_cores"):
            tolerance = CPU_S + CPU_SHARE * max(said, cpu_s)
            hearing.equal(f"CPU seconds of the {side} in the hold", tolerance, run=said, samples=cpu_s)


def _workers(record: Record, hearing: Hearing) -> None:
    workers, totals = record.facts["workers"], record.facts["totals"]
    for name in CUMULATIVE if workers else ():
        if name in totals and all(name in worker for worker in workers):
            sum_ = sum(worker[name] for worker in workers)
            hearing.equal(
                f"{name} in all", 0.01 if name.endswith("_s") else 0.0, run=totals[name], workers=sum_
            )
    began = [worker.get("connections_at_hold") for worker in workers]
    if any(began):
        hearing.equal(
            "connections when the hold began",
            samples=number(record.before_hold(), "connections"),
            workers=sum(connections or 0 for connections in began),
        )


def _hosts(record: Record, hearing: Hearing) -> None:
    """The hosts add up to the run, their workers to each of them, and each kernel saw its connections."""
    facts, hosts = record.facts, record.facts.get("hosts", [])
    for name in ("requests", "failures", "reconnects", "opened", "received_bytes") if hosts else ():
        sum_ = sum(host["totals"][name] for host in hosts)
        hearing.equal(f"{name} in all", run=facts["totals"].get(name), hosts=sum_)
        if facts["hold"]:
            sum_ = sum(host["hold"].get(name, 0) for host in hosts)
            hearing.equal(f"{name} in the hold", run=facts["hold"].get(name), hosts=sum_)
    alone = len({(host["kernel_id"], host["namespace_id"]) for host in hosts}) == len(hosts)
    requests: Counter[str | None] = Counter()
    for worker in facts["workers"]:
        requests[worker.get("host")] += worker["requests"]
    for host in hosts:
        of_host = requests[host["id"]]
        hearing.equal(f"requests of host {host['name']}", run=host["totals"]["requests"], workers=of_host)
        seen, needed = host["sockstat_tcp_inuse_peak"], math.floor(SOCKET_SHARE * host["connections_peak"])
        if alone and seen is not None:
            hearing.that(
                seen >= needed,
                f"host {host['name']}: its kernel saw {seen:,.0f} TCP sockets in use at most, its "
                f"{host['connections_peak']:,} connections need {needed:,}",
            )


def _histogram(record: Record, hearing: Hearing) -> None:
    """The hold's histogram: as many latencies as requests, and percentiles between those of its seconds."""
    if record.facts.get("salvaged"):
        hearing.absent.append("the histogram of the hold")
        return
    histogram, hold = record.latencies, record.hold()
    count = histogram.get_total_count()
    hearing.equal("requests in the hold", run=record.facts["hold"].get("requests"), histogram=count)
    if not count or not hold:
        return
    worst = max(numbers(hold, "latency_max_ms"), default=None)
    hearing.equal("longest latency in the hold, ms", 0.001, samples=worst, histogram=_ms(histogram, 100))
    for name, percent in _PERCENTILES.items():
        known = numbers(hold, f"latency_{name}_ms")
        if not known:
            continue
        # A second's percentile is a rank rounded to the nearest, so half a request per row is left open.
        low = percent - 100 * (len(known) / 2 + 1) / count
        high = percent + 100 * (len(known) / 2 + 1) / count
        agree = _ms(histogram, max(0.0, low)) <= max(known) and _ms(histogram, min(100.0, high)) >= min(known)
        value = _ms(histogram, percent)
        hearing.that(
            agree,
            f"latency {name}: the histogram says {value:g} ms, no second of the hold below {min(known):g} ms "
            f"or above {max(known):g} ms",
        )


def _workload(record: Record, hearing: Hearing) -> None:
    """Think times and lengths: a sum that fits their histogram, and a length for each good response."""
    for name, distribution in (("think times", record.thinks_s), ("lengths", record.lengths)):
        hearing.that(distribution.is_consistent, f"{name}: sum, least and greatest do not fit the histogram")
    hearing.that(record.open_s.is_consistent, "ages of open requests: their ends do not fit the histogram")
    if rows := record.hold():
        known = number(rows[-1], "requests_open")
        hearing.equal("requests open at the end of the hold", samples=known, run=record.open_s.count)
    if lengths := record.lengths.count:
        hold = record.facts["hold"]
        hearing.equal("good responses in the hold", run=hold["requests"] - hold["failures"], lengths=lengths)


class _Ended:
    """Connections of workers that had ended and still counted as open, until it was noticed.

    A worker tells once a second. When it is killed its connections are gone at once, and the rows until its
    silence is looked into (`fleet.SILENT_S`) still have them, as its last sample said.
    """

    def __init__(self, record: Record) -> None:
        self._started = record.facts["started_unix_s"]
        self._workers = [worker for worker in record.facts["workers"] if worker.get("lost_unix_s")]
        self._begins = _Steps((it["heard_unix_s"], it["connections"]) for it in self._workers)
        self._ends = _Steps((it["lost_unix_s"] + CLOCK_S, it["connections"]) for it in self._workers)
        self._asked: list[float] = []

    def still_counted(self, row: dict[str, str]) -> int:
        at = number(row, "unix_time_s") or 0.0
        self._asked.append(at)
        return self._begins.until(at) - self._ends.before(at)

    def told(self) -> list[str]:
        """For those that were asked for."""
        asked = sorted(self._asked)
        return [
            f"{worker['connections']:,} connections of worker {worker['worker']}, pid {worker['pid']}, "
            f"count as open from its last sample at {worker['heard_unix_s'] - self._started:.1f} s until its "
            f"end was noticed at {worker['lost_unix_s'] - self._started:.1f} s"
            for worker in self._workers
            if bisect.bisect_left(asked, worker["heard_unix_s"])
            < bisect.bisect_right(asked, worker["lost_unix_s"] + CLOCK_S)
        ]


class _Steps:
    """A sum that grows at times: how far it has come."""

    def __init__(self, steps: Iterable[tuple[float, int]]) -> None:
        ordered = sorted(steps)
        self._times = [at for at, _ in ordered]
        self._sums = [0, *itertools.accumulate(grown for _, grown in ordered)]

    def until(self, at: float) -> int:
        return self._sums[bisect.bisect_right(self._times, at)]

    def before(self, at: float) -> int:
        return self._sums[bisect.bisect_left(self._times, at)]


def _kernel(record: Record, hearing: Hearing) -> None:
    """Every connection that is counted as open is a socket of the kernel, two if the server is here too."""
    ended = _Ended(record)
    hold = record.hold()
    seen = [number(row, "sockstat_tcp_inuse") for row in hold]
    if None in seen:
        hearing.absent.append("/proc/net/sockstat")
    ends = 2 if record.facts["server_is_local"] else 1
    open_ = [number(row, "connections_min") or 0.0 for row in hold]
    wrong = []
    for index, inuse in enumerate(seen):
        # What closes between the clients' sample and the kernel's shows in the next row.
        least = max(0.0, min(open_[index : index + 2]) - ended.still_counted(hold[index]))
        needed = math.floor(ends * SOCKET_SHARE * least)
        if inuse is not None and inuse < needed:
            wrong.append(
                f"{_at(hold[index])}: the kernel saw {inuse:,.0f} TCP sockets in use, "
                f"{least:,.0f} connections need {needed:,}"
            )
    hearing.rows(wrong)
    hearing.explained.extend(ended.told())


def _server(record: Record, hearing: Hearing) -> None:
    """The server's own counters: connections and responses as the other side saw them."""
    facts, rows = record.facts, record.stated
    if not facts.get("server_metrics"):
        hearing.absent.append("the server's own counters")
        return
    if elsewhere := facts["totals"].get("elsewhere"):
        hearing.absent.append(
            f"the server's own counters, since {elsewhere:,.0f} requests went to other hosts"
        )
        return
    lost = facts["server_processes_lost"] + sum(bool(worker["lost"]) for worker in facts["workers"])
    untold = UNTOLD_S * lost * max(numbers(rows, "requests"), default=0.0)
    for name in _SERVER_GROWING if not lost else ():
        pairs = [(number(a, name), number(b, name), b) for a, b in itertools.pairwise(rows)]
        hearing.rows([
            f"{_at(row)}: {name} falls" for a, b, row in pairs if a is not None and b is not None and b < a
        ])  # fmt: skip
    _server_in_hold(record, hearing, untold)
    if not rows or not facts.get("ended", True):
        return
    last, totals = rows[-1], facts["totals"]
    answered, sent_bytes = number(last, "server_requests_total"), number(last, "server_sent_bytes_total")
    if answered is None or sent_bytes is None:
        hearing.absent.append("the server's own counters at the end")
        return
    good, sent = totals["requests"] - totals["failures"], totals["requests_sent"]
    hearing.that(
        good - untold <= answered,
        f"requests in all: the server answered {told(answered)}, the clients got {told(good)} answers",
    )
    if facts.get("workload", "keepalive") != "keepalive":
        return  # what streams were ended in the middle of, at the end, was sent and not received
    if answered > sent + untold:
        hearing.explained.append(
            f"the server answered {told(answered - sent)} more requests than the clients sent: somebody "
            "else asks it too (a health check, a browser, another test)"
        )
    if good == sent == answered and facts["host"].startswith("http://"):
        hearing.equal("received_bytes in all", run=totals["received_bytes"], server=sent_bytes)


def _server_in_hold(record: Record, hearing: Hearing, untold: float) -> None:
    """Second by second, as far as two clocks of a second each allow."""
    ended, rows = _Ended(record), record.stated
    written = [number(row, "unix_time_s") or 0.0 for row in rows]
    counted = [number(row, "counted_unix_s") or 0.0 for row in rows]
    leasts, mosts = (
        [number(row, name) or 0.0 for row in rows] for name in ("connections_min", "connections")
    )
    wrong_connections, wrong_requests, others = [], [], 0.0
    for row in record.hold():
        at, there = number(row, "server_counted_unix_s"), number(row, "server_connections")
        answered = number(row, "server_requests_total")
        if at is None or there is None or answered is None:
            continue
        answered += number(row, "server_pending") or 0.0  # a stream has begun, and counts when it has ended
        # The rows in which the clients' counts are older and newer than the server's, for certain.
        behind_s = SERVER_BEHIND_S + (number(row, "server_loop_lag_max_ms") or 0.0) / 1000
        older = max(0, bisect.bisect_right(written, at - behind_s) - 1)
        newer = min(bisect.bisect_left(counted, at + SAMPLES_SPREAD_S), len(rows) - 1)
        between = slice(older, min(newer + 1, older + MOST_BETWEEN))
        least = min(leasts[between], default=0.0) - ended.still_counted(row)
        most = max(mosts[between], default=0.0)
        others = max(others, there - most / SOCKET_SHARE)
        if math.floor(SOCKET_SHARE * least) > there:
            wrong_connections.append(
                f"{_at(row)}: the server counts {there:,.0f} connections, "
                f"the clients {least:,.0f}-{most:,.0f}"
            )
        good = _cell(rows[older], "requests_total") - _cell(rows[older], "failures_total")
        if good - untold > answered:
            wrong_requests.append(
                f"{_at(row)}: the server had answered {answered:,.0f} requests, the clients had {good:,.0f} "
                "answers before"
            )
    hearing.rows(wrong_connections)
    hearing.rows(wrong_requests)
    if others > VISITORS:
        hearing.explained.append(f"the server had up to {others:,.0f} connections that are not of this run")
    hearing.explained.extend(text for text in ended.told() if text not in hearing.explained)


def _cell(row: dict[str, str], name: str) -> float:
    return number(row, name) or 0.0


def _logfile(record: Record, hearing: Hearing) -> None:
    """A line per row; a kill or a full disk may have come between the two."""
    try:
        lines = files.read_text(record.folder / "logfile").splitlines()
    except OSError:
        hearing.absent.append("logfile")
        return
    rows = record.rows
    hearing.that(
        len(rows) <= len(lines) <= len(rows) + (not record.facts.get("ended", True)),
        f"rows: samples.csv has {len(rows):,}, logfile {len(lines):,}",
    )
    hearing.rows([
        f"{_at(row)}: logfile line {index} says otherwise"
        for index, (row, line) in enumerate(zip(rows, lines, strict=False), 1)
        if _log_line(row) != line
    ])  # fmt: skip


def _log_line(row: dict[str, str]) -> str | None:
    """The line that belongs to a row; None if the row is damaged."""
    whole = ("connections", "connections_wanted", "requests", "failures", "reconnects", "requests_total",
             "received_bytes_total")  # fmt: skip
    try:
        cells: dict[str, Any] = {name: int(float(row[name])) for name in whole}
        cells |= {name: float(text) for name, text in row.items() if name.startswith("latency_") and text}
        cells |= {name: int(row[name]) for name in ("streams", "events_total") if row.get(name)}
        return console.line(cells | {"time_s": row["time_s"], "phase": row["phase"]})
    except (KeyError, ValueError):
        return None


def _locust(record: Record, hearing: Hearing) -> None:
    """Locust's own statistics, which reach its master on a way of their own."""
    counts = locust_csv.aggregated(record.folder, "Request Count", "Failure Count")
    if None in counts or not record.facts.get("ended", True):
        hearing.absent.append("locust_stats.csv")
        return
    lost = any(worker.get("lost") for worker in record.facts["workers"])
    missing = LOCUST_REPORT_S * max(numbers(record.rows, "requests"), default=0.0) if lost else 0.0
    totals = record.facts["totals"]
    for name, others, count in zip(
        ("requests", "failures"), ("others", "others_failed"), counts, strict=True
    ):
        # Locust also counts what other users and the tasks themselves tell it of.
        said = totals.get(name, 0) + totals.get(others, 0)
        hearing.equal(f"{name} in all", missing, run=said, locust=count)
    if totals.get("others"):
        hearing.explained.append(
            f"{totals['others']:,.0f} requests in Locust's statistics are not those of KeepAliveUsers"
        )


def _ascending(row: dict[str, str]) -> bool:
    known = [
        value for name in (*_PERCENTILES, "max") if (value := number(row, f"latency_{name}_ms")) is not None
    ]
    return known == sorted(known)


def _ms(histogram: Any, percent: float) -> float:
    return float(round(histogram.get_value_at_percentile(percent) / 1000, 3))


def _at(row: dict[str, str]) -> str:
    return f"row at {row.get('time_s')} s"
