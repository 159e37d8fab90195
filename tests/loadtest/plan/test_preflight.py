"""Preflight: each limit that is too low is found once, and nothing is found where all is well."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan.preflight import RESULTS_BYTES, Finding, check, plan_lines
from parked.loadtest.plan.sizing import Plan, estimate

#: As many ports as the kernel's default range has, below those that these tests listen on.
CLIENT_PORTS = (1024, 29255)


def machine(**changes: object) -> Machine:
    """A machine on which the reference run finds nothing to complain about."""
    good = replace(
        Machine.read(),
        cpu_count=2,
        memory_available_bytes=23 * 2**30,
        nofile_soft=1024,
        nofile_hard=20_000,
        nr_open=1 << 20,
        file_max=2_466_183,
        file_nr=400,
        port_range=CLIENT_PORTS,
        reserved_ports=(),
        somaxconn=4096,
        tcp_mem_pages=(287_901, 383_869, 575_802),
        conntrack_max=None,
        conntrack_count=None,
    )
    return replace(good, **changes)  # type: ignore[arg-type]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(100_000, port=_free_port(), master_port=None, results=tmp_path / "results")


def _listener(host: str = "127.0.0.1") -> socket.socket:
    """Above the kernel's default range, where no connection of another program takes the port meanwhile."""
    for port in random.sample(range(61_000, 65_536), 100):
        with contextlib.suppress(OSError):
            return socket.create_server((host, port))
    raise AssertionError("a hundred ports above 61000 are in use")


def _free_port() -> int:
    with _listener() as listener:
        return int(listener.getsockname()[1])


def _only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, "\n".join(map(str, findings))
    return findings[0]


def test_the_default_limits_suffice_for_100_000_so_nothing_is_found(plan: Plan) -> None:
    assert check(machine(), plan) == []


def test_400_000_fit_the_default_port_range_since_each_process_has_its_own_address(plan: Plan) -> None:
    assert check(machine(), replace(plan, connections=400_000)) == []


@pytest.mark.parametrize(
    ("limits", "asked", "severity", "setting", "fix"),
    [
        ({}, {"client_workers": 2}, "blocks", "RLIMIT_NOFILE (hard)", "ulimit -Hn 50500"),
        ({}, {"server_workers": 3}, "blocks", "RLIMIT_NOFILE (hard)", "more server processes"),
        ({"nr_open": 20_000}, {"client_workers": 2}, "blocks", "RLIMIT_NOFILE (hard)", "fs.nr_open=50500"),
        ({"file_max": 150_000}, {}, "blocks", "fs.file-max", "sysctl -w fs.file-max=20"),
        ({"memory_available_bytes": 2**29}, {}, "blocks", "available memory", "-c"),
        (
            {"tcp_mem_pages": (1, 2, 3)},
            {},
            "warns",
            "net.ipv4.tcp_mem (pressure)",
            "sysconfig/apply -c 100000",
        ),
        (
            {"conntrack_max": 65_536, "conntrack_count": 7},
            {},
            "blocks",
            "net.netfilter.nf_conntrack_max",
            "nf_conntrack_max=100007",
        ),
        (
            {"conntrack_max": 65_536, "conntrack_count": 0},
            {},
            "warns",
            "net.netfilter.nf_conntrack_max",
            "nf_conntrack_max=100000",
        ),
        ({"somaxconn": 128}, {}, "warns", "net.core.somaxconn", "somaxconn=4096"),
        ({}, {"think_s": (1.0, 3.0)}, "warns", "the number of CPU cores", "--think"),
        (
            {},
            {"source_addresses": 1, "local_server": False},
            "blocks",
            "local ports x source addresses",
            'ip_local_port_range="1024 65535", and sudo sysconfig/addresses add DEV CIDR for 2 addresses',
        ),
        (
            {},
            {"source_addresses": 2, "local_server": False},
            "blocks",
            "local ports x source addresses",
            'ip_local_port_range="1024 65535"',
        ),
    ],
)
def test_a_limit_that_is_too_low_is_found_with_the_command_that_mends_it(
    plan: Plan, limits: dict[str, object], asked: dict[str, object], severity: str, setting: str, fix: str
) -> None:
    found = _only(check(machine(**limits), replace(plan, **asked)))  # type: ignore[arg-type]
    assert (found.severity, found.setting) == (severity, setting)
    assert fix in found.fix
    assert found.found in str(found)
    assert found.needed in str(found)


