"""The sizing model against every committed run: who adds a run to results/reference is told if it is off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from parked.loadtest.plan.coefficients import MODERATED_SHARE
from parked.loadtest.plan.measured_run import FIGURES, MeasuredRun

REFERENCE = Path(__file__).resolve().parents[3] / "results/reference"
RUNS = sorted(REFERENCE.glob("*/summary.json"))

TOLERANCE = 0.15

#: By what a small run may be off whatever its share: what others do on the machine.
SLACK_CORES = 0.02
SLACK_BYTES = 32 << 20

#: Figures of one side alone. Where no core is idle, the scheduler decides which side gets them.
OF_A_SIDE = {"server CPU", "client CPU"}


def allowed(name: str, figure: float) -> float:
    return max(TOLERANCE * figure, SLACK_CORES if name.endswith("CPU") else SLACK_BYTES)


def test_there_are_reference_runs() -> None:
    sizes = {"20000", "100000", "400000", "600000", "1000000", "1600000"}
    assert {run.parent.name for run in RUNS} >= {*sizes, "events-400000"}


@pytest.mark.parametrize("folder", [run.parent for run in RUNS], ids=lambda folder: folder.name)
def test_peak_memory_and_cpu_of_a_reference_run_are_predicted(folder: Path) -> None:
    run = MeasuredRun.read(folder)
    figures, predicted = run.figures, run.predicted()
    # Beside the processes' CPU the kernel's own is a few ticks in a small run; it is in the sum.
    left_out = {"kernel CPU"}
    if predicted["CPU"] >= 0.999 * MODERATED_SHARE * run.machine.cpu_count:
        left_out |= OF_A_SIDE
    off = {
        name: f"measured {figures[name]:.4g}, predicted {predicted[name]:.4g}"
        for name in FIGURES
        if name in figures
        and name not in left_out
        and abs(predicted[name] - figures[name]) > allowed(name, figures[name])
    }
    assert not off, "see benchmarks/sizing --help"


@pytest.mark.parametrize("folder", [run.parent for run in RUNS], ids=lambda folder: folder.name)
def test_the_processes_and_the_offered_rate_of_a_reference_run_are_predicted(folder: Path) -> None:
    run = MeasuredRun.read(folder)
    plan = run.plan.on(run.machine)
    assert plan.client_workers == run.client_workers
    assert run.server_workers - plan.server_workers in (0, 1)  # with the process that tells the metrics
    assert plan.offered_per_s == pytest.approx(run.offered_per_s)


def test_what_a_machine_does_not_have_is_not_predicted_to_be_used() -> None:
    run = MeasuredRun.read(REFERENCE / "400000")
    hurried = replace(run, plan=replace(run.plan, think_s=(1.0, 9.0)))
    assert hurried.predicted()["CPU"] == pytest.approx(run.machine.cpu_count)
