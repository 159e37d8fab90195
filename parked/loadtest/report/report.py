"""From a run's folder to its verdict: `summary.json`, the page `index.html` and the plots.

    ./run_test report results/20261123T010000Z-20000

Reads what :mod:`parked.loadtest.master.run` wrote, `run.json` and `samples.csv`, and nothing else, so it
can be made again at any time, also for a run whose master was killed. Without `run.json` it makes what the
rows know (:mod:`parked.loadtest.report.salvage`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parked.loadtest.report import heard as told
from parked.loadtest.report import salvage
from parked.loadtest.report.record import NoRun, sense
from parked.loadtest.report.summary import summarise
from parked.loadtest.terms import checkout, files
from parked.loadtest.terms.console import say
from parked.loadtest.terms.harmless import for_line
from parked.loadtest.terms.units import MIB, digits, some
from parked.shared.extras import lacks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parked.loadtest.report.record import Record


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
    if heard := summary.get("heard"):
        text += "; " + told.line(heard)
    if latency["p99"] is not None:
        text += f", p50 {digits(latency['p50'])} ms, p99 {digits(latency['p99'])} ms"
    if memory:
        text += f", server memory {memory / MIB:,.0f} MiB"
    return text


def lines(summary: dict[str, Any], folder: Path) -> list[str]:
    """The summary for the terminal."""
    server, client, kernel = summary["server"], summary["client"], summary["kernel"]

    def mib(size: int | None) -> str:
        return "unknown" if size is None else f"{size / MIB:,.0f} MiB"

    def cores(side: str) -> str:
        used = (summary["cores_in_hold"] or {}).get(side)
        return "-" if used is None else f"{used:.2f} cores"

    software = f" ({server['software']})" if server["software"] else ""
    latency = " ".join(
        f"{name} {digits(value)}" for name, value in summary["latency_ms"].items() if value is not None
    )
    rows: dict[str, str | list[str]] = {
        "connections": _connections(summary),
        "time": f"ramp {summary['ramp_seconds']:.0f} s, hold {summary['hold_seconds']:.0f} s",
        "requests": f"{summary['requests']:,}, {summary['failures']:,} failed; "
        f"{some(summary['reconnects'], 'reconnects')}",
        "hold": f"{digits(summary['hold_rps'])} requests/s"
        + (f" of {digits(summary['offered_rps'])} offered" if summary["offered_rps"] else "")
        + f", {summary['hold_mib_per_second']:,.1f} MiB/s",
        "latency ms": (latency or "-") + _still_open(summary["open_at_end"]),
        **({"deliveries": told.line(summary["heard"])} if "heard" in summary else {}),
        "server": f"not on this machine{software}"
        if not server["processes"]
        else f"{server['processes']} processes{software}, {mib(server['pss_peak_bytes'])}, {cores('server')}",
        "client": f"{client['processes'] or 0} processes, {mib(client['pss_peak_bytes'])}, {cores('client')}",
        "kernel": f"{_kernel_memory(kernel)}, "
        f"{some(kernel['listen_overflows'], 'listen overflows')}, "
        f"{some(kernel['retrans_segs'], 'retransmits')}",
        **{f"host {host['name']}": _host_line(host, summary) for host in summary.get("hosts", ())},
        **({"remarks": summary["remarks"]} if summary["remarks"] else {}),
        "results": str(folder / "index.html"),
        **_plots(folder),
        "verdict": [summary["verdict"], *(f"- {reason}" for reason in summary["reasons"])],
    }
    made = []
    for name, texts in rows.items():
        first, *more = [texts] if isinstance(texts, str) else texts
        made += [f"{name:<12} {first}", *(f"{'':<12} {text}" for text in more)]
    return made


def _still_open(open_: dict[str, Any] | None) -> str:
    if open_ is None or not open_["requests"]:
        return ""
    return (
        f"; {open_['requests']:,} still open at the end count with their age, a lower bound, "
        f"{open_['oldest_s'] * 1000:,.0f} at most"
    )


def _kernel_memory(kernel: dict[str, Any]) -> str:
    if kernel["socket_peak_bytes"] is None:  # a run from before it was counted
        slab = kernel["slab_peak_bytes"]
        return "slab unknown" if slab is None else f"slab {slab / MIB:,.0f} MiB"
    return f"{kernel['socket_peak_bytes'] / MIB:,.0f} MiB in sockets (/proc/{kernel['socket_bytes_from']})"


def _plots(folder: Path) -> dict[str, str]:
    """What is to be said of plots that could not be drawn."""
    hint = lacks("plots", "matplotlib", "plots")
    return {"plots": f"{hint}, then {checkout.COMMAND} report {shlex.quote(str(folder))}"} if hint else {}


def _connections(summary: dict[str, Any]) -> str:
    """How many were held, or were open at the peak of a run without a hold."""
    target, least = summary["target_connections"], summary["min_connections_in_hold"]
    if not summary["hold_seconds"]:
        text = f"{summary['peak_connections']:,} of {target:,} at the peak; there was no hold"
    else:
        text = f"{least:,} of {target:,}" + ("; never fewer during the hold" if least >= target else "")
    sockets = summary["kernel"]["sockstat_tcp_inuse_peak"]
    return text if sockets is None else f"{text}; the kernel saw {sockets:,} TCP sockets"


def _host_line(host: dict[str, Any], summary: dict[str, Any]) -> str:
    """A host for the terminal."""
    hold_s, offset_ms = summary["hold_seconds"], host["clock_offset_ms"]
    cores = f"{host['client_cpu_seconds_in_hold'] / hold_s:.2f} cores, " if hold_s else ""
    pss = host["client_pss_peak_bytes"]
    memory = "" if pss is None else f"{pss / MIB:,.0f} MiB, "
    clock = "clock unknown" if offset_ms is None else f"clock {offset_ms:+,.1f} ms"
    text = (
        f"{host['min_connections_in_hold']:,} connections or more in the hold, {host['workers']} workers, "
        f"{host['hold_rps']:,.0f} requests/s, {cores}{memory}{host['retrans_segs'] or 0:,} retransmits, "
        f"{clock}"
    )
    if host["lost_at_s"] is not None:
        text += f"; lost at {host['lost_at_s']:.0f} s with {host['connections_when_lost']:,}"
    return text


@dataclasses.dataclass(frozen=True)
class Report:
    """What is made of a folder, before it is written there."""

    record: Record
    summary: dict[str, Any]
    page: str
    has_news: bool  #: for run.json

    @classmethod
    def of(
        cls,
        folder: Path,
        notes: Sequence[str] = (),
        if_failed: Sequence[str] = (),
        fail_if: Sequence[str] = (),
    ) -> Report:
        """Raises :class:`NoRun`.

        :param notes: what the recorder could not know, such as how Locust ended; each is a reason for a
            failed run. They are added to `run.json`, so that a report that is made again knows them too.
        :param if_failed: notes that only explain a failure and are none themselves, such as an interrupt.
        :param fail_if: conditions in the form of :mod:`parked.loadtest.report.goals`, kept likewise.
        """
        from parked.loadtest.report import page

        record = salvage.read(folder)
        if fail_if:
            record.facts["fail_if"] = list(fail_if)
        with sense(folder):
            summary = summarise(record)
        notes = [*notes, *(if_failed if notes or summary["verdict"] == "fail" else ())]
        news = [note for note in notes if note not in record.facts["notes"]]
        record.facts["notes"].extend(news)
        with sense(folder):
            summary = summarise(record)
            shown = page.of_run(record, summary, sentence(summary))
        return cls(record, summary, shown, bool(news or fail_if))

    def write(self) -> None:
        """Write summary.json, the latency histogram, the page and the plots.

        Raises OSError for the first that could not be, when the others are.
        """
        folder, facts = self.record.folder, json.dumps(self.record.facts, indent=1)
        written = {
            "run.json": facts if self.has_news else None,
            "summary.json": json.dumps(self.summary, indent=2) + "\n",
            # Encoded anew: what a folder says goes into no file as it is.
            "latencies.hdr": self.record.latencies_and_ages.encode() + b"\n",
            "index.html": self.page,
        }
        failed: OSError | None = None
        for name, content in written.items():
            try:
                if content is not None:
                    files.replace(folder / name, content)
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        if not lacks("plots", "matplotlib", "plots"):
            from parked.loadtest.report import plots

            with sense(folder):
                plots.draw(folder / "samples.csv", folder, self.summary)


def make(
    folder: Path, notes: Sequence[str] = (), if_failed: Sequence[str] = (), fail_if: Sequence[str] = ()
) -> dict[str, Any]:
    """Write all of a folder's report, and return its summary. Raises :class:`NoRun` or OSError."""
    made = Report.of(folder, notes, if_failed, fail_if)
    made.write()
    return made.summary


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"{checkout.PROGRAM} report",
        description="Make summary.json, index.html and the plots of a run's folder.",
        epilog="Exit code: 0 the run has passed, 1 it has failed, 2 there is no run in the folder.",
    )
    parser.add_argument(
        "folder",
        type=checkout.run_folder,
        help="a run's folder, such as results/20261123T010000Z-20000, last or previous",
    )
    folder = parser.parse_args(arguments).folder
    try:
        made = Report.of(folder)
    except NoRun as error:
        print(for_line(f"report: {error}"), file=sys.stderr)
        return 2
    unwritten = ""
    try:
        made.write()
    except OSError as error:
        unwritten = f"report: cannot write to {folder}: {error.strerror}"
    except NoRun as error:
        unwritten = f"report: {error}"
    page = folder / "index.html"
    for line in lines(made.summary, folder):
        if page.exists() or not line.endswith(f" {page}"):  # as after a run: no way to what is not there
            say(line)
    if unwritten:
        print(for_line(unwritten), file=sys.stderr)
        return 2
    return 0 if made.summary["verdict"] == "pass" else 1
