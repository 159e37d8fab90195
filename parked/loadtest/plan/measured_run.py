"""A run's folder as the sizing model sees it: what was asked for, on what machine, and what it took.

The kernel's memory is how far what sockets pin grew beyond the first sample: what the machine had before is
not the run's. Runs from before that was counted have the slab, with whatever else was cached meanwhile:
their kernel's memory, and so the sum, is not known.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan import sizing
from parked.loadtest.plan.sizing import Plan

#: What is compared, by name: bytes at the peak, cores in the hold.
FIGURES = (
    *("kernel memory", "server memory", "client memory", "memory"),
    *("kernel CPU", "server CPU", "client CPU", "CPU"),
)


@dataclass(frozen=True)
class MeasuredRun:
    """One results folder; sizes in bytes, CPU in cores."""

    name: str
    started_unix_s: float
    plan: Plan
    machine: Machine
    client_workers: int  #: without the master
    server_workers: int  #: without the supervisor, with a process that tells the metrics
    offered_per_s: float  #: requests, or events
    figures: dict[str, float]  #: those of `FIGURES` that are known

    @classmethod
    def read(cls, folder: Path) -> MeasuredRun:
        """Of a folder with summary.json and samples.csv; a run without a hold has no figures to compare."""
        run = json.loads((folder / "summary.json").read_text())
        with (folder / "samples.csv").open(newline="") as file:
            samples = list(csv.DictReader(file))
        hold = [sample for sample in samples if sample["phase"] == "hold"]
        kernel = [int(sample["socket_bytes"]) for sample in samples if sample.get("socket_bytes")]
        hold_s = run["hold_seconds"]
        memory = {
            "server memory": run["server"]["pss_peak_bytes"] or 0,
            "client memory": run["client"]["pss_peak_bytes"],
        }
        if kernel:
            memory["kernel memory"] = max(kernel) - kernel[0]
            memory["memory"] = sum(memory.values())
        cpu = {
            "kernel CPU": fmean(float(sample["kernel_cores"]) for sample in hold if sample["kernel_cores"]),
            "server CPU": (run["server"]["cpu_seconds_in_hold"] or 0.0) / hold_s,
            "client CPU": run["client"]["cpu_seconds_in_hold"] / hold_s,
        }
        workload = run["workload"]
        plan = Plan(run["target_connections"], hold_s=hold_s, local_server=bool(run["server"]["processes"]))
        kind = workload.get("kind", "keepalive")
        if kind == "events":
            offered_per_s = run["heard"]["events_per_s"]
            plan = replace(plan, waits=kind, think_s=(plan.connections / offered_per_s,) * 2)
        else:
            offered_per_s = run["offered_rps"]
            plan = replace(plan, think_s=tuple(workload["think_s"]))
        if kind == "longpoll":
            plan = replace(plan, waits=kind)
        if kind == "keepalive":
            plan = replace(plan, body_bytes=tuple(workload["length_characters"]))
        return cls(
            folder.name,
            run["started_unix_s"],
            plan,
            _machine(run["machine"]),
            run["client"]["processes"] - 1,
            max(0, (run["server"]["processes"] or 0) - 1),
            offered_per_s,
            {**memory, **cpu, "CPU": sum(cpu.values())},
        )

    def predicted(self) -> dict[str, float]:
        """The model's figures under the same names; CPU that the machine does not have can't be measured."""
        need = sizing.estimate(self.plan, self.machine)
        there = min(1.0, self.machine.cpu_count / need.cores)
        cpu = (need.kernel_cores, need.server_cores, need.client_cores, need.cores)
        memory = (need.kernel_bytes, need.server_bytes, need.client_bytes, need.memory_bytes)
        return dict(zip(FIGURES, (*memory, *(cores * there for cores in cpu)), strict=True))


def _machine(shown: dict[str, Any]) -> Machine:
    """From summary.json, where tuples are lists; what a later version has added is left out."""
    known = {field.name for field in fields(Machine)}
    return Machine(**{name: _tuples(value) for name, value in shown.items() if name in known})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
