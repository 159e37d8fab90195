"""A run as it is written down, followed from outside: the newest row, the facts, the warnings.

Everything comes from the results folder. Whoever looks, and however slowly, can't hold up the run.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections import deque
from typing import TYPE_CHECKING, Any

from parked.loadtest.report import limits, summary
from parked.loadtest.report.record import number
from parked.loadtest.terms.harmless import for_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Rows that rates are taken over: workers and the master count at moments of their own within a second.
RATE_ROWS = 5
#: Rows that a warning looks back over, so that it can be read before it goes.
WARN_ROWS = 10
#: Rows that charts show, one a second: half an hour.
HISTORY_ROWS = 1800
#: Messages of the log that are kept.
MESSAGES = 50
#: A line of Locust's log, "[date time,ms] host/LEVEL/logger: text". Its own warnings are of rates and CPU
#: shares that are usual here; ours, and all errors, are worth a look.
_MESSAGE = re.compile(
    r"\[\S+ (?P<time>\d\d:\d\d:\d\d)\S* \S+/(?:WARNING/parked\S*|(?:ERROR|CRITICAL)/\S+): (?P<text>.+)"
)

#: What charts show: a heading with its unit, and the column, or the total that is shown as a rate.
CHARTS = {
    "connections": "connections",
    "requests/s": "requests_total",
    "p99 of the latency, ms": "latency_p99_ms",
    "busy cores": "busy_cores",
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the run is to do, and the machine it is on."""

    host: str
    connections: int
    hold_s: int
    think_s: tuple[float, float]
    cpu_count: int
    memory_bytes: int


