"""What limits a run's figures, in words that come from its data and nothing else.

Each sentence names the figure it rests on, so that a reader can disagree.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from parked.loadtest.report.record import numbers
from parked.loadtest.terms.units import some

if TYPE_CHECKING:
    from parked.loadtest.report.record import Record

#: Share of the machine's cores above which the CPU counts as saturated: queues grow long before 100 %.
SATURATED = 0.9
#: Share of one core that a single-threaded worker can't go much beyond.
WORKER_FULL = 0.85
#: Cores that other programs may use before they count as a disturbance.
OTHER_CORES = 0.1
#: Locust workers per core from which there are too many.
CROWDED = 3
#: Event-loop lag that a latency in milliseconds can't be told from.
LAG_MS = 20.0
#: Share of the machine's memory that should stay available.
MEMORY_LEFT = 0.1
#: Kolmogorov's statistic that chance exceeds once in a hundred times, for many values.
KOLMOGOROV = 1.63
#: Requests in 10 ms, against the mean, from which a burst is more than chance would bring.
BURST = 4.0


def sentences(record: Record, summary: dict[str, Any]) -> list[str]:
    """In order of weight. Never empty."""
    hold = record.hold()
    if not hold:
        return ["There was no hold, so there are no figures to limit; the reasons above say what stopped it."]
    return [
        *_cpu(record, summary),
        *_descriptors(summary),
        *_client(record, hold, summary),
        *_server(summary),
        *_workload(summary),
        *_rate(summary),
        *_kernel(summary),
        *_memory(record, summary),
        *_remarks(summary),
    ]


def _of_all(record: Record, summary: dict[str, Any], name: str) -> Any:
    """A figure of the machine; of several hosts their sum, in which those on one kernel count once."""
    machines = {host["kernel_id"]: host[name] for host in record.facts.get("hosts", ())}
    return sum(machines.values()) if machines else summary["machine"].get(name)


def _cpu(record: Record, summary: dict[str, Any]) -> list[str]:
    used = summary["cores_in_hold"] or {}
    cores, busy = _of_all(record, summary, "cpu_count"), used.get("busy")
    if not cores or busy is None:
        return ["CPU was not measured."]
    parts = {name: value for name in ("server", "client", "kernel") if (value := used[name]) is not None}
    share = min(1.0, busy / cores)
    split = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    other = used["other"]
    if share >= SATURATED:
        users = {f"the {name}": value for name, value in parts.items()} | {"other programs": other}
        most = max(users, key=lambda name: users[name])
        found = [
            f"The CPU was saturated: {busy:.2f} of {cores} cores busy on average in the hold ({split}). "
            f"Latency includes waiting for a core, and {most} took most of them."
        ]
    else:
        found = [
            f"The CPU was not the limit on average: {busy:.2f} of {cores} cores busy in the hold ({split}), "
            f"{1 - share:.0%} idle."
        ]
    if other > OTHER_CORES:
        found.append(f"Other programs used {other:.2f} cores meanwhile, which adds to the latency.")
    return found


def _descriptors(summary: dict[str, Any]) -> list[str]:
    """Whether the limit of descriptors made more processes of it than the cores ask for."""
    machine, workers = summary["machine"], (summary["client"]["processes"] or 1) - 1
    nofile, cores = machine.get("nofile_hard"), machine.get("cpu_count")
    if not (nofile and cores) or summary.get("hosts") or workers <= CROWDED * cores:
        return []
    if summary["target_connections"] < workers * nofile / 2:
        return []  # somebody asked for that many
    servers = f" and {summary['server']['processes']} server" if summary["server"]["processes"] else ""
    return [
        f"The limit of {nofile:,} descriptors per process made it {workers + 1} client{servers} processes on "
        f"{cores} cores. Each is woken for little and finds its caches cold: with a higher one (ulimit -Hn) "
        "there are fewer of them, and a request takes less CPU and less time."
    ]


def _client(record: Record, hold: list[dict[str, str]], summary: dict[str, Any]) -> list[str]:
    found = []
    late, requests = record.facts["hold"].get("late_sends", 0), summary["hold_requests"]
    if late:
        found.append(
            f"The client was slow: {late:,} of {requests:,} requests of the hold "
            f"({late / max(requests, 1):.2%}) left more than 100 ms after they were due. "
            "Their wait is in the latency."
        )
    else:
        found.append("The client kept up: no request of the hold left more than 100 ms after it was due.")
    lag_ms, p99_ms = max(numbers(hold, "loop_lag_max_ms"), default=0.0), summary["latency_ms"]["p99"]
    if lag_ms > LAG_MS:
        found.append(
            f"A client worker's event loop lagged by up to {lag_ms:,.0f} ms in the hold (p99 of the latency "
            f"is {p99_ms or 0:,.1f} ms): the longest latencies may be the client's."
        )
    run_s = summary["ramp_seconds"] + summary["hold_seconds"]
    full = [
        worker
        for worker in record.facts["workers"]
        if run_s and worker.get("cpu_s", 0.0) / run_s > WORKER_FULL
    ]
    if full:
        found.append(f"{len(full)} Locust workers used a core each almost alone: more workers may help.")
    per_10ms, burst = summary["hold_rps"] / 100, summary["burst_10ms_max"]
    if per_10ms >= 1 and burst > BURST * per_10ms + BURST * math.sqrt(per_10ms):
        found.append(
            f"Requests came in bursts: {burst:,} within 10 ms at most, where {per_10ms:,.0f} is the mean."
        )
    return found


def _server(summary: dict[str, Any]) -> list[str]:
    """What the server's processes say of themselves."""
    server, p99_ms = summary["server"], summary["latency_ms"]["p99"] or 0.0
    lag_ms, pause_ms = server.get("loop_lag_max_ms"), server.get("gc_pause_max_ms") or 0.0
    if lag_ms is None or lag_ms <= LAG_MS:
        return []
    text = f"A server worker's event loop lagged by up to {lag_ms:,.0f} ms in the hold"
    cause = f", its longest garbage collection took {pause_ms:,.0f} ms" if pause_ms > lag_ms / 2 else ""
    return [f"{text}{cause} (p99 of the latency is {p99_ms:,.1f} ms)."]


