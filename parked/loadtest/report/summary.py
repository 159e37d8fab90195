"""A run's figures and its verdict: the content of `summary.json`, from its record and nothing else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from parked.loadtest.report import heard, locust_csv, witnesses
from parked.loadtest.report.goals import Goal
from parked.loadtest.report.record import numbers
from parked.loadtest.terms.distribution import bound
from parked.loadtest.terms.units import MIB, digits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parked.loadtest.report.record import Record
    from parked.loadtest.terms.distribution import Distribution

#: The share of the offered request rate that a passing run reaches, at least. Offered are (connections / mean
#: think time); a rate below means that the machine did not keep up.
RATE_SHARE = 0.95
#: ... and by how many standard deviations fewer requests may come, if that is more: users that think for a
#: random time send a random number, whose deviation is at most that of a Poisson process, the square root. Of
#: 100 connections that think for 10 to 90 s, 20 requests are due in 10 s; one run in three has fewer than 19.
CHANCE = 3.0
#: Share by which a worker may hold more or fewer connections than the mean at the end of the ramp, beside the
#: one that does not divide. Locust gives each the same; more means that it took one for lost and gave its
#: users to others, which then run out of descriptors or of CPU before the rest. That is another run.
EVEN_SHARE = 0.05
#: Seconds by which a think time may be off in runs that do not say it: slots were 30 ms apart at most.
THINK_GRAIN_S = 0.03
#: When a request that is unanswered at the end of the hold fails the run (:func:`_open_at_end`): in seconds,
#: and in times of the run's own 99th percentile. The most is what a KeepAliveUser waits for an answer.
OPEN_LEAST_S, OPEN_P99S, OPEN_MOST_S = 5.0, 10.0, 60.0
#: What users do unless a run says otherwise: a request, an answer, a think time.
KEEPALIVE = "keepalive"
#: Percentiles of the hold's latency, by their names in summary.json.
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}


def summarise(record: Record) -> dict[str, Any]:
    """The content of summary.json."""
    facts, rows, latencies = record.facts, record.rows, record.latencies_and_ages
    # Rates are over the time in which their counts were made; runs of before that was kept go by the rows.
    counted_s = facts.get("hold_counted_s") or facts["hold_s"]
    hold_s, totals, hold = facts["hold_s"], facts["totals"], facts["hold"]
    in_hold = record.hold()
    known = latencies.get_total_count() > 0
    mean_think_s = sum(facts["think_s"] or ()) / 2
    offered_rps = facts["target_connections"] / mean_think_s if mean_think_s else None
    hearing = witnesses.hear(record)
    summary: dict[str, Any] = {
        "verdict": "",
        "reasons": [],
        "notes": facts["notes"],
        "remarks": [
            *_ended_themselves(facts),
            *_few_due(offered_rps, hold_s),
            *hearing.explained,
        ],
        "target_connections": facts["target_connections"],
        "peak_connections": int(facts["peak_connections"]),
        "min_connections_in_hold": facts["min_connections_in_hold"] or 0,
        "ramp_seconds": round(facts["ramp_s"], 1),
        "hold_seconds": round(hold_s, 1),
        "hold_asked_seconds": facts["hold_asked_s"],
        "requests": totals.get("requests", 0),
        "failures": totals.get("failures", 0),
        "failures_by_kind": facts["failures_by_kind"],
        "failures_by_text": locust_csv.failures(record.folder),
        "requests_by_name": locust_csv.requests(record.folder),
        "task_exceptions": locust_csv.exceptions(record.folder),
        "reconnects": totals.get("reconnects", 0),
        "connections_closed_by_server": totals.get("closed_by_peer", 0),
        "late_sends": totals.get("late_sends", 0),
        "send_delay_mean_ms": _mean_delay_ms(hold),
        "offered_rps": _rounded(offered_rps, 2),
        "hold_requests": hold.get("requests", 0),
        "hold_rps": round(hold["requests"] / counted_s, 2) if hold_s else 0.0,
        "hold_mib_per_second": round(hold["received_bytes"] / MIB / counted_s, 2) if hold_s else 0.0,
        "latency_ms": {
            name: round(latencies.get_value_at_percentile(percent) / 1000, 3) if known else None
            for name, percent in PERCENTILES.items()
        },
        "open_at_end": _open_at_end(record),
        "burst_10ms_max": facts["burst_10ms_max"],
        "cores_in_hold": _cores(facts["hold_cpu_s"], hold_s, in_hold),
        "server": {
            "software": facts["server_software"] or None,
            "processes": _peak(rows, "server_processes"),
            "pss_peak_bytes": _peak(rows, "server_pss_bytes"),
            "cpu_seconds_in_hold": _rounded(facts["hold_cpu_s"]["server"], 2),
            "loop_lag_max_ms": _most(in_hold, "server_loop_lag_max_ms"),
            "gc_pause_max_ms": _most(in_hold, "server_gc_pause_max_ms"),
            "gc_seconds": _rounded(facts.get("server_gc_pause_s")),
            "own_counts": _own_counts(record),
        },
        "client": {
            "processes": _peak(rows, "client_processes"),
            "pss_peak_bytes": _peak(rows, "client_pss_bytes"),
            "cpu_seconds_in_hold": _rounded(facts["hold_cpu_s"]["client"], 2),
            "loop_lag_max_ms": _most(in_hold, "loop_lag_max_ms"),
            "gc_pause_max_ms": _most(in_hold, "gc_pause_max_ms"),
            "gc_seconds": _rounded(totals.get("gc_pause_s")),
            "connections_a_worker": spread_of(facts),
        },
        "kernel": {
            "slab_peak_bytes": _peak(rows, "slab_bytes"),
            "socket_peak_bytes": _peak(rows, "socket_bytes"),
            "socket_bytes_from": facts.get("socket_bytes_from"),
            "sockstat_tcp_inuse_peak": _peak(rows, "sockstat_tcp_inuse"),
            "listen_overflows": _peak(rows, "listen_overflows"),
            "listen_drops": _peak(rows, "listen_drops"),
            "retrans_segs": _peak(rows, "retrans_segs"),
        },
        "memory_available_least_bytes": min(numbers(rows, "memory_available_bytes"), default=None),
        "workload": {
            "think_s": facts["think_s"],
            "length_characters": facts["length"],
            "executed": {
                "think_s": _executed(
                    record.thinks_s, facts["think_s"], facts.get("think_grain_s", THINK_GRAIN_S)
                ),
                "length_bytes": _executed(record.lengths, facts["length"], 1),
            },
            "host": facts["host"],
        },
        "started_unix_s": round(facts["started_unix_s"], 1),
        "machine": facts["machine"],
        "versions": facts["versions"],
        "command": facts["command"],
    }
    if facts.get("hosts"):
        summary["hosts"] = [_host(host, counted_s if hold_s else 0.0) for host in facts["hosts"]]
    if (kind := facts.get("workload", KEEPALIVE)) != KEEPALIVE:
        summary["workload"]["kind"] = kind
    if (told := heard.summarise(record, counted_s if hold_s else 0.0)) is not None:
        summary["heard"] = told
        summary["remarks"] = [*summary["remarks"], *heard.remarks(record, summary)]
    goals = [Goal.parse(text) for text in facts.get("fail_if", ())]
    summary["fail_if"] = [goal.text for goal in goals]
    missed = [why for goal in goals if (why := goal.missed(summary))]
    summary["reasons"] = [*reasons(summary, hearing.disagreements), *missed]
    summary["verdict"] = "fail" if summary["reasons"] else "pass"
    return summary


def _ended_themselves(facts: dict[str, Any]) -> list[str]:
    ended, left = facts.get("users_ended_themselves") or 0, facts["target_connections"]
    asked = f"of {ended + left:,} users that were asked for"
    return [f"{ended:,} {asked} have ended themselves: the other {left:,} are judged"] if ended > 0 else []


def _host(host: dict[str, Any], hold_s: float) -> dict[str, Any]:
    """One of several hosts, as it stands in summary.json."""
    totals, hold = host["totals"], host["hold"]
    offsets_ms = host["clock_offset_ms"]
    return {
        "name": host["name"],
        "workers": host["workers"],
        "peak_connections": host["connections_peak"],
        "min_connections_in_hold": host["connections_min_in_hold"] or 0,
        "requests": totals["requests"],
        "failures": totals["failures"],
        "reconnects": totals["reconnects"],
        "hold_requests": hold.get("requests", 0),
        "hold_rps": round(hold.get("requests", 0) / hold_s, 2) if hold_s else 0.0,
        "client_cpu_seconds_in_hold": hold.get("client_cpu_seconds", 0.0),
        "client_pss_peak_bytes": host["client_pss_peak_bytes"],
        "sockstat_tcp_inuse_peak": host["sockstat_tcp_inuse_peak"],
        "retrans_segs": host["retrans_segs"],
        # Its distance from the master's clock: the largest of the run, which holds for all the run.
        "clock_offset_ms": max(offsets_ms, key=abs) if offsets_ms else None,
        "clock_error_ms": host["clock_error_ms"],
        "lost_at_s": host["lost_at_s"],
        "connections_when_lost": host["connections_when_lost"],
    }


def reasons(summary: dict[str, Any], disagreements: Sequence[str]) -> list[str]:
    """Why the run has failed; empty if it has passed. `disagreements`: of `report.witnesses`."""
    found = []
    target = summary["target_connections"]
    if not summary["hold_seconds"]:
        peak = summary["peak_connections"]
        if peak < target:
            found.append(f"only {peak:,} of {target:,} connections were established")
        elif not target:
            found.append("no user was left before there was a hold")
        else:
            found.append(f"ended as soon as {target:,} connections were established, before there was a hold")
    else:
        asked_s = summary["hold_asked_seconds"]
        if asked_s and summary["hold_seconds"] < asked_s - 1:
            found.append(f"held for {summary['hold_seconds']:.0f} s of {asked_s} s")
        if summary["min_connections_in_hold"] < target:
            found.append(
                f"connections fell to {summary['min_connections_in_hold']:,} of {target:,} in the hold"
            )
        if summary["offered_rps"] and summary["hold_rps"] < least_rps(
            summary["offered_rps"], summary["hold_seconds"]
        ):
            reached, offered = digits(summary["hold_rps"]), digits(summary["offered_rps"])
            found.append(f"{reached} requests/s reached of {offered} offered")
        if (spread := summary["client"]["connections_a_worker"]) and not _is_even(spread):
            found.append(
                f"connections are unevenly spread: {spread['least']:,} to {spread['most']:,} a worker, "
                f"{spread['mean']:,.0f} on average"
            )
    if (open_ := summary.get("open_at_end")) and open_["too_old"]:
        found.append(
            f"{open_['too_old']:,} requests were unanswered at the end of the hold for longer than "
            f"{open_['bound_s']:g} s, the oldest for {open_['oldest_s']:.1f} s"
        )
    if summary["failures"]:
        kinds = ", ".join(f"{count:,} x {kind}" for kind, count in summary["failures_by_kind"].items())
        found.append(f"{summary['failures']:,} failed requests ({kinds})")
    found.extend(_said(summary))
    found.extend(heard.reasons(summary))
    if summary["reconnects"]:
        found.append(f"{summary['reconnects']:,} reconnects")
    if summary["connections_closed_by_server"]:
        found.append(f"{summary['connections_closed_by_server']:,} connections closed by the server")
    found.extend(summary["notes"])
    found.extend(f"witnesses disagree: {text}" for text in disagreements)
    return found


def least_rps(offered_rps: float, hold_s: float) -> float:
    """The request rate that a hold of *hold_s* seconds reaches at least if all goes well."""
    due = offered_rps * hold_s
    return (due - max((1 - RATE_SHARE) * due, CHANCE * math.sqrt(due))) / hold_s


def _few_due(offered_rps: float | None, hold_s: float) -> list[str]:
    """What a reader has to know of a rate that chance has had a part in."""
    due = (offered_rps or 0.0) * hold_s
    chance = CHANCE / math.sqrt(due) if due else 0.0
    if chance <= 1 - RATE_SHARE:
        return []
    return [
        f"about {due:,.0f} requests were due in the hold: chance alone may make it {min(chance, 1):.0%} fewer"
    ]


def _said(summary: dict[str, Any]) -> list[str]:
    """What failures and exceptions of tasks say, the most frequent."""
    found = []
    if failed := summary.get("failures_by_text"):
        most = failed[0]
        found.append(f"{most['count']:,} times {most['method']} {most['name']}: {most['text']}")
    if raised := summary.get("task_exceptions"):
        count = sum(exception["count"] for exception in raised)
        found.append(f"{count:,} exceptions in tasks, {raised[0]['count']:,} times {raised[0]['text']}")
    return found


def _is_even(spread: dict[str, float]) -> bool:
    allowed = EVEN_SHARE * spread["mean"] + 1
    return spread["most"] - spread["mean"] <= allowed >= spread["mean"] - spread["least"]


def spread_of(facts: dict[str, Any]) -> dict[str, float] | None:
    """Connections of a worker when the hold began; None where that is not known, or not to be even: Locust
    gives each worker as many users, of whatever class."""
    if facts.get("other_classes"):
        return None
    held = [
        known
        for worker in facts.get("workers", ())
        if (known := worker.get("connections_at_hold")) is not None
    ]
    return {"least": min(held), "mean": round(sum(held) / len(held), 1), "most": max(held)} if held else None


def _open_at_end(record: Record) -> dict[str, Any] | None:
    """Requests under way when the hold ended: how many, the oldest, and those that are too old.

    Too old is what has waited for OPEN_P99S times as long as 99 % of the answered ones took, but no request
    is so before OPEN_LEAST_S, and each is after OPEN_MOST_S.
    """
    if record.facts.get("hold_open_s") is None:  # a run from before it was recorded
        return None
    ages, answered = record.open_s, record.latencies
    p99_s = answered.get_value_at_percentile(99) / 1e6 if answered.get_total_count() else 0.0
    bound_s = min(max(OPEN_LEAST_S, OPEN_P99S * p99_s), OPEN_MOST_S)
    return {
        "requests": ages.count,
        "oldest_s": round(ages.most, 3) if ages.count else None,
        "bound_s": round(bound_s, 3),
        "too_old": sum(number for bucket, number in ages.buckets.items() if bound(bucket) > bound_s),
    }


def _own_counts(record: Record) -> dict[str, int] | None:
    """What the server counted itself from the run's begin to its end; None if it does not tell."""
    named = {"accepted": "server_accepted_total", "requests": "server_requests_total"}
    named["sent_bytes"] = "server_sent_bytes_total"
    known = {name: _peak(record.stated, column) for name, column in named.items()}
    counts = {name: value for name, value in known.items() if value is not None}
    return counts if len(counts) == len(named) else None