def test_memory_that_hardly_suffices_is_a_warning(plan: Plan) -> None:
    need = estimate(plan, machine()).memory_bytes
    assert check(machine(memory_available_bytes=need * 2), plan) == []
    found = _only(check(machine(memory_available_bytes=need * 105 // 100), plan))
    assert (found.severity, found.setting) == ("warns", "available memory")


def test_what_blocks_comes_first(plan: Plan) -> None:
    findings = check(machine(somaxconn=128, tcp_mem_pages=(1, 2, 3), file_max=10), plan)
    assert [finding.severity for finding in findings] == ["blocks", "warns", "warns"]


def test_a_low_soft_limit_is_no_finding_since_processes_raise_their_own(plan: Plan) -> None:
    assert check(machine(nofile_soft=256), plan) == []


def test_a_port_that_a_client_may_take_is_to_be_reserved_beside_those_that_are(plan: Plan) -> None:
    port = _free_port()
    wide = machine(port_range=(1024, 65535), reserved_ports=((8089, 8090),))
    found = _only(check(wide, replace(plan, web_port=port)))
    assert found.severity == "warns"
    numbers = ",".join(map(str, sorted([plan.port, port])))
    assert f'ip_local_reserved_ports="8089-8090,{numbers}"' in found.fix
    reserved = replace(wide, reserved_ports=((port, port), (plan.port, plan.port)))
    assert check(reserved, replace(plan, web_port=port)) == []


@pytest.mark.parametrize("which", ["port", "master_port", "web_port"])
def test_a_busy_port_blocks_and_a_free_one_does_not(plan: Plan, which: str) -> None:
    with _listener() as listener:
        port = listener.getsockname()[1]
        found = _only(check(machine(), _at(plan, which, port)))
        assert (found.severity, found.setting, found.found) == ("blocks", f"port {port}", "in use")
    assert check(machine(), _at(plan, which, port)) == []


@pytest.mark.parametrize("which", ["master_port", "web_port"])
def test_a_port_is_busy_only_where_the_run_listens(plan: Plan, which: str) -> None:
    with _listener("127.0.0.2") as listener:
        port = listener.getsockname()[1]
        assert check(machine(), _at(plan, which, port)) == []
        everywhere = _at(replace(plan, master_host=""), "master_port", port)
        assert _only(check(machine(), everywhere)).found == "in use"


def _at(plan: Plan, which: str, port: int) -> Plan:
    return replace(plan, connections=100, **{which: port})  # type: ignore[arg-type]


def test_the_port_of_a_server_that_runs_already_may_be_in_use(plan: Plan) -> None:
    with _listener() as listener:
        running = replace(plan, port=listener.getsockname()[1], start_server=False)
        assert check(machine(), running) == []


def test_a_results_folder_below_a_file_blocks(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = _only(check(machine(), replace(plan, results=tmp_path / "file" / "results")))
    assert (found.severity, found.setting) == ("blocks", "results folder")


@pytest.mark.parametrize(
    ("free", "blocks"), [(0, True), (RESULTS_BYTES // 4096 - 1, True), (RESULTS_BYTES // 4096, False)]
)
def test_a_full_disk_blocks(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, blocks: bool
) -> None:
    disk = os.statvfs_result((4096, 4096, 1 << 20, free, free, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    found = check(machine(), replace(plan, results=tmp_path / "new"))
    assert [(it.severity, it.setting) for it in found] == [("blocks", "results folder")] * blocks
    assert not blocks or str(found[0]).startswith(f"results folder is on a disk with {free * 4:,} KiB free")


def test_a_disk_that_does_not_say_its_size_is_not_full(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255)))
    assert check(machine(), replace(plan, results=tmp_path)) == []


def test_the_plan_is_aligned_and_names_its_figures(plan: Plan) -> None:
    lines = plan_lines(machine(), replace(plan, port=8000))
    columns = {len(line) - len(line.partition("  ")[2].lstrip()) for line in lines}
    assert len(columns) == 1
    text = "\n".join(lines)
    for part in ("100,000 to 127.0.0.1:8000", "2,000/s offered", "think 10-90 s", "7 client processes"):
        assert part in text
    assert max(map(len, lines)) <= 110


def test_the_plan_of_a_remote_server_leaves_the_server_out() -> None:
    text = "\n".join(plan_lines(machine(), Plan(1_000, local_server=False, host="::1", port=80)))
    assert "server" not in text
    assert "[::1]:80" in text


def test_a_plan_without_think_time_has_no_figure_for_the_rate() -> None:
    text = "\n".join(plan_lines(machine(), Plan(1_000, think_s=(0, 0))))
    assert "as fast as they are answered" in text
    assert "inf" not in text
    assert "all of 2 cores" in text