def _workload(summary: dict[str, Any]) -> list[str]:
    """Whether what was drawn is what was asked for, as far as chance lets one say."""
    found = []
    for name, text in (("think_s", "think times"), ("length_bytes", "lengths of bodies")):
        drawn = (summary["workload"].get("executed") or {}).get(name)
        asked = summary["workload"]["think_s" if name == "think_s" else "length_characters"]
        if (
            drawn
            and asked
            and any(asked)
            and drawn["distance"] > (chance := KOLMOGOROV / math.sqrt(drawn["count"]))
        ):
            found.append(
                f"The {text} were not drawn evenly from {asked[0]:g} to {asked[1]:g}: their distribution "
                f"is off by up to {drawn['distance']:.1%}, where chance alone makes {chance:.1%} once in a "
                "hundred runs."
            )
    return found


def _rate(summary: dict[str, Any]) -> list[str]:
    offered, reached, requests = summary["offered_rps"], summary["hold_rps"], summary["hold_requests"]
    if not offered or not requests or summary["failures"] or summary["reconnects"]:
        return []  # what went wrong is among the reasons of the verdict
    chance = 2 / math.sqrt(requests)
    share = reached / offered
    if share < 1 - max(chance, 0.01):
        return [
            f"Of the offered {offered:,.0f} requests/s {share:.1%} were reached: a connection thinks only "
            "after its response, so slow responses lower the rate."
        ]
    return [
        f"The rate was limited by the think time alone: {share:.1%} of the offered {offered:,.0f} requests/s "
        f"(chance alone moves it by {chance:.1%}). It says nothing about how many more the "
        "server could answer."
    ]


def _kernel(summary: dict[str, Any]) -> list[str]:
    kernel = summary["kernel"]
    names = {
        "listen_overflows": "listen-queue overflows",
        "listen_drops": "dropped SYNs",
        "retrans_segs": "retransmits",
    }
    seen = [some(kernel[name], text) for name, text in names.items() if kernel[name]]
    return [f"The kernel counted {', '.join(seen)} on the whole machine during the run."] if seen else []


def _memory(record: Record, summary: dict[str, Any]) -> list[str]:
    total, least = _of_all(record, summary, "memory_total_bytes"), summary["memory_available_least_bytes"]
    if total and least is not None and least < MEMORY_LEFT * total:
        return [f"Memory was short: {least / total:.0%} of the machine's was left at the least."]
    return []


def _remarks(summary: dict[str, Any]) -> list[str]:
    """Differences between the witnesses that have a cause."""
    return [f"{text[:1].upper()}{text[1:]}." for text in summary.get("remarks", ())]
