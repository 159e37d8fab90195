"""What a run has to reach beside its verdict's own rules: `--fail-if 'latency_ms.p99 > 200'`."""

from __future__ import annotations

import dataclasses
import difflib
import operator
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Longest first: `<=` begins like `<`.
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*([a-z0-9_.]+)\s*(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*")

_SIDE = "processes pss_peak_bytes cpu_seconds_in_hold loop_lag_max_ms gc_pause_max_ms gc_seconds"
_PERCENTILES = "p50 p90 p99 p999 max"
#: What a run has measured, by the names in summary.json: results/README.md says what each means.
_MEASURED = {
    "": "peak_connections min_connections_in_hold ramp_seconds hold_seconds requests failures reconnects "
    "connections_closed_by_server late_sends send_delay_mean_ms offered_rps hold_requests hold_rps "
    "hold_mib_per_second burst_10ms_max memory_available_least_bytes target_connections hold_asked_seconds",
    "latency_ms": _PERCENTILES,
    "open_at_end": "requests oldest_s bound_s too_old",
    "cores_in_hold": "server client kernel busy other",
    "server": _SIDE,
    "server.own_counts": "accepted requests sent_bytes",
    "client": _SIDE,
    "client.connections_a_worker": "least mean most",
    "kernel": "slab_peak_bytes socket_peak_bytes sockstat_tcp_inuse_peak listen_overflows listen_drops "
    "retrans_segs",
    "workload.executed.think_s": "count min mean p50 max distance",
    "workload.executed.length_bytes": "count min mean p50 max distance",
    "heard": "streams_least_in_hold deliveries events hold_events events_per_s lost repeated disordered "
    "unnumbered comments",
    "heard.delivery_ms": _PERCENTILES,
    "heard.broadcasts": "number incomplete fewest_streams first_to_last_mean_s first_to_last_max_s "
    "sent_to_last_max_s",
}
#: Those of a run that a condition may name.
FIGURES = tuple(
    f"{group}.{name}" if group else name for group, names in _MEASURED.items() for name in names.split()
)
#: Besides, failures of a kind (docs/errors.md): a kind that did not occur occurred 0 times.
KIND = "failures_by_kind."


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure of summary.json that must not be so, in that figure's unit."""

    text: str
    name: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Raises ValueError with a sentence for a person."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(
                f"{text!r} is no condition like 'latency_ms.p99 > 200' (a figure of summary.json)"
            )
        name, sign, limit = found.groups()
        return cls(f"{name} {sign} {limit}", name, sign, float(limit))

    @classmethod
    def checked(cls, text: str) -> Goal:
        """As :meth:`parse`, and of a figure that there is: before a run, a misspelt one costs nothing."""
        goal = cls.parse(text)
        if goal.name not in FIGURES and not goal.name.startswith(KIND):
            raise ValueError(f"{goal.name!r} is no figure of summary.json{meant(goal.name, FIGURES)}")
        return goal

    def missed(self, summary: dict[str, Any]) -> str:
        """Why the run fails by it; empty if it does not. A figure that is not known has not been reached."""
        figures = flat(summary)
        value = figures.get(self.name, 0 if self.name.startswith(KIND) else None)
        if value is None:
            hint = "" if self.name in figures else meant(self.name, figures)
            return f"{self.name} is not known{hint} (--fail-if '{self.text}')"
        if _OPERATORS[self.sign](value, self.limit):
            return f"{self.name} is {value:,g} (--fail-if '{self.text}')"
        return ""


def meant(name: str, figures: Iterable[str]) -> str:
    """The figure that was meant by a name: one that ends so, or is spelt nearly so."""
    figures = list(figures)
    close = [it for it in figures if it.endswith(f".{name}")] or difflib.get_close_matches(name, figures, 1)
    return f"; did you mean {close[0]}?" if close else ""


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Every number of a summary, and every null, by its name with dots."""
    found: dict[str, float | None] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            found |= flat(inner, f"{prefix}{key}.")
        elif inner is None or (isinstance(inner, int | float) and not isinstance(inner, bool)):
            found[f"{prefix}{key}"] = inner
    return found
