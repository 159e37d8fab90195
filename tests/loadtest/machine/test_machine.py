"""Machine: read from a made-up /proc, and from the real one."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from parked.loadtest.machine.machine import Machine, format_port_ranges, parse_port_ranges

GIB = 1 << 30

FILES = {
    "meminfo": "MemTotal:  16777216 kB\nMemAvailable:  8388608 kB\nHugePages_Total: 3\nSwapFree: 1024 kB\n",
    "cpuinfo": "processor : 0\nmodel name : Fast CPU\nflags : fpu hypervisor\n\nprocessor : 1\nflags :\n",
    "self/status": "Name:\tx\nCpus_allowed_list:\t0-2,5\n",
    "self/limits": "Limit  Soft Hard Units\nMax open files  1024   20000   files  \n",
    "self/cgroup": "0::/a/b\n",
    "sys/kernel/osrelease": "6.1.0-test\n",
    "sys/fs/file-nr": "512\t0\t1000000\n",
    "sys/fs/file-max": "1000000\n",
    "sys/fs/nr_open": "1048576\n",
    "sys/net/ipv4/ip_local_port_range": "1024\t65535\n",
    "sys/net/ipv4/ip_local_reserved_ports": "80,5557,8000-8010\n",
    "sys/net/ipv4/tcp_mem": "100\t200\t300\n",
    "sys/net/ipv4/tcp_rmem": "4096\t131072\t6291456\n",
    "sys/net/ipv4/tcp_wmem": "4096\t16384\t4194304\n",
    "sys/net/core/somaxconn": "4096\n",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    write(tmp_path / "proc", FILES)
    return tmp_path / "proc"


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def test_every_value_is_read_in_the_unit_of_its_name(proc: Path, cgroup: Path) -> None:
    machine = Machine.read(proc, cgroup)
    assert machine.cpu_count == 4
    assert (machine.cpu_model, machine.virtual, machine.kernel) == ("Fast CPU", True, "6.1.0-test")
    assert (machine.memory_total_bytes, machine.memory_available_bytes) == (16 * GIB, 8 * GIB)
    assert machine.swap_free_bytes == 1 << 20
    assert (machine.nofile_soft, machine.nofile_hard, machine.nr_open) == (1024, 20000, 1048576)
    assert (machine.file_nr, machine.file_max) == (512, 1000000)
    assert machine.tcp_mem_pages == (100, 200, 300)
    assert machine.tcp_rmem_bytes == (4096, 131072, 6291456)
    assert machine.somaxconn == 4096


def test_what_the_kernel_does_not_show_is_none(proc: Path, cgroup: Path) -> None:
    machine = Machine.read(proc, cgroup)
    assert machine.conntrack_max is None
    assert machine.conntrack_count is None
    assert machine.tcp_max_syn_backlog is None


def test_ports_are_the_range_less_the_reserved_ones_in_it(proc: Path, cgroup: Path) -> None:
    machine = Machine.read(proc, cgroup)
    assert machine.usable_ports == 65535 - 1024 + 1 - 1 - 11  # port 80 is not in the range
    assert machine.may_take_port(8011)
    assert not machine.may_take_port(8010)
    assert not machine.may_take_port(80)


def test_port_ranges_are_read_and_written_in_the_form_of_the_sysctl() -> None:
    assert parse_port_ranges("") == ()
    assert parse_port_ranges("8000-8010,5557\n") == ((5557, 5557), (8000, 8010))
    assert format_port_ranges(((5557, 5557), (8000, 8010))) == "5557,8000-8010"


def test_a_cgroup_v2_limit_of_any_ancestor_counts(proc: Path, cgroup: Path) -> None:
    write(
        cgroup,
        {
            "a/b/memory.max": "max\n",
            "a/b/cpu.max": "max 100000\n",
            "a/memory.max": f"{4 * GIB}\n",
            "a/memory.current": f"{3 * GIB}\n",
            "a/memory.stat": f"anon 1\ninactive_file {GIB}\n",
            "a/cpu.max": "150000 100000\n",
        },
    )
    machine = Machine.read(proc, cgroup)
    assert machine.cpu_count == 2  # one and a half, rounded up
    assert (machine.memory_total_bytes, machine.memory_available_bytes) == (4 * GIB, 2 * GIB)


def test_cgroup_v1_limits_count_even_where_the_path_is_not_visible(proc: Path, cgroup: Path) -> None:
    write(proc, {"self/cgroup": "4:memory:/docker/0123\n1:cpu:/docker/0123\n0::/\n"})
    write(
        cgroup,
        {
            "memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "memory/memory.usage_in_bytes": f"{GIB}\n",
            "memory/memory.stat": "total_inactive_file 0\n",
            "cpu/cpu.cfs_quota_us": "100000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    machine = Machine.read(proc, cgroup)
    assert (machine.cpu_count, machine.memory_available_bytes) == (1, GIB)


def test_the_unlimited_value_of_cgroup_v1_is_no_limit(proc: Path, cgroup: Path) -> None:
    write(proc, {"self/cgroup": "4:memory:/\n1:cpu:/\n"})
    write(
        cgroup,
        {"memory/memory.limit_in_bytes": "9223372036854771712\n", "cpu/cpu.cfs_quota_us": "-1\n"},
    )
    machine = Machine.read(proc, cgroup)
    assert (machine.cpu_count, machine.memory_total_bytes) == (4, 16 * GIB)


def test_the_real_machine_agrees_with_the_standard_library() -> None:
    machine = Machine.read()
    assert 1 <= machine.cpu_count <= len(os.sched_getaffinity(0))
    assert (machine.nofile_soft, machine.nofile_hard) == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert machine.kernel == os.uname().release
    assert 0 < machine.memory_available_bytes <= machine.memory_total_bytes
    assert json.loads(json.dumps(machine.as_dict()))["cpu_count"] == machine.cpu_count


def test_a_machine_can_be_described_by_what_matters() -> None:
    machine = Machine.described("cores=16,memory=64G,nofile=1M,ports=60000")
    assert (machine.cpu_count, machine.memory_total_bytes, machine.nofile_hard) == (16, 64 * 2**30, 1_000_000)
    assert machine.usable_ports == 60_000
    assert machine.memory_available_bytes < machine.memory_total_bytes
    other = Machine.described("cores=2,memory=24GiB,file_max=5,tcp_mem=400,conntrack=7")
    assert (other.file_max, other.tcp_mem_pages, other.conntrack_max) == (5, (300, 400, 600), 7)


def test_what_is_not_described_is_what_linux_computes_for_that_memory() -> None:
    """Linux 6.18 with 25,276,514,304 bytes: file-max 2,466,183, tcp_mem 287,901 383,869 575,802."""
    machine = Machine.described("cores=2,memory=24106M")
    assert machine.file_max == pytest.approx(2_466_183, rel=0.01)
    assert machine.tcp_mem_pages == pytest.approx((287_901, 383_869, 575_802), rel=0.01)
    assert machine.usable_ports == 28_232
    assert machine.conntrack_max is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cores",
        "cores=2",
        "cores=0,memory=1G",
        "cores=2,memory=1.5G",
        "cores=2,memory=1G,x=1",
        "cores=1e3",
    ],
)
def test_a_description_that_makes_no_sense_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(a machine needs|'.*?'(:| is not))"):
        Machine.described(text)
