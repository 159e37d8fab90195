"""The facts of a run whose `run.json` is lost, as far as the rows of its `samples.csv` know them.

Everything that only the run's end or its workers knew stays unknown: the hold's latencies, failures by kind,
the workers, the machine. A note says so, and a run with notes does not pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parked.loadtest.report.record import NoRun, Record, number, numbers, rows_of, sense
from parked.loadtest.terms.histogram import new_histogram

if TYPE_CHECKING:
    from pathlib import Path

#: Totals that a row has, by their names in run.json.
_TOTALS = ("opened", "reconnects", "requests", "requests_sent", "failures", "late_sends", "received_bytes")


def read(folder: Path) -> Record:
    """The run in that folder, or what can be made of its rows if `run.json` is not there or empty. Raises
    :class:`NoRun`."""
    facts = folder / "run.json"
    with sense(folder):
        if (facts.is_symlink() or facts.exists()) and facts.stat().st_size:
            return Record.read(folder)
        rows = [row for row in rows_of(folder) if None not in row.values()]  # the last one may be cut off
        if not rows:
            raise NoRun(f"{folder}: no run that a report could be made of (no rows)")
        return Record(folder, facts_of(rows), rows, new_histogram())


def facts_of(rows: list[dict[str, str]]) -> dict[str, Any]:
    """As in run.json."""
    last = rows[-1]
    started_unix_s = (number(last, "unix_time_s") or 0.0) - (number(last, "time_s") or 0.0)
    ramped = [row for row in rows if row["phase"] == "ramp"]
    hold = [row for row in rows if row["phase"] == "hold"]
    begin = ramped[-1] if ramped else None
    return {
        "host": "unknown",
        "target_connections": round(number(last, "connections_wanted") or 0),
        "started_unix_s": started_unix_s,
        "think_s": None,
        "length": None,
        "hold_asked_s": None,
        "ramp_s": number(begin, "time_s") or 0.0,
        "hold_s": _passed(begin, hold, "time_s"),
        "hold_counted_s": _passed(begin, hold, "counted_unix_s"),
        "peak_connections": round(max(numbers(rows, "connections"), default=0)),
        "min_connections_in_hold": round(min(numbers(hold, "connections_min"), default=0)) if hold else None,
        "totals": {name: round(number(last, f"{name}_total") or 0) for name in _TOTALS},
        "hold": {
            name: round((number(hold[-1], f"{name}_total") or 0) - (number(begin, f"{name}_total") or 0))
            for name in _TOTALS
        }
        if hold
        else {},
        "hold_cpu_s": {side: _cpu_s(hold, side) for side in ("server", "client")},
        "burst_10ms_max": round(max(numbers(hold, "burst_10ms_max"), default=0)),
        "failures_by_kind": _kinds(round(number(last, "failures_total") or 0)),
        "workers": [],
        "server_software": "",
        "server_is_local": bool(max(numbers(rows, "server_processes"), default=0)),
        "server_metrics": False,
        "server_processes_lost": 0,
        "machine": {},
        "versions": {},
        "command": "unknown",
        "notes": [
            "run.json is missing: these figures are of samples.csv alone, without what only the end of "
            "the run knows (latency of the whole hold, failures by kind, workers, command)"
        ],
        "rows": len(rows),
        "ended": False,
        "hold_latencies": new_histogram().encode().decode(),
        "salvaged": True,
    }


def _passed(begin: dict[str, str] | None, hold: list[dict[str, str]], clock: str) -> float:
    return (number(hold[-1], clock) or 0.0) - (number(begin, clock) or 0.0) if begin and hold else 0.0


def _kinds(failures: int) -> dict[str, int]:
    return {"unknown": failures} if failures else {}


def _cpu_s(hold: list[dict[str, str]], side: str) -> float | None:
    """CPU seconds: a row has cores, one second of them."""
    known = numbers(hold, f"{side}_cores")
    return sum(known) if known else None