def _executed(
    drawn: Distribution, asked: Sequence[float] | None, grain: float
) -> dict[str, float | None] | None:
    """What was drawn in the hold; `distance` is the greatest difference in share to an even distribution
    over what was asked for, None if that is not known."""
    if not drawn.count:
        return None
    return {
        "count": drawn.count,
        "min": round(drawn.least, 3),
        "mean": round(drawn.mean, 3),
        "p50": round(drawn.percentile(50), 3),
        "max": round(drawn.most, 3),
        "distance": round(drawn.distance(asked[0], asked[1], grain), 4) if asked else None,
    }


def _mean_delay_ms(hold: dict[str, float]) -> float | None:
    delay_s, requests = hold.get("send_delay_s"), hold.get("requests")
    return None if delay_s is None or not requests else round(1000 * delay_s / requests, 3)


def _cores(
    cpu_s: dict[str, float | None], hold_s: float, rows: list[dict[str, str]]
) -> dict[str, Any] | None:
    """Busy cores in the hold, on average; None without a hold. `other`: programs that are of neither side."""
    if not hold_s:
        return None
    cores = {side: None if used is None else used / hold_s for side, used in cpu_s.items()}
    for name in ("kernel", "busy"):
        known = numbers(rows, f"{name}_cores")
        cores[name] = sum(known) / len(known) if known else None
    busy = cores["busy"]
    parts = [cores[name] or 0.0 for name in ("server", "client", "kernel")]
    cores["other"] = None if busy is None else max(0.0, busy - sum(parts))
    return {name: None if value is None else round(value, 3) for name, value in cores.items()}


def _most(rows: list[dict[str, str]], column: str) -> float | None:
    return max(numbers(rows, column), default=None)


def _rounded(seconds: float | None, digits: int = 3) -> float | None:
    return None if seconds is None else round(seconds, digits)


def _peak(rows: list[dict[str, str]], column: str) -> int | None:
    return round(max(known)) if (known := numbers(rows, column)) else None
