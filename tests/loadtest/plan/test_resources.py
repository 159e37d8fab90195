"""What a machine holds, and which limit is reached first."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from parked.loadtest.plan import planning, preflight, resources, sizing
from parked.loadtest.plan.sizing import Plan
from tests.loadtest.plan.test_sizing import machine


def test_more_descriptors_are_asked_for_where_it_is_the_processes_that_take_the_cpu() -> None:
    many = resources.largest_that_fits(machine(nofile_hard=5_000), Plan(0), 10_000_000)
    assert many.bottleneck.startswith("descriptors")
    enough = resources.descriptors_that_fit(machine(nofile_hard=5_000), Plan(600_000))
    assert enough > 5_000
    few = resources.largest_that_fits(machine(nofile_hard=enough), Plan(0), 10_000_000)
    assert few.connections >= 600_000 > many.connections


def test_the_reference_machine_fits_what_auto_stops_at() -> None:
    assert resources.largest_that_fits(machine(), Plan(0)) == resources.Fit(400_000, "")


@pytest.mark.parametrize(
    ("changes", "plan", "bottleneck"),
    [
        ({"memory_available_bytes": 4 * 2**30}, Plan(0), "memory"),
        ({"cpu_count": 1, "nofile_hard": 1 << 20}, Plan(0, think_s=(5, 45)), "CPU"),
        ({}, Plan(0, think_s=(1, 3)), "CPU"),
        ({"file_max": 100_000}, Plan(0), "open files"),
        ({"conntrack_max": 65_536, "conntrack_count": 12}, Plan(0), "connection tracking"),
        ({"nofile_hard": 1 << 20}, Plan(0, source_addresses=1, local_server=False), "local ports"),
    ],
)
def test_auto_names_what_gives_way_first_and_stays_just_below_it(
    changes: dict[str, object], plan: Plan, bottleneck: str
) -> None:
    fit = resources.largest_that_fits(machine(**changes), plan)
    assert fit.bottleneck.startswith(bottleneck)
    assert 1_000 < fit.connections < 400_000
    more = resources.largest_that_fits(machine(**changes), plan, limit=fit.connections)
    assert more.connections == fit.connections  # the answer itself fits


def test_one_address_shared_by_several_processes_carries_what_its_ports_allow() -> None:
    fit = resources.largest_that_fits(machine(), Plan(0, source_addresses=1, local_server=False))
    assert fit.connections == 28_000


def test_users_without_a_think_time_are_not_bound_by_cpu() -> None:
    plan = Plan(0, think_s=(0, 0))
    assert sizing.estimate(replace(plan, connections=10), machine()).requests_per_s == math.inf
    assert resources.largest_that_fits(machine(tcp_mem_pages=None), plan).connections == 400_000


def test_an_idle_connection_tracking_table_is_no_bound() -> None:
    idle = machine(conntrack_max=65_536, conntrack_count=0)
    assert resources.largest_that_fits(idle, Plan(0)).connections == 400_000


def test_a_machine_without_memory_fits_nothing_and_says_so() -> None:
    fit = resources.largest_that_fits(machine(memory_available_bytes=10 * 2**20), Plan(0))
    assert (fit.connections, fit.bottleneck) == (0, "memory")


def test_one_think_time_is_said_to_fit_by_the_preflight_and_by_the_plan() -> None:
    small = machine(nofile_hard=1 << 20)
    plan = Plan(2_000_000)
    fits = resources.think_that_fits(small, plan)
    said = [
        finding.fix
        for finding in preflight.check(small, plan)
        if finding.setting == "the number of CPU cores"
    ]
    assert said == [f"longer think times (--think), e.g. {fits}, or fewer connections"]
    cpu = next(row for row in planning.report(small, plan).rows if row.resource == "CPU")
    assert cpu.change.endswith(f"or --think {fits}")
