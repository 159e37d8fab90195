"""From a run's folder to its verdict: `summary.json`, the page `index.html` and the plots.

    python -m parked.loadtest.report.report results/20261123T010000Z-20000

Reads what :mod:`parked.loadtest.master.run` wrote, `run.json` and `samples.csv`, and nothing else, so it
can be made again at any time, also for a run whose master was killed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parked.loadtest.report import witnesses
from parked.loadtest.report.record import NoRun, Record, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parked.loadtest.terms.distribution import Distribution

#: The share of the offered request rate that a passing run reaches, at least. Offered are (connections / mean
#: think time); a rate below means that the machine did not keep up.
RATE_SHARE = 0.95
#: Share by which a worker may hold more or fewer connections than the mean at the end of the ramp, beside the
#: one that does not divide. Locust gives each the same; more means that it took one for lost and gave its
#: users to others, which then run out of descriptors or of CPU before the rest. That is another run.
EVEN_SHARE = 0.05
#: Seconds by which a think time may be off: it ends in a slot of the think timer (`think.STRIDE_MOST`).
THINK_GRAIN_S = 0.03
#: Percentiles of the hold's latency, by their names in summary.json.
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
#: What a run says that could not be plotted, as any can be later.
PLOTS_SKIPPED = "skipped; pip install 'parked[plots]', then python -m parked.loadtest.report.report {folder}"

MIB = 1024 * 1024


def summarise(record: Record) -> dict[str, Any]:
    """The content of summary.json."""
    facts, rows, latencies = record.facts, record.rows, record.latencies
    # Rates are over the time in which their counts were made; runs of before that was kept go by the rows.
    counted_s = facts.get("hold_counted_s") or facts["hold_s"]
    hold_s, totals, hold = facts["hold_s"], facts["totals"], facts["hold"]
    in_hold = record.hold()
    known = latencies.get_total_count() > 0
    mean_think_s = sum(facts["think_s"]) / 2
    summary: dict[str, Any] = {
        "verdict": "",
        "reasons": [],
        "notes": facts["notes"],
        "target_connections": facts["target_connections"],
        "peak_connections": int(facts["peak_connections"]),
        "min_connections_in_hold": facts["min_connections_in_hold"] or 0,
        "ramp_seconds": round(facts["ramp_s"], 1),
        "hold_seconds": round(hold_s, 1),
        "hold_asked_seconds": facts["hold_asked_s"],
        "requests": totals.get("requests", 0),
        "failures": totals.get("failures", 0),
        "failures_by_kind": facts["failures_by_kind"],
        "reconnects": totals.get("reconnects", 0),
        "connections_closed_by_server": totals.get("closed_by_peer", 0),
        "late_sends": totals.get("late_sends", 0),
        "send_delay_mean_ms": _mean_delay_ms(hold),
        "offered_rps": round(facts["target_connections"] / mean_think_s, 2) if mean_think_s else None,
        "hold_requests": hold.get("requests", 0),
        "hold_rps": round(hold["requests"] / counted_s, 2) if hold_s else 0.0,
        "hold_mib_per_second": round(hold["received_bytes"] / MIB / counted_s, 2) if hold_s else 0.0,
        "latency_ms": {
            name: round(latencies.get_value_at_percentile(percent) / 1000, 3) if known else None
            for name, percent in PERCENTILES.items()
        },
        "burst_10ms_max": facts["burst_10ms_max"],
        "server": {
            "software": facts["server_software"] or None,
            "processes": _peak(rows, "server_processes"),
            "pss_peak_bytes": _peak(rows, "server_pss_bytes"),
            "cpu_seconds_in_hold": round(facts["hold_cpu_s"]["server"], 2),
            "loop_lag_max_ms": _most(in_hold, "server_loop_lag_max_ms"),
            "gc_pause_max_ms": _most(in_hold, "server_gc_pause_max_ms"),
            "gc_seconds": _rounded(facts.get("server_gc_pause_s")),
            "own_counts": _own_counts(record),
        },
        "client": {
            "processes": _peak(rows, "client_processes"),
            "pss_peak_bytes": _peak(rows, "client_pss_bytes"),
            "cpu_seconds_in_hold": round(facts["hold_cpu_s"]["client"], 2),
            "loop_lag_max_ms": _most(in_hold, "loop_lag_max_ms"),
            "gc_pause_max_ms": _most(in_hold, "gc_pause_max_ms"),
            "gc_seconds": _rounded(totals.get("gc_pause_s")),
            "connections_a_worker": spread_of(facts["workers"]),
        },
        "kernel": {
            "slab_peak_bytes": _peak(rows, "slab_bytes"),
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
                "think_s": _executed(record.thinks_s, facts["think_s"], THINK_GRAIN_S),
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
    summary["reasons"] = reasons(summary, witnesses.hear(record).disagreements)
    summary["verdict"] = "fail" if summary["reasons"] else "pass"
    return summary


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
        found.append(f"only {summary['peak_connections']:,} of {target:,} connections were established")
    else:
        asked_s = summary["hold_asked_seconds"]
        if asked_s and summary["hold_seconds"] < asked_s - 1:
            found.append(f"held for {summary['hold_seconds']:.0f} s of {asked_s} s")
        if summary["min_connections_in_hold"] < target:
            found.append(
                f"connections fell to {summary['min_connections_in_hold']:,} of {target:,} in the hold"
            )
        if summary["offered_rps"] and summary["hold_rps"] < RATE_SHARE * summary["offered_rps"]:
            found.append(
                f"{summary['hold_rps']:,.0f} requests/s reached of {summary['offered_rps']:,.0f} offered"
            )
        if (spread := summary["client"]["connections_a_worker"]) and not _is_even(spread):
            found.append(
                f"connections are unevenly spread: {spread['least']:,} to {spread['most']:,} a worker, "
                f"{spread['mean']:,.0f} on average"
            )
    if summary["failures"]:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in summary["failures_by_kind"].items())
        found.append(f"{summary['failures']:,} failed requests ({kinds})")
    if summary["reconnects"]:
        found.append(f"{summary['reconnects']:,} reconnects")
    if summary["connections_closed_by_server"]:
        found.append(f"{summary['connections_closed_by_server']:,} connections closed by the server")
    found.extend(summary["notes"])
    found.extend(f"witnesses disagree: {text}" for text in disagreements)
    return found


def _is_even(spread: dict[str, float]) -> bool:
    allowed = EVEN_SHARE * spread["mean"] + 1
    return spread["most"] - spread["mean"] <= allowed >= spread["mean"] - spread["least"]


def spread_of(workers: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Connections of a worker when the hold began; None where that is not known."""
    held = [known for worker in workers if (known := worker.get("connections_at_hold")) is not None]
    return {"least": min(held), "mean": round(sum(held) / len(held), 1), "most": max(held)} if held else None