class Run:
    """One results folder, read again and again while it grows."""

    def __init__(self, folder: Path, asked: Asked) -> None:
        self.asked = asked
        self.facts: dict[str, Any] = {}
        self.recent: deque[dict[str, str]] = deque(maxlen=WARN_ROWS + 1)
        self.history: deque[tuple[float, ...]] = deque(maxlen=HISTORY_ROWS)
        self.messages: deque[str] = deque(maxlen=MESSAGES)
        self._samples = Tail(folder / "samples.csv")
        self._log = Tail(folder / "locust.log")
        self._facts_path = folder / "run.json"
        self._facts_written = 0.0
        self._columns: list[str] = []
        #: When the last row before the hold was written, and the least connections since (time_s, count).
        self._ramp_ended_s = 0.0
        self.least_in_hold: int | None = None

    def update(self) -> bool:
        """Read what is new; whether there was anything."""
        rows, messages = list(self._samples.lines()), list(self._log.lines())
        if self._samples.began_anew:  # a web UI starts the next test in the same folder
            self._columns, self.facts = [], {}
            self.recent.clear()
            self.history.clear()
            self.least_in_hold = None
        for values in csv.reader(rows):
            if not self._columns:
                self._columns = values
            elif len(values) == len(self._columns):
                self._take(dict(zip(self._columns, values, strict=True)))
        for line in messages:
            if (found := _MESSAGE.fullmatch(line)) is not None:
                self.messages.append(f"{found['time']} {for_line(found['text'])}")
        return self._read_facts() or bool(rows or messages)

    def _take(self, row: dict[str, str]) -> None:
        self.recent.append(row)
        self.history.append(
            tuple(
                self.per_s(column) if column.endswith("_total") else self.value(column)
                for column in CHARTS.values()
            )
        )
        if row["phase"] == "ramp":
            self._ramp_ended_s = _number(row, "time_s")
        elif row["phase"] == "hold":
            least = int(_number(row, "connections_min"))
            self.least_in_hold = least if self.least_in_hold is None else min(self.least_in_hold, least)

    def _read_facts(self) -> bool:
        try:
            written = self._facts_path.stat().st_mtime
            if written == self._facts_written:
                return False
            self._facts_written = written
            self.facts = json.loads(self._facts_path.read_text())
        except (OSError, ValueError):  # not written yet
            return False
        return True

    # Figures of now

    @property
    def row(self) -> dict[str, str]:
        """The newest; empty before the first."""
        return self.recent[-1] if self.recent else {}

    @property
    def phase(self) -> str:
        return self.row.get("phase", "")

    def value(self, name: str) -> float:
        """A cell of the newest row; nan if it is unknown."""
        return _number(self.row, name)

    def last(self, name: str) -> float:
        """The last known cell of a column among the newest rows; nan if there is none."""
        known = [value for row in self.recent if (value := number(row, name)) is not None]
        return known[-1] if known else math.nan

    def grown(self, name: str, rows: int = WARN_ROWS) -> float:
        """By how much a counter has grown within the last rows."""
        last = list(self.recent)[-rows - 1 :]
        known = [value for row in last if (value := number(row, name)) is not None]
        return known[-1] - known[0] if known else 0.0

    def per_s(self, name: str) -> float:
        """How fast a counter of the workers grows, over the time in which it was counted; nan if unknown."""
        took_s = self.grown("counted_unix_s", RATE_ROWS)
        return self.grown(name, RATE_ROWS) / took_s if took_s > 0 else math.nan

    @property
    def offered_per_s(self) -> float:
        """(connections / mean think time), as in the summary; nan without a think time."""
        mean_s = sum(self.facts.get("think_s", self.asked.think_s) or ()) / 2
        return self.value("connections") / mean_s if mean_s else math.nan

    def progress(self) -> tuple[float, str]:
        """How much of the phase is done, 0 to 1, and in words."""
        now, wanted = self.value("connections"), self.value("connections_wanted")
        if self.phase == "ramp":
            done = now / wanted if wanted else 0.0
            rate = self.per_s("connections")
            left = f", {rate:,.0f}/s, about {clock((wanted - now) / rate)} left" if rate > 0 else ""
            return done, f"{now:,.0f} of {wanted:,.0f} connections{left}"
        if self.phase == "hold":
            held_s = self.value("time_s") - self._ramp_ended_s
            asked_s = self.facts.get("hold_asked_s", self.asked.hold_s)
            if not asked_s:
                return 1.0, f"held for {clock(held_s)}"
            left_s = max(0.0, asked_s - held_s)
            return min(1.0, held_s / asked_s), f"{clock(held_s)} of {clock(asked_s)}, {clock(left_s)} left"
        if self.phase == "stop":
            return 1.0, f"closing connections, {now:,.0f} left"
        return 0.0, "starting"

    # Judgement

    def reasons(self) -> list[str]:
        """Why the run would fail if nothing else happened, as the report will put it; from the facts, which
        are a few seconds old."""
        facts = self.facts
        if not facts:
            return []
        target, hold = facts["target_connections"], facts["hold"]
        counted_s, requests = facts.get("hold_counted_s") or 0.0, hold.get("requests", 0)
        mean_s = sum(facts["think_s"] or ()) / 2
        least = facts["min_connections_in_hold"]
        return summary.reasons(
            {
                "target_connections": target,
                # There is or will be one; only at its end can it be too short.
                "hold_seconds": counted_s or 1.0,
                "hold_asked_seconds": None,
                "min_connections_in_hold": target if least is None else least,
                "offered_rps": target / mean_s if counted_s and mean_s else None,
                "hold_rps": requests / counted_s if counted_s else 0.0,
                "failures": facts["totals"].get("failures", 0),
                "failures_by_kind": facts["failures_by_kind"],
                "reconnects": facts["totals"].get("reconnects", 0),
                "connections_closed_by_server": facts["totals"].get("closed_by_peer", 0),
                "client": {"connections_a_worker": summary.spread_of(facts)},
                "notes": facts["notes"],
            },
            (),
        )

    def warnings(self) -> list[str]:
        """What keeps the figures from being better at the moment."""
        found = []
        busy = [value for row in self.recent if (value := number(row, "busy_cores")) is not None]
        mean = sum(busy) / len(busy) if busy else 0.0
        if mean >= limits.SATURATED * self.asked.cpu_count:
            found.append(
                f"CPU saturated: {mean:.2f} of {self.asked.cpu_count} cores busy, requests wait for one"
            )
        if (late := self.grown("late_sends_total")) > 0:
            found.append(f"client late: {late:,.0f} requests left over 100 ms after they were due")
        if (dropped := self.grown("listen_drops")) > 0:
            found.append(f"server late: the kernel dropped {dropped:,.0f} SYNs for it")
        if self.value("memory_available_bytes") < limits.MEMORY_LEFT * self.asked.memory_bytes:
            found.append(f"memory short: less than {limits.MEMORY_LEFT:.0%} of the machine's is left")
        return found


class Tail:
    """The whole lines that have come to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        #: Whether the file was shorter at the last look than before.
        self.began_anew = False

    def lines(self) -> Iterator[str]:
        try:
            with self._path.open("rb") as file:
                self.began_anew = file.seek(0, 2) < self._offset
                file.seek(0 if self.began_anew else self._offset)
                # The rest of a line may be still on its way.
                whole = file.read().rpartition(b"\n")
                self._offset = file.tell() - len(whole[2])
        except FileNotFoundError:
            return
        yield from (whole[0] + whole[1]).decode(errors="replace").splitlines()


def _number(row: dict[str, str], name: str) -> float:
    value = number(row, name)
    return math.nan if value is None else value


def clock(seconds: float) -> str:
    """4:07, or 1:04:07 from an hour on."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
