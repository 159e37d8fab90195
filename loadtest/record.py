"""What a run left behind, read back: `run.json`, the rows of `samples.csv`, the histogram of the hold.

:mod:`loadtest.recorder` writes it; the report, its page, the comparison and the verification read it here.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from loadtest.distribution import Distribution
from loadtest.histogram import merge, new_histogram

if TYPE_CHECKING:
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
