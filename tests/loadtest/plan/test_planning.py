"""`./run_test --plan`: the right thing is named scarce, and what it says to change is enough."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan import planning, sizing
from parked.loadtest.plan.planning import SIZE_MAX, Report, report
from parked.loadtest.plan.sizing import Plan
from parked.loadtest.terms.units import GIB, size
from tests.commands import run

USAGE, TOO_SMALL = 2, 3

#: More of everything than a million connections need.
LARGE = replace(
    Machine.described("cores=64,memory=256G,nofile=1M,ports=64512,file_max=100000000,tcp_mem=100000000"),
    conntrack_max=100_000_000,
    conntrack_count=1,
)
MILLION = Plan(1_000_000)

#: What is taken away, and the name under which it must be missed.
LOWERED: dict[str, tuple[Machine, Plan]] = {
    "descriptors": (replace(LARGE, nofile_hard=570), MILLION),
    "CPU": (replace(LARGE, cpu_count=1), MILLION),
    "memory": (replace(LARGE, memory_available_bytes=8 * GIB), MILLION),
    "open files": (replace(LARGE, file_max=1_500_000), MILLION),
    "local ports": (LARGE, replace(MILLION, source_addresses=15)),
    "TCP buffers": (replace(LARGE, tcp_mem_pages=(100_000, 200_000, 300_000)), MILLION),
    "connection tracking": (replace(LARGE, conntrack_max=900_000), MILLION),
}


def test_a_large_machine_holds_it_and_its_own_bottleneck_is_far_away() -> None:
    said = report(LARGE, MILLION)
    assert said.fits
    assert said.exit_code == 0
    assert said.hosts is None
    assert said.rows[0].holds > 4_000_000
    assert not any(row.change for row in said.rows)


@pytest.mark.parametrize("name", LOWERED)
def test_what_is_taken_away_is_named_as_the_bottleneck(name: str) -> None:
    machine, plan = LOWERED[name]
    said = report(machine, plan)
    assert said.rows[0].resource.startswith(name)
    assert [row.resource for row in said.rows if not row.fits] == [said.rows[0].resource]
    assert said.exit_code == TOO_SMALL
    assert 0 < said.rows[0].holds < 1_000_000


@pytest.mark.parametrize("name", LOWERED)
def test_so_many_as_it_holds_do_fit_and_a_tenth_more_do_not(name: str) -> None:
    machine, plan = LOWERED[name]
    holds = report(machine, plan).rows[0].holds
    assert report(machine, replace(plan, connections=holds)).fits
    assert not report(machine, replace(plan, connections=holds * 11 // 10)).fits


def test_of_two_that_are_short_the_scarcer_is_first_and_the_other_next() -> None:
    machine = replace(LARGE, memory_available_bytes=8 * GIB, file_max=500_000)
    scarce = [row.resource for row in report(machine, MILLION).rows[:2]]
    assert scarce == ["open files (fs.file-max)", "memory"]
    machine = replace(LARGE, memory_available_bytes=2 * GIB, file_max=1_500_000)
    scarce = [row.resource for row in report(machine, MILLION).rows[:2]]
    assert scarce == ["memory", "open files (fs.file-max)"]


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"[0-9][0-9,.]*", text)]


def test_what_is_to_be_changed_is_enough_once_it_is_changed() -> None:
    """Follows each command, as far as it names a number; sysconfig's own tests have the others."""

    def change(name: str) -> tuple[Machine, Plan, str]:
        machine, plan = LOWERED[name]
        return machine, plan, report(machine, plan).rows[0].change

    machine, plan, said = change("CPU")
    cores, least, most = _numbers(said)
    assert report(replace(machine, cpu_count=int(cores)), plan).fits
    assert not report(replace(machine, cpu_count=int(cores) - 1), plan).fits
    assert report(machine, replace(plan, think_s=(least, most))).fits
    # Whole seconds are said.
    assert not report(machine, replace(plan, think_s=(least * 0.9, most * 0.9))).fits

    machine, plan, said = change("descriptors")
    nofile = int(_numbers(said)[0])
    assert report(replace(machine, nofile_hard=nofile), plan).fits
    assert not report(replace(machine, nofile_hard=nofile - 1), plan).fits

    machine, plan, said = change("memory")
    more = math.ceil((_numbers(said)[0] + 0.05) * GIB)  # said in tenths
    assert report(replace(machine, memory_available_bytes=machine.memory_available_bytes + more), plan).fits

    machine, plan, said = change("open files")
    assert report(replace(machine, file_max=int(_numbers(said)[0])), plan).fits

    machine, plan, said = change("connection tracking")
    assert report(replace(machine, conntrack_max=int(_numbers(said)[0])), plan).fits

    machine, plan, said = change("local ports")
    assert report(machine, replace(plan, source_addresses=int(_numbers(said)[0]))).fits


