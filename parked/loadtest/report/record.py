"""What a run left behind, read back: `run.json`, the rows of `samples.csv`, the histogram of the hold.

:mod:`parked.loadtest.master.run` writes it; the report, its page, the comparison and the verification
read it here.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from parked.loadtest.report.facts import Facts
from parked.loadtest.terms import files
from parked.loadtest.terms.distribution import Distribution, bound
from parked.loadtest.terms.histogram import RANGE_US, merge, new_histogram
from parked.loadtest.terms.shape import wrong

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: Rows of a week and its ramp, bytes of one, bytes of the facts.
MOST_ROWS, LONGEST_ROW, LARGEST_FACTS = 650_000, 16_384, 32 << 20
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
        with sense(folder):
            facts = read_json(folder / "run.json", LARGEST_FACTS)
            if why := wrong(facts, Facts, "run.json"):
                raise ValueError(why)
            if "heard" in facts:
                decode(facts["heard"]["deliveries"])  # what can't be read is told here
            rows = rows_of(folder)
            record = cls(folder, facts, rows, decode(facts["hold_latencies"]))
            for distribution in (
                record.thinks_s,
                record.lengths,
                record.open_s,
            ):  # what can't be read is told here
                if not (math.isfinite(distribution.sum) and distribution.sum >= 0):
                    raise ValueError("a sum of think times or lengths that makes no sense")
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

    @property
    def open_s(self) -> Distribution:
        """Ages of the requests that were under way at the end of the hold; empty where not recorded."""
        return Distribution.of(self.facts.get("hold_open_s") or ())

    @property
    def deliveries(self) -> Any:
        """From sending to arrival, of what came in the hold: a histogram of microseconds."""
        heard = self.facts.get("heard")
        return decode(heard["deliveries"]) if heard else new_histogram()

    @property
    def latencies_and_ages(self) -> Any:
        """The hold's latencies, and the ages of what was not answered by its end: they are lower bounds."""
        histogram = new_histogram()
        histogram.add(self.latencies)
        ages = self.open_s
        oldest = max(ages.buckets, default=None)
        for bucket, number_ in ages.buckets.items():
            known = 1 if bucket == oldest else 0  # of the oldest, the age itself
            _record(histogram, max(bound(bucket), ages.least), number_ - known)
            _record(histogram, ages.most, known)
        return histogram

    def hold(self) -> list[dict[str, str]]:
        """The stated rows of the hold: the last one, if the run was changed while it went on."""
        rows = self.stated
        ramped = max((place for place, row in enumerate(rows) if row["phase"] == "ramp"), default=-1)
        return [row for row in rows[ramped + 1 :] if row["phase"] == "hold"]

    def before_hold(self) -> dict[str, str] | None:
        """The row with which the hold begins: the first in which all connections were established."""
        return next((row for row in reversed(self.stated) if row["phase"] == "ramp"), None)


def _record(histogram: Any, age_s: float, number_: int) -> None:
    if number_:
        histogram.record_value(max(RANGE_US[0], round(min(age_s * 1e6, RANGE_US[1]))), number_)


_NONSENSE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError),
    csv.Error,
)


@contextlib.contextmanager
def sense(folder: Path) -> Iterator[None]:
    """Take figures out of which no sense can be made, wherever that shows, for no run: :class:`NoRun`."""
    try:
        yield
    except NoRun:
        raise
    except _NONSENSE as error:
        why = str(error).splitlines() or [type(error).__name__]
        raise NoRun(f"{folder}: no run that a report could be made of ({why[0][:200]})") from None


def read_json(path: Path, most: int) -> Any:
    """What a JSON file says. Raises OSError, ValueError or RecursionError."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{path.name} has {constant}")

    return json.loads(files.read_text(path, most), parse_constant=refuse)


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of samples.csv. Raises OSError, ValueError or csv.Error."""
    lines = files.read_text(folder / "samples.csv").splitlines()
    if len(lines) > MOST_ROWS + 1:
        raise ValueError(f"samples.csv has more than {MOST_ROWS:,} rows")
    if any(len(line) > LONGEST_ROW for line in lines):
        raise ValueError("samples.csv has a row that is too long")
    try:
        return list(files.table(lines, *_COLUMNS))
    except ValueError as error:
        raise ValueError(f"samples.csv {error}") from None


def decode(text: str) -> Any:
    """The histogram in a text as in `latencies.hdr`. Raises ValueError."""
    histogram = new_histogram()
    merge(histogram, text.strip().encode())
    return histogram


def kernel_column(rows: list[dict[str, str]]) -> str:
    """The column of the kernel's memory: what sockets pin, or the whole slab in runs from before that."""
    return "socket_bytes" if numbers(rows, "socket_bytes") else "slab_bytes"


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
