"""What a run left behind, read back: `run.json`, the rows of `samples.csv`, the histogram of the hold.

:mod:`parked.loadtest.master.run` writes it; the report, its page, the comparison and the verification
read it here.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.histogram import merge, new_histogram

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Without these there is nothing to report on.
_FACTS = (
    "host", "target_connections", "started_unix_s", "think_s", "length", "hold_asked_s", "ramp_s", "hold_s",
    "peak_connections", "min_connections_in_hold", "totals", "hold", "hold_cpu_s", "burst_10ms_max",
    "failures_by_kind", "workers", "server_software", "server_is_local", "machine", "versions", "command",
    "notes", "hold_latencies",
)  # fmt: skip
_COLUMNS = ("time_s", "phase", "connections")


class NoRun(Exception):
    """The folder holds no run, or one that can't be read."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One run. `latencies` is the histogram of the hold, in microseconds."""

    folder: Path
    facts: dict[str, Any]
    rows: list[dict[str, str]]
    latencies: Any

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Raises :class:`NoRun`."""
        try:
            facts = json.loads((folder / "run.json").read_text())
            missing = [name for name in _FACTS if name not in facts]
            if not isinstance(facts, dict) or missing:
                raise ValueError(f"run.json lacks {', '.join(missing) or 'everything'}")
            with (folder / "samples.csv").open(newline="") as file:
                reader = csv.DictReader(file)
                missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
                if missing:
                    raise ValueError(f"samples.csv lacks the column {', '.join(missing)}")
                rows = list(reader)
            record = cls(folder, facts, rows, decode(facts["hold_latencies"]))
            _ = record.thinks_s, record.lengths  # what can't be read is told here
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise NoRun(f"{folder}: no run that a report could be made of ({error})") from None
        if rows and None in rows[-1].values():  # cut off when the master was killed
            rows.pop()
        return record

    @property
    def stated(self) -> list[dict[str, str]]:
        """The rows that the facts speak of: a master that was killed may have written more."""
        return self.rows[: self.facts.get("rows", len(self.rows))]

    @property
    def thinks_s(self) -> Distribution:
        """Think times that began in the hold; empty where they were not recorded."""
        return Distribution.of(self.facts.get("hold_thinks_s") or ())

    @property
    def lengths(self) -> Distribution:
        """Lengths of the hold's good responses; empty where they were not recorded."""
        return Distribution.of(self.facts.get("hold_lengths") or ())

    def hold(self) -> list[dict[str, str]]:
        """The stated rows of the hold: the last one, if the run was changed while it went on."""
        rows = self.stated
        ramped = max((place for place, row in enumerate(rows) if row["phase"] == "ramp"), default=-1)
        return [row for row in rows[ramped + 1 :] if row["phase"] == "hold"]

    def before_hold(self) -> dict[str, str] | None:
        """The row with which the hold begins: the first in which all connections were established."""
        return next((row for row in reversed(self.stated) if row["phase"] == "ramp"), None)


def decode(text: str) -> Any:
    """The histogram in a text as in `latencies.hdr`. Raises ValueError."""
    histogram = new_histogram()
    try:
        merge(histogram, text.strip().encode())
    except Exception as error:  # the library lets whatever went wrong in zlib, base64 or ctypes through
        raise ValueError(f"no latency histogram: {error or type(error).__name__}") from None
    return histogram


def number(row: dict[str, str] | None, name: str) -> float | None:
    """A cell; None if it is empty, missing or no finite number."""
    try:
        value = float((row or {}).get(name) or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers(rows: list[dict[str, str]], name: str) -> list[float]:
    """The known cells of a column."""
    return [value for row in rows if (value := number(row, name)) is not None]


def per_second(
    totals: Sequence[float | None], counted_s: Sequence[float | None], times_s: Sequence[float | None]
) -> list[float | None]:
    """How fast a total of the workers' grows, row by row: over the time in which they counted it.

    Rows come when the master gets to write them. On a busy machine that is up to seconds apart, and one may
    be written before anything more was counted: there the rate is unknown.

    :param totals: the column, None or nan where it is unknown.
    :param counted_s: `counted_unix_s`; where it is missing, as in old files, times_s counts.
    :param times_s: `time_s`.
    """
    rates: list[float | None] = []
    before, before_s, before_row_s = 0.0, None, 0.0
    columns = (map(_known, column) for column in (totals, counted_s, times_s))
    for total, counted, row_s in zip(*columns, strict=True):
        if total is None or row_s is None:
            rates.append(None)
            continue
        took_s = row_s - before_row_s if counted is None or before_s is None else counted - before_s
        rates.append((total - before) / took_s if took_s > 0 else None)
        if took_s > 0:
            before, before_s, before_row_s = total, counted, row_s
    return rates


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