def _own_counts(record: Record) -> dict[str, int] | None:
    """What the server counted itself from the run's begin to its end; None if it does not tell."""
    named = {"accepted": "server_accepted_total", "requests": "server_requests_total"}
    named["sent_bytes"] = "server_sent_bytes_total"
    known = {name: _peak(record.stated, column) for name, column in named.items()}
    counts = {name: value for name, value in known.items() if value is not None}
    return counts if len(counts) == len(named) else None


def _executed(drawn: Distribution, asked: Sequence[float], grain: float) -> dict[str, float] | None:
    """What was drawn in the hold; `distance` is the greatest difference in share to an even distribution."""
    if not drawn.count:
        return None
    return {
        "count": drawn.count,
        "min": round(drawn.least, 3),
        "mean": round(drawn.mean, 3),
        "p50": round(drawn.percentile(50), 3),
        "max": round(drawn.most, 3),
        "distance": round(drawn.distance(asked[0], asked[1], grain), 4),
    }


def _mean_delay_ms(hold: dict[str, float]) -> float | None:
    delay_s, requests = hold.get("send_delay_s"), hold.get("requests")
    return None if delay_s is None or not requests else round(1000 * delay_s / requests, 3)


def _most(rows: list[dict[str, str]], column: str) -> float | None:
    return max(numbers(rows, column), default=None)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _peak(rows: list[dict[str, str]], column: str) -> int | None:
    return round(max(known)) if (known := numbers(rows, column)) else None


def sentence(summary: dict[str, Any]) -> str:
    """What a person wants to know first."""
    if not summary["hold_seconds"]:
        return (
            f"{summary['peak_connections']:,} of {summary['target_connections']:,} connections were "
            f"established in {summary['ramp_seconds']:.0f} s; there was no hold"
        )
    latency = summary["latency_ms"]
    memory = summary["server"]["pss_peak_bytes"]
    text = (
        f"{summary['min_connections_in_hold']:,} connections held for {summary['hold_seconds']:.0f} s "
        f"at {summary['hold_rps']:,.0f} requests/s"
    )
    if latency["p99"] is not None:
        text += f", p50 {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms"
    if memory:
        text += f", server memory {memory / MIB:,.0f} MiB"
    return text


