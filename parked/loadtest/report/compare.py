"""Runs side by side, each against the first: two servers, two commits, two kernels.

    ./run_test compare RUN RUN... [--fail-if 'latency_ms.p99 > 2x'] [--page compare.html]

A table for the terminal, a page with the same table and the runs' curves over each other, and thresholds on
the ratios for continuous integration. Runs of different workloads are refused; other differences that may
explain a ratio are told. Figures are computed from the runs' records anew, not taken from `summary.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from parked.loadtest.report import compare_page, comparison
from parked.loadtest.report.comparison import MOST_RUNS, Run, Threshold
from parked.loadtest.report.goals import meant
from parked.loadtest.report.record import NoRun
from parked.loadtest.terms import checkout, files
from parked.loadtest.terms.console import say
from parked.loadtest.terms.harmless import for_line

PASS, FAIL, USAGE, REFUSED = 0, 1, 2, 3


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=f"{checkout.PROGRAM} compare",
        description="Show runs side by side, with the ratio of each to the first.",
        epilog="Exit code: 0 done, 1 a threshold is crossed, 2 there is no run in a folder or an option is "
        "wrong, 3 the runs are of different workloads.",
    )
    made.add_argument(
        "run",
        type=checkout.run_folder,
        nargs="+",
        help="a run's folder, last or previous; the others are compared with the first",
    )
    made.add_argument(
        "--fail-if",
        type=Threshold.parse,
        action="append",
        default=[],
        metavar="'FIGURE > Nx'",
        help="exit with 1 if this holds for the ratio of a figure to the first run's: 'latency_ms.p99 > 2x' "
        "(it has doubled), 'hold_rps < 0.95x'; may be repeated",
    )
    made.add_argument(
        "--page",
        type=Path,
        default=Path("compare.html"),
        metavar="FILE",
        help="the page (default: compare.html)",
    )
    made.add_argument("--force", action="store_true", help="compare even runs of different workloads")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser()
    chosen = options.parse_args(arguments)
    if not 2 <= len(chosen.run) <= MOST_RUNS:
        options.error(f"between 2 and {MOST_RUNS} runs can be compared")
    try:
        runs = [Run.read(letter, folder) for letter, folder in zip("ABCDEF", chosen.run, strict=False)]
    except NoRun as error:
        print(for_line(f"compare: {error}"), file=sys.stderr)
        return USAGE
    for threshold in chosen.fail_if:
        if all(threshold.name not in run.figures for run in runs):
            options.error(f"no run has a figure {threshold.name!r}{meant(threshold.name, runs[0].figures)}")
    refused = comparison.other_workloads(runs)
    if refused and not chosen.force:
        for text in refused:
            print(for_line(f"compare: not comparable: {text}"), file=sys.stderr)
        print("compare: --force compares them all the same", file=sys.stderr)
        return REFUSED
    warnings = [*refused, *comparison.differences(runs)]
    crossed = [
        text for run in runs[1:] for threshold in chosen.fail_if if (text := threshold.crossed(run, runs[0]))
    ]
    for line in comparison.lines(runs):
        say(line)
    for text in warnings:
        say(f"differs: {text}")
    for text in crossed:
        say(f"crossed: {text}")
    try:
        files.replace(chosen.page, compare_page.of_runs(runs, warnings, crossed))
    except OSError as error:
        print(f"compare: cannot write {chosen.page}: {error.strerror}", file=sys.stderr)
        return USAGE
    say(f"page     {chosen.page}")
    return FAIL if crossed else PASS
