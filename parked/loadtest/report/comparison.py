"""Runs side by side, each against the first: their figures, the ratios, and what else may explain these.

Figures are computed from the runs' records anew, not taken from `summary.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import operator
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parked.loadtest.report.goals import flat
from parked.loadtest.report.record import Record, sense
from parked.loadtest.report.summary import KEEPALIVE, summarise
from parked.loadtest.terms.units import MIB, digits, size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Share by which the lengths of two holds may differ; longer ones meet rarer latencies.
HOLD_SHARE = 0.2
#: Runs that a table and a chart have room for.
MOST_RUNS = 6

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A row of the table. `scale` turns the summary's unit into the one shown."""

    name: str
    text: str
    scale: float = 1.0


#: What is compared. Names with dots are those of summary.json, the others are made in :func:`derived`.
FIGURES = (
    Figure("min_connections_in_hold", "connections held"),
    Figure("ramp_seconds", "ramp, s"),
    Figure("offered_rps", "requests/s offered"),
    Figure("hold_rps", "requests/s in the hold"),
    Figure("hold_mib_per_second", "MiB/s in the hold"),
    Figure("latency_ms.p50", "latency p50, ms"),
    Figure("latency_ms.p90", "latency p90, ms"),
    Figure("latency_ms.p99", "latency p99, ms"),
    Figure("latency_ms.p999", "latency p99.9, ms"),
    Figure("latency_ms.max", "latency max, ms"),
    Figure("heard.streams_least_in_hold", "streams held"),
    Figure("heard.events_per_s", "events/s in the hold"),
    Figure("heard.delivery_ms.p50", "sending to arrival p50, ms"),
    Figure("heard.delivery_ms.p99", "sending to arrival p99, ms"),
    Figure("heard.delivery_ms.max", "sending to arrival max, ms"),
    Figure("heard.broadcasts.first_to_last_max_s", "first to last client, longest, s"),
    Figure("heard.lost", "events lost"),
    Figure("heard.repeated", "events repeated"),
    Figure("failures", "failed requests"),
    Figure("reconnects", "reconnects"),
    Figure("late_sends", "requests sent late"),
    Figure("server.loop_lag_max_ms", "server, longest event-loop lag, ms"),
    Figure("client.loop_lag_max_ms", "client, longest event-loop lag, ms"),
    Figure("server_cores", "server, cores in the hold"),
    Figure("client_cores", "client, cores in the hold"),
    Figure("server_us_a_request", "server, CPU us per request"),
    Figure("client_us_a_request", "client, CPU us per request"),
    Figure("server.pss_peak_bytes", "server memory, MiB", MIB),
    Figure("client.pss_peak_bytes", "client memory, MiB", MIB),
    Figure("server_bytes_a_connection", "server, bytes per connection"),
    Figure("kernel.slab_peak_bytes", "kernel slab, MiB", MIB),
    Figure("kernel.retrans_segs", "retransmits"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with its figures by name, and the letter that stands for it."""

    letter: str
    record: Record
    summary: dict[str, Any]
    figures: dict[str, float | None]

    @classmethod
    def read(cls, letter: str, folder: Path) -> Run:
        """Raises :class:`NoRun`."""
        record = Record.read(folder)
        with sense(folder):
            summary = summarise(record)
            return cls(letter, record, summary, {**flat(summary), **derived(summary)})

    @property
    def name(self) -> str:
        return f"{self.letter} {self.record.folder.resolve().name}"


def derived(summary: dict[str, Any]) -> dict[str, float | None]:
    """Figures a second, a request, a connection; None if there was no hold or nothing was measured."""

    def share(whole: float | None, parts: float) -> float | None:
        return whole / parts if whole and parts else None

    made: dict[str, float | None] = {}
    for side in ("server", "client"):
        cpu_s = summary[side]["cpu_seconds_in_hold"]
        made[f"{side}_cores"] = (summary["cores_in_hold"] or {}).get(side)
        made[f"{side}_us_a_request"] = share((cpu_s or 0.0) * 1e6, summary["hold_requests"])
        made[f"{side}_bytes_a_connection"] = share(
            summary[side]["pss_peak_bytes"], summary["peak_connections"]
        )
    return made


def ratio(run: Run, first: Run, name: str) -> float | None:
    """The run's figure by the first's. From 0 to 0 is 1, from 0 to more is infinite; None if unknown."""
    value, base = run.figures.get(name), first.figures.get(name)
    if value is None or base is None:
        return None
    if base == 0:
        return 1.0 if value == 0 else math.inf
    return value / base


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A ratio to the first run that must not be: "hold_rps<0.95", "latency_ms.p99 > 2x"."""

    text: str
    name: str
    compare: Callable[[float, float], bool]
    limit: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Raises :class:`argparse.ArgumentTypeError`."""
        found = re.fullmatch(r"\s*([a-z0-9_.]+)\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)x?\s*", text)
        if found is None:
            raise argparse.ArgumentTypeError(f"{text!r} is no threshold like 'latency_ms.p99 > 2x'")
        name, sign, limit = found.groups()
        return cls(text.strip(), name, _OPERATORS[sign], float(limit))

    def crossed(self, run: Run, first: Run) -> str:
        """What to tell; empty if it is kept. A ratio that can't be told keeps nothing."""
        value = ratio(run, first, self.name)
        if value is None:
            return f"{run.name}: how {self.name} compares is not known (--fail-if '{self.text}')"
        if not self.compare(value, self.limit):
            return ""
        ours, theirs = (digits(it.figures[self.name] or 0.0) for it in (run, first))
        than = f"{_times(value)} x {first.letter}'s, {ours} to {theirs}"
        return f"{run.name}: {self.name} is {than} (--fail-if '{self.text}')"


def other_workloads(runs: Sequence[Run]) -> list[str]:
    """Why these runs can't be compared; empty if they can."""
    first, found = runs[0], []
    for run in runs[1:]:
        kinds = [it.summary["workload"].get("kind", KEEPALIVE) for it in (first, run)]
        if kinds[0] != kinds[1]:
            found.append(f"what users do: {first.name} {kinds[0]}, {run.name} {kinds[1]}")
            continue
        for key, text in (("think_s", "think time, s"), ("length_characters", "length, characters")):
            ours, theirs = run.summary["workload"][key], first.summary["workload"][key]
            if ours != theirs:
                found.append(f"{text}: {first.name} {_range(theirs)}, {run.name} {_range(ours)}")
    return found


def differences(runs: Sequence[Run]) -> list[str]:
    """What else may explain a ratio."""
    first = runs[0]
    found = [
        f"{run.name} failed: {'; '.join(run.summary['reasons'])}"
        for run in runs
        if run.summary["verdict"] != "pass"
    ]
    for run in runs[1:]:

        def differ(what: str, theirs: Any, ours: Any, run: Run = run) -> None:
            if theirs != ours:
                found.append(f"{what}: {first.name} {theirs}, {run.name} {ours}")

        one, other = first.summary, run.summary
        differ("connections", one["target_connections"], other["target_connections"])
        longest = max(one["hold_seconds"], other["hold_seconds"])
        if abs(one["hold_seconds"] - other["hold_seconds"]) > HOLD_SHARE * longest:
            differ("hold, s", one["hold_seconds"], other["hold_seconds"])
        differ("target", _kind(first), _kind(run))
        for name in sorted({*one["machine"], *other["machine"]} & _MACHINE):
            both = (_told(name, it["machine"].get(name)) for it in (one, other))
            differ(name.removesuffix("_bytes").replace("_", " "), *both)
        for name in sorted({*one["versions"], *other["versions"]}):
            differ(name, one["versions"].get(name), other["versions"].get(name))
    return found


#: What makes another machine of it; free memory and the like are of the moment.
_MACHINE = {"cpu_count", "cpu_model", "virtual", "kernel", "memory_total_bytes", "nofile_hard", "somaxconn"}


def _told(name: str, value: Any) -> Any:
    """As a person tells it: equal machines may differ by some pages."""
    return size(value) if name.endswith("_bytes") else value


def _kind(run: Run) -> str:
    """What the target is: a server on the same machine shares its cores, TLS costs both sides."""
    where = "here" if run.record.facts["server_is_local"] else "elsewhere"
    scheme, _, _ = run.summary["workload"]["host"].partition("://")
    return f"{scheme}, server {where}"


def _range(ends: Sequence[float] | None) -> str:
    return "unknown" if ends is None else f"{ends[0]:g}-{ends[1]:g}"


def rows(runs: Sequence[Run]) -> list[list[str]]:
    """The table: a figure, the first run's value, and value and ratio of each other run."""
    made = []
    for figure in FIGURES:
        if all(run.figures.get(figure.name) is None for run in runs):
            continue
        row = [figure.text, _shown(runs[0], figure)]
        for run in runs[1:]:
            row += [_shown(run, figure), _times(ratio(run, runs[0], figure.name))]
        made.append(row)
    return made


def headings(runs: Sequence[Run]) -> list[str]:
    made = ["", runs[0].letter]
    for run in runs[1:]:
        made += [run.letter, f"{run.letter}/{runs[0].letter}"]
    return made


def _shown(run: Run, figure: Figure) -> str:
    value = run.figures.get(figure.name)
    if value is None:
        return "-"
    value /= figure.scale
    return digits(value)


def _times(value: float | None) -> str:
    if value is None:
        return "-"
    return "from 0" if math.isinf(value) else f"{value:.3f}"


def lines(runs: Sequence[Run]) -> list[str]:
    """For the terminal."""
    table = [headings(runs), *rows(runs)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    made = [f"{run.letter}  {run.record.folder}  ({run.summary['verdict']})" for run in runs]
    for row in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        made.append("  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip())
    return made