def lines(summary: dict[str, Any], folder: Path) -> list[str]:
    """The summary for the terminal."""
    server, client, kernel = summary["server"], summary["client"], summary["kernel"]

    def mib(size: int | None) -> str:
        return "unknown" if size is None else f"{size / MIB:,.0f} MiB"

    def cores(cpu_s: float) -> str:
        return f"{cpu_s / summary['hold_seconds']:.2f} cores" if summary["hold_seconds"] else "-"

    latency = " ".join(
        f"{name} {value:,.0f}" for name, value in summary["latency_ms"].items() if value is not None
    )
    rows = {
        "connections": f"{summary['min_connections_in_hold']:,} at least in the hold, of "
        f"{summary['target_connections']:,}; "
        f"the kernel saw {kernel['sockstat_tcp_inuse_peak'] or 0:,} TCP sockets",
        "time": f"ramp {summary['ramp_seconds']:.0f} s, hold {summary['hold_seconds']:.0f} s",
        "requests": f"{summary['requests']:,}, {summary['failures']:,} failed; "
        f"{summary['reconnects']:,} reconnects",
        "hold": f"{summary['hold_rps']:,.0f} requests/s of {summary['offered_rps'] or 0:,.0f} offered, "
        f"{summary['hold_mib_per_second']:,.1f} MiB/s",
        "latency ms": latency or "-",
        "server": f"{server['processes'] or 0} processes ({server['software'] or 'no Server header'}), "
        f"{mib(server['pss_peak_bytes'])}, {cores(server['cpu_seconds_in_hold'])}",
        "client": f"{client['processes'] or 0} processes, {mib(client['pss_peak_bytes'])}, "
        f"{cores(client['cpu_seconds_in_hold'])}",
        "kernel": f"slab {mib(kernel['slab_peak_bytes'])}, "
        f"{kernel['listen_overflows'] or 0} listen overflows, "
        f"{kernel['retrans_segs'] or 0} retransmits",
        **{f"host {host['name']}": _host_line(host, summary) for host in summary.get("hosts", ())},
        "results": str(folder / "index.html"),
        **({} if can_plot() else {"plots": PLOTS_SKIPPED.format(folder=shlex.quote(str(folder)))}),
        "verdict": summary["verdict"] + "".join(f"\n{'':13}- {reason}" for reason in summary["reasons"]),
    }
    return [f"{name:<12} {text}" for name, text in rows.items()]


def _host_line(host: dict[str, Any], summary: dict[str, Any]) -> str:
    """A host for the terminal."""
    hold_s, offset_ms = summary["hold_seconds"], host["clock_offset_ms"]
    cores = f"{host['client_cpu_seconds_in_hold'] / hold_s:.2f} cores, " if hold_s else ""
    pss = host["client_pss_peak_bytes"]
    memory = "" if pss is None else f"{pss / MIB:,.0f} MiB, "
    clock = "clock unknown" if offset_ms is None else f"clock {offset_ms:+,.1f} ms"
    text = (
        f"{host['min_connections_in_hold']:,} connections at least in the hold, {host['workers']} workers, "
        f"{host['hold_rps']:,.0f} requests/s, {cores}{memory}{host['retrans_segs'] or 0:,} retransmits, "
        f"{clock}"
    )
    if host["lost_at_s"] is not None:
        text += f"; lost at {host['lost_at_s']:.0f} s with {host['connections_when_lost']:,}"
    return text


def make(folder: Path, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Write summary.json, the latency histogram, the page and the plots; returns the summary. Raises
    :class:`NoRun`.

    :param notes: what the recorder could not know, such as how Locust ended; each is a reason for a failed
        run. They are added to `run.json`, so that a report that is made again knows them too.
    """
    from parked.loadtest.report import page

    record = Record.read(folder)
    news = [note for note in notes if note not in record.facts["notes"]]
    if news:
        record.facts["notes"].extend(news)
        _write(folder / "run.json", json.dumps(record.facts, indent=1))
    summary = summarise(record)
    _write(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    _write(folder / "latencies.hdr", record.facts["hold_latencies"] + "\n")
    _write(folder / "index.html", page.of_run(record, summary, sentence(summary)))
    if can_plot():
        from parked.loadtest.report import plots

        plots.draw(folder / "samples.csv", folder, summary)
    return summary


def can_plot() -> bool:
    """Whether matplotlib is there; the packages' extra `plots` brings it."""
    return importlib.util.find_spec("matplotlib") is not None


def _write(path: Path, text: str) -> None:
    """All of it or nothing: a reader never meets half a file."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m parked.loadtest.report.report",
        description="Make summary.json, index.html and the plots of a run's folder.",
        epilog="Exit code: 0 the run has passed, 1 it has failed, 2 there is no run in the folder.",
    )
    parser.add_argument("folder", type=Path, help="a run's folder, such as results/20261123T010000Z-20000")
    folder = parser.parse_args(arguments).folder
    try:
        summary = make(folder)
    except NoRun as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report: cannot write to {folder}: {error.strerror}", file=sys.stderr)
        return 2
    print("\n".join(lines(summary, folder)))
    return 0 if summary["verdict"] == "pass" else 1


if __name__ == "__main__":
    sys.exit(main())
