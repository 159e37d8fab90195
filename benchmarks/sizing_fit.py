"""Compare the sizing model with measured runs, and fit its coefficients to them.

Each coefficient is moved up and down by ever smaller steps, from where it is, as long as that brings the
relative deviations down: so a coefficient that the runs say little about stays where it was put.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from parked.loadtest.plan import coefficients
from parked.loadtest.plan.measured_run import FIGURES, MeasuredRun

#: The kernel's own CPU is a few ticks of 10 ms in a small run: it is fitted in the sum only.
FITTED = tuple(name for name in FIGURES if name != "kernel CPU")
#: Relative steps: from a third down to a thousandth.
STEPS = [0.3 * 0.75**n for n in range(20)]


def error(runs: list[MeasuredRun]) -> float:
    """Sum of the squares of all relative deviations."""
    total = 0.0
    for run in runs:
        predicted = run.predicted()
        total += sum(
            (predicted[name] / run.figures[name] - 1) ** 2 for name in FITTED if run.figures.get(name)
        )
    return total


def fit(runs: list[MeasuredRun], names: list[str]) -> None:
    """Leave the best values found in `coefficients`."""
    best = error(runs)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for name in names:
                before = getattr(coefficients, name)
                for factor in (1 + step, 1 / (1 + step)):
                    setattr(coefficients, name, before * factor)
                    if (now := error(runs)) < best - 1e-9:
                        best, improved, before = now, True, before * factor
                    setattr(coefficients, name, before)


def main() -> int:
    every = [name for name in vars(coefficients) if name.isupper() and name != "MIB"]
    parser = argparse.ArgumentParser(prog="benchmarks/sizing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="results folders")
    parser.add_argument(
        "--fit",
        nargs="*",
        choices=every,
        metavar="NAME",
        help="fit these coefficients, all without a name, and print their values",
    )
    chosen = parser.parse_args()
    try:
        runs = [MeasuredRun.read(folder) for folder in chosen.runs]
    except (OSError, KeyError, ValueError) as problem:
        parser.error(f"not a complete run: {problem}")
    if chosen.fit is not None:
        fit(runs, chosen.fit or every)
        for name in chosen.fit or every:
            print(f"{name} = {getattr(coefficients, name):.4g}")
    for run in runs:
        print(f"{run.name}: {run.plan.connections:,} connections")
        predicted = run.predicted()
        for name in filter(run.figures.__contains__, FIGURES):
            is_cpu = name.endswith("CPU")
            measured, model = (
                f"{value:.3f} cores" if is_cpu else f"{value / coefficients.MIB:,.0f} MiB"
                for value in (run.figures[name], predicted[name])
            )
            off = f"{predicted[name] / run.figures[name] - 1:+.0%}" if run.figures[name] else ""
            print(f"  {name:14} measured {measured:>13}  model {model:>13}  {off}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
