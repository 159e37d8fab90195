"""Locust's own statistics of a run, from the CSV files that it leaves: requests by name, failures by text,
exceptions of tasks.

They are of the whole run, and Locust rounds its percentiles to two digits. What is not there, or can't be
read, is an empty list.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from typing import TYPE_CHECKING, Any

from parked.loadtest.terms import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Rows of each that are kept, the most frequent first, and characters of a text.
MOST_ROWS, LONGEST_TEXT = 50, 200
#: Rows that are looked at.
MOST_READ = 100_000
#: Percentiles by their names in summary.json and in Locust's file.
_PERCENTILES = {"p50": "50%", "p90": "90%", "p99": "99%", "max": "100%"}


def requests(folder: Path) -> list[dict[str, Any]]:
    """By method and name; latencies in milliseconds."""
    return _most(
        {
            "method": row["Type"][:LONGEST_TEXT],
            "name": row["Name"][:LONGEST_TEXT],
            "count": int(row["Request Count"]),
            "failures": int(row["Failure Count"]),
            "latency_ms": {name: _number(row[column]) for name, column in _PERCENTILES.items()},
        }
        for row in _rows(folder / "locust_stats.csv")
        if not _is_sum(row)
    )


def aggregated(folder: Path, *columns: str) -> list[float | None]:
    """Of the row with the sums of all requests; None where it is not there, or says no number."""
    sums = next(filter(_is_sum, _rows(folder / "locust_stats.csv")), {})
    return [_number(sums.get(column) or "") for column in columns]


def _is_sum(row: dict[str, str]) -> bool:
    return row.get("Name") == "Aggregated" and not row.get("Type")  # a request may be named so


def failures(folder: Path) -> list[dict[str, Any]]:
    """By method, name and what the failure says."""
    return _most(
        {
            "method": row["Method"][:LONGEST_TEXT],
            "name": row["Name"][:LONGEST_TEXT],
            "text": row["Error"][:LONGEST_TEXT],
            "count": int(row["Occurrences"]),
        }
        for row in _rows(folder / "locust_failures.csv")
    )


def exceptions(folder: Path) -> list[dict[str, Any]]:
    """What tasks raised, by its text."""
    return _most(
        {"text": (row["Message"] or _last_line(row["Traceback"]))[:LONGEST_TEXT], "count": int(row["Count"])}
        for row in _rows(folder / "locust_exceptions.csv")
    )


def _most(found: Any) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    try:
        kept.extend(found)
    except (KeyError, ValueError, TypeError):  # cut off: what came before is there
        pass
    return sorted(kept, key=lambda row: -row["count"])[:MOST_ROWS]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        text = files.read_text(path)
    except OSError:
        return
    # A failure may say all of a response; and what ends a line is for csv to judge, not for str.splitlines.
    csv.field_size_limit(files.LARGEST)
    try:
        yield from itertools.islice(files.table(io.StringIO(text, newline="")), MOST_READ)
    except (csv.Error, ValueError):
        return


def _number(text: str) -> float | None:
    """Also None: "N/A", and what is none or has no end."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "unknown"
