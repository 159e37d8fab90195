"""Is what `summary.json` says true?

    ./run_test verify results/20261123T010000Z-20000 [RUN...]

Recomputes every figure of it from `run.json`, `samples.csv` and the latencies, compares them one by one,
reads `latencies.hdr` back, and asks the witnesses (:mod:`parked.loadtest.report.witnesses`). Each
disagreement is a line. A failed run can be true as well: this is about its figures, not about its verdict.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parked.loadtest.report import witnesses
from parked.loadtest.report.hearing import Hearing
from parked.loadtest.report.record import LARGEST_FACTS, NoRun, Record, decode, read_json, sense
from parked.loadtest.report.summary import PERCENTILES, summarise
from parked.loadtest.terms import checkout, files
from parked.loadtest.terms.console import say
from parked.loadtest.terms.harmless import for_line

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Disagreements of a folder that are told, the others are counted; characters of a line of them.
MOST_TOLD, LONGEST_LINE = 100, 500
#: Stands for a figure that one side does not have; null is a value.
_MISSING = "nothing"


def verify(folder: Path) -> Hearing:
    """Everything there is to compare in a run's folder. Raises :class:`NoRun`."""
    record = Record.read(folder)
    with sense(folder):
        return _verify(record, read_json(folder / "summary.json", LARGEST_FACTS))


def _verify(record: Record, summary: Any) -> Hearing:
    hearing = witnesses.hear(record)
    said = dict(_figures(summary))
    recomputed = dict(_figures(json.loads(json.dumps(summarise(record)))))
    for name in {**recomputed, **said}:
        left, right = said.get(name, _MISSING), recomputed.get(name, _MISSING)
        # A figure that can't be recomputed from an older run is null or empty, and was not there.
        left, right = (None if value in (_MISSING, []) else value for value in (left, right))
        same = left == right and isinstance(left, bool) == isinstance(right, bool)
        hearing.that(same, f"{name}: summary.json says {left}, recomputed is {right}")
    _histogram_file(record, said, hearing)
    return hearing


def _figures(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each figure with its path: ("latency_ms.p99", 4.5). Lists are figures of their own."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if len(key) > LONGEST_LINE:  # each figure below it would have it in its path
                raise ValueError("summary.json has a name that is too long")
            yield from _figures(inner, f"{name}.{key}" if name else key)
    else:
        yield name or "summary.json", value


def _histogram_file(record: Record, said: dict[str, Any], hearing: Hearing) -> None:
    """latencies.hdr is what other tools read: it has to give the summary's percentiles by itself."""
    try:
        histogram = decode(files.read_text(record.folder / "latencies.hdr", LARGEST_FACTS))
    except (OSError, ValueError) as error:
        hearing.that(False, f"latencies.hdr: {error}")
        return
    count, known = histogram.get_total_count(), record.latencies_and_ages.get_total_count()
    hearing.that(count == known, f"latencies.hdr: {count:,} latencies, run.json has {known:,}")
    for name, percent in PERCENTILES.items():
        value = round(histogram.get_value_at_percentile(percent) / 1000, 3) if count else None
        figure = said.get(f"latency_ms.{name}", _MISSING)
        hearing.that(figure == value, f"latency_ms.{name}: summary.json says {figure}, latencies.hdr {value}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"{checkout.PROGRAM} verify",
        description="Recompute every figure of a run's summary.json and cross-check its witnesses.",
        epilog="Exit code: 0 all agree, 1 something disagrees, 2 there is no run in a folder.",
    )
    parser.add_argument(
        "run",
        type=checkout.run_folder,
        nargs="+",
        help="a run's folder, such as results/20261123T010000Z-20000, last or previous",
    )
    code = 0
    for folder in parser.parse_args(arguments).run:
        try:
            hearing = verify(folder)
        except NoRun as error:
            print(for_line(f"verify: {error}"), file=sys.stderr)
            code = 2
            continue
        found = hearing.disagreements
        say(
            f"{folder}: {hearing.compared} comparisons, "
            + (f"{len(found)} disagree" if found else "all agree")
        )
        for text in found[:MOST_TOLD]:
            say(f"  - {text[:LONGEST_LINE]}")
        if len(found) > MOST_TOLD:
            say(f"  and {len(found) - MOST_TOLD:,} more")
        for text in hearing.explained:
            say(f"  known: {text}")
        if hearing.absent:
            say(f"  not there to be asked: {', '.join(hearing.absent)}")
        code = max(code, 1 if found else 0)
    return code
