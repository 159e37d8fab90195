"""The sizing model against every committed run: who adds one is told if the model is off.

Memory and CPU are compared with runs of this version, to which the model is fitted. Those before 1.0, of
another day and other code, have the same processes and offered rates.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from parked.loadtest.plan.coefficients import MODERATED_SHARE
from parked.loadtest.plan.measured_run import FIGURES, MeasuredRun
from tests.loadtest.runs import IS_SDIST, PROJECT

RESULTS = PROJECT / "results"
BEFORE = sorted(run.parent for run in RESULTS.glob("before-1.0/*/summary.json"))
NOW = sorted(run.parent for run in RESULTS.glob("reference/*/summary.json"))
RUNS = [*BEFORE, *NOW]
in_a_checkout = pytest.mark.skipif(IS_SDIST, reason="no run comes with a source distribution")

TOLERANCE = 0.15

#: By what a small run may be off whatever its share: what others do on the machine.
SLACK_CORES = 0.02
SLACK_BYTES = 32 << 20

#: Figures of one side alone. Where no core is idle, the scheduler decides which side gets them.
OF_A_SIDE = {"server CPU", "client CPU"}


def allowed(name: str, figure: float) -> float:
    return max(TOLERANCE * figure, SLACK_CORES if name.endswith("CPU") else SLACK_BYTES)


def name_of(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


@in_a_checkout
def test_there_are_reference_runs() -> None:
    sizes = {"20000", "100000", "400000", "600000", "1000000", "1600000"}
    assert {run.name for run in BEFORE} >= sizes
    keepalive = {"20000", "36000", "100000", "400000", "600000", "1000000"}
    assert {run.name for run in NOW} >= {*keepalive, "events-400000", "longpoll-400000"}


def off(run: MeasuredRun, names: set[str]) -> dict[str, str]:
    """What the model has wrong of these."""
    figures, predicted = run.figures, run.predicted()
    return {
        name: f"measured {figures[name]:.4g}, predicted {predicted[name]:.4g}"
        for name in sorted(names & figures.keys())
        if abs(predicted[name] - figures[name]) > allowed(name, figures[name])
    }


@pytest.mark.parametrize("folder", NOW, ids=name_of)
def test_the_peak_memory_of_a_run_is_predicted(folder: Path) -> None:
    memory = {name for name in FIGURES if name.endswith("memory")}
    assert not off(MeasuredRun.read(folder), memory), "see benchmarks/sizing --help"


@pytest.mark.parametrize("folder", NOW, ids=name_of)
def test_the_cpu_of_a_run_is_predicted(folder: Path) -> None:
    run = MeasuredRun.read(folder)
    # Beside the processes' CPU the kernel's own is a few ticks in a small run; it is in the sum.
    cpu = {name for name in FIGURES if name.endswith("CPU")} - {"kernel CPU"}
    if run.predicted()["CPU"] >= 0.999 * MODERATED_SHARE * run.machine.cpu_count:
        cpu -= OF_A_SIDE
    assert not off(run, cpu), "see benchmarks/sizing --help"


@pytest.mark.parametrize("folder", RUNS, ids=name_of)
def test_the_processes_and_the_offered_rate_of_a_reference_run_are_predicted(folder: Path) -> None:
    run = MeasuredRun.read(folder)
    plan = run.plan.on(run.machine)
    assert plan.client_workers == run.client_workers
    assert run.server_workers - plan.server_workers in (0, 1)  # with the process that tells the metrics
    assert plan.offered_per_s == pytest.approx(run.offered_per_s, abs=0.01)  # which is rounded


@in_a_checkout
def test_what_a_machine_does_not_have_is_not_predicted_to_be_used() -> None:
    run = MeasuredRun.read(RESULTS / "before-1.0/400000")
    hurried = replace(run, plan=replace(run.plan, think_s=(1.0, 9.0)))
    assert hurried.predicted()["CPU"] == pytest.approx(run.machine.cpu_count)