def test_several_hosts_share_what_one_does_not_hold() -> None:
    machine = Machine.described("cores=4,memory=16G,nofile=1M")
    plan = Plan(5_000_000)
    said = report(machine, plan)
    assert said.hosts
    hosts = said.hosts
    assert hosts.client_hosts > 1
    assert hosts.connections_a_client_host * hosts.client_hosts >= plan.connections
    assert hosts.connections_a_server_host * hosts.server_hosts >= plan.connections
    assert hosts.addresses_a_client_host == math.ceil(hosts.connections_a_client_host / 64_512)
    tuned = replace(machine, port_range=(1024, 65_535), file_max=None, tcp_mem_pages=None)
    client = replace(plan, local_server=False)
    server = replace(plan, local_client=False)
    for side, count, each in (
        (client, hosts.client_hosts, hosts.connections_a_client_host),
        (server, hosts.server_hosts, hosts.connections_a_server_host),
    ):
        assert report(tuned, replace(side, connections=each)).fits
        if count > 1:  # with one host less it does not fit
            assert not report(
                tuned, replace(side, connections=math.ceil(plan.connections / (count - 1)))
            ).fits


def test_a_machine_on_which_nothing_fits_says_so() -> None:
    said = report(Machine.described("cores=1,memory=64M"), Plan(1000))
    assert said.hosts is None
    assert said.rows[0].holds == 0
    assert "hosts    not one connection fits on this machine" in planning.lines(said)


def test_users_without_a_think_time_have_no_rate_but_a_plan() -> None:
    said = report(LARGE, replace(MILLION, think_s=(0, 0)))
    assert "as fast as answered" in planning.lines(said)[0]
    assert json.loads(planning.as_json(said))["need"]["cores"] is None


def _said(said: Report) -> dict[str, list[str]]:
    return {line.split("  ")[0]: re.split(r"\s{2,}", line) for line in planning.lines(said) if line}


def test_the_table_has_a_line_a_resource_and_what_to_change() -> None:
    machine, plan = LOWERED["memory"]
    said = report(machine, plan)
    table = _said(said)
    for row in said.rows:
        name, _, has, holds, change = table[row.resource]
        assert name == row.resource
        assert has
        assert change == (row.change or "enough")
        assert holds == (f"> {SIZE_MAX:,}" if row.holds == SIZE_MAX else f"{row.holds:,}")
    assert table["memory"][1:3] == [size(sizing.estimate(plan, machine).memory_bytes), "7.2 GiB"]
    assert table["holds"][1] == f"{said.rows[0].holds:,} connections; limit reached first: memory"
    assert table["next"][1].startswith(said.rows[1].resource)


def run_test(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest", *arguments]
    return run(command, timeout=60)


def test_the_command_plans_for_another_machine_and_answers_by_its_exit_code() -> None:
    large = run_test("--plan", "-c", "1M", "--machine", "cores=16,memory=64G,nofile=1M", "--json")
    assert large.returncode == 0, large.stderr
    said = json.loads(large.stdout)
    assert (said["connections"], said["fits"], said["hosts"]) == (1_000_000, True, None)
    assert said["machine"]["cpu_count"] == 16
    assert said["holds"] == said["resources"][0]["holds"] > 1_000_000
    assert {"resource", "unit", "needs", "has", "holds", "fits", "change"} == set(said["resources"][0])

    small = run_test("--plan", "-c", "1M", "--machine", "cores=2,memory=4G")
    assert small.returncode == TOO_SMALL
    assert re.search(r"^holds    [0-9,]+ connections; limit reached first: .+$", small.stdout, re.MULTILINE)


def test_a_plan_of_this_machine_starts_and_writes_nothing() -> None:
    shown = run_test("--plan", "-c", "1k")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("plan     1,000 connections, 20 requests/s")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plan", "--machine", "cores=16"],
        ["--plan", "--machine", "cores=x,memory=64G"],
        ["--plan", "--machine", "cores=1,memory=64G,wheels=4"],
        ["--plan", "--machine", "cores=1,memory=64G,ports=70000"],
        ["--machine", "cores=1,memory=1G"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    wrong = run_test(*arguments)
    assert (wrong.returncode, wrong.stdout) == (USAGE, "")
    assert "error: " in wrong.stderr.splitlines()[-1]
    assert "Traceback" not in wrong.stderr
