"""What this machine has: cores, memory and the kernel limits that a load test meets.

Everything is read from /proc and the cgroup files, once, without a subprocess.  A value that the kernel
does not show here (no IPv6, no connection tracking, a sysctl hidden in a container) is None, never a guess.

Sources: Documentation/filesystems/proc.rst, Documentation/networking/ip-sysctl.rst,
Documentation/networking/nf_conntrack-sysctl.rst, Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst of the Linux kernel.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parked.loadtest.machine import kernel_memory

#: cgroup v1 says "no limit" with the largest page-aligned 64-bit number; anything near it is none.
_CGROUP_V1_UNLIMITED_BYTES = 1 << 60

PortRange = tuple[int, int]

#: What `Machine.described` can be told, and the most of each: cores, bytes, descriptors per process, local
#: ports of an address, open files of the system, pages of TCP buffers (pressure), tracked connections.
DESCRIBED = {
    "cores": 4096,
    "memory": 1 << 50,
    "nofile": 1 << 30,
    "ports": 64_512,
    "file_max": 1 << 62,
    "tcp_mem": 1 << 40,
    "conntrack": 1 << 40,
}


@dataclass(frozen=True)
class Machine:
    """Sizes are bytes and limits are counts, as the unit in the name says; None is "not shown here"."""

    cpu_count: int  #: cores that this process may use: affinity and cgroup quota, rounded up
    cpu_model: str
    virtual: bool  #: a hypervisor runs below
    kernel: str  #: release, as uname -r prints it
    memory_total_bytes: int  #: the machine's, or the cgroup's limit if that is less
    memory_available_bytes: int  #: what can be had without swapping, cgroup limits included
    swap_free_bytes: int
    nofile_soft: int  #: descriptors per process may have, RLIMIT_NOFILE
    nofile_hard: int
    nr_open: int | None  #: what RLIMIT_NOFILE can be raised to
    file_max: int | None  #: open files of the whole system
    file_nr: int | None  #: ... and how many are open now
    port_range: PortRange  #: local ports that connect() may choose, both ends included
    reserved_ports: tuple[PortRange, ...]  #: ... except these
    somaxconn: int | None
    tcp_max_syn_backlog: int | None
    page_bytes: int
    tcp_mem_pages: tuple[int, int, int] | None  #: low, pressure, max of all TCP buffers
    tcp_rmem_bytes: tuple[int, int, int] | None  #: min, default, max of one receive buffer
    tcp_wmem_bytes: tuple[int, int, int] | None
    conntrack_max: int | None  #: None where nf_conntrack is not loaded
    conntrack_count: int | None

    @classmethod
    def read(cls, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Machine:
        """This machine now.  `proc` and `cgroup` are where those file systems are mounted."""
        ipv4 = proc / "sys/net/ipv4"
        files = _numbers(proc / "sys/fs/file-nr")
        meminfo = read_meminfo(proc)
        held = kernel_memory.pinned(proc, meminfo, kernel_memory.tcp_sockets(proc))
        memory_total, memory_available = meminfo["MemTotal"], kernel_memory.left(meminfo, held)
        cores = float(len(_cpus_allowed(proc)))
        for directory in _cgroup_directories(proc, cgroup):
            if (quota := _cgroup_cores(directory)) is not None:
                cores = min(cores, quota)
            if (limit := _cgroup_memory(directory)) is not None:
                memory_total = min(memory_total, limit[0])
                memory_available = min(memory_available, limit[1])
        cpuinfo = _cpuinfo(proc)
        nofile_soft, nofile_hard = _nofile(proc)
        ports = _numbers(ipv4 / "ip_local_port_range")
        return cls(
            cpu_count=max(1, math.ceil(cores)),
            cpu_model=cpuinfo.get("model name", "unknown"),
            virtual="hypervisor" in cpuinfo.get("flags", "").split(),
            kernel=_text(proc / "sys/kernel/osrelease") or os.uname().release,
            memory_total_bytes=memory_total,
            memory_available_bytes=memory_available,
            swap_free_bytes=meminfo.get("SwapFree", 0),
            nofile_soft=nofile_soft,
            nofile_hard=nofile_hard,
            nr_open=_number(proc / "sys/fs/nr_open"),
            file_max=_number(proc / "sys/fs/file-max"),
            file_nr=files[0] if files else None,
            port_range=(ports[0], ports[1]) if ports else (32768, 60999),  # the kernel's default
            reserved_ports=parse_port_ranges(_text(ipv4 / "ip_local_reserved_ports") or ""),
            somaxconn=_number(proc / "sys/net/core/somaxconn"),
            tcp_max_syn_backlog=_number(ipv4 / "tcp_max_syn_backlog"),
            page_bytes=os.sysconf("SC_PAGE_SIZE"),
            tcp_mem_pages=_triple(ipv4 / "tcp_mem"),
            tcp_rmem_bytes=_triple(ipv4 / "tcp_rmem"),
            tcp_wmem_bytes=_triple(ipv4 / "tcp_wmem"),
            conntrack_max=_number(proc / "sys/net/netfilter/nf_conntrack_max"),
            conntrack_count=_number(proc / "sys/net/netfilter/nf_conntrack_count"),
        )

    @classmethod
    def described(cls, text: str) -> Machine:
        """A machine of which this is known: "cores=16,memory=64G,nofile=1M"; the rest as Linux 6 has it.

        `DESCRIBED` has the keys.  Raises ValueError with one sentence for a person.
        """
        given = dict.fromkeys(DESCRIBED, 0)
        for item in text.split(","):
            key, _, value = item.partition("=")
            if key not in DESCRIBED:
                raise ValueError(f"{item!r} is not KEY=VALUE with one of {', '.join(DESCRIBED)}")
            given[key] = _amount(value, 1024 if key == "memory" else 1000)
            if key == "memory" and 0 < given[key] < 1 << 20:
                raise ValueError(f"{item!r} would be bytes: give a unit, such as memory={given[key]}G")
            if not 1 <= given[key] <= DESCRIBED[key]:
                raise ValueError(f"{item!r}: needs a whole number from 1 to {DESCRIBED[key]:,}, or 64G, 1M")
        if not (given["cores"] and given["memory"]):
            raise ValueError("a machine needs at least its cores and memory, such as cores=16,memory=64G")
        nofile = given["nofile"] or 524_288  # systemd's hard limit since version 240
        pages = given["memory"] // 4096
        return cls(
            cpu_count=given["cores"],
            cpu_model="unknown",
            virtual=False,
            kernel="6",
            memory_total_bytes=given["memory"],
            memory_available_bytes=given["memory"] * 97 // 100,  # 24 GiB with an idle Debian: 97 %
            swap_free_bytes=0,
            nofile_soft=1024,
            nofile_hard=nofile,
            nr_open=max(nofile, 1 << 20),
            file_max=given["file_max"]
            or given["memory"] // 1024 // 10,  # files_maxfiles_init(), fs/file_table.c
            file_nr=0,
            port_range=(65_536 - given["ports"], 65_535) if given["ports"] else (32_768, 60_999),
            reserved_ports=(),
            somaxconn=4096,
            tcp_max_syn_backlog=4096,
            page_bytes=4096,
            # tcp_init_mem(), net/ipv4/tcp.c: a sixteenth of the pages, less and more a quarter and a half.
            tcp_mem_pages=(given["tcp_mem"] * 3 // 4, given["tcp_mem"], given["tcp_mem"] * 3 // 2)
            if given["tcp_mem"]
            else (pages * 3 // 64, pages // 16, pages * 3 // 32),
            tcp_rmem_bytes=None,
            tcp_wmem_bytes=None,
            conntrack_max=given["conntrack"] or None,
            conntrack_count=1 if given["conntrack"] else None,
        )

    @property
    def usable_ports(self) -> int:
        """Local ports that one source address can use towards one destination address and port."""
        first, last = self.port_range
        reserved = sum(max(0, min(last, high) - max(first, low) + 1) for low, high in self.reserved_ports)
        return last - first + 1 - reserved

    def may_take_port(self, port: int) -> bool:
        """Whether connect() may choose `port` as a client's own."""
        first, last = self.port_range
        return first <= port <= last and not any(low <= port <= high for low, high in self.reserved_ports)

    def as_dict(self) -> dict[str, Any]:
        """For the "machine" object of summary.json."""
        return asdict(self)


def read_meminfo(proc: Path = Path("/proc")) -> dict[str, int]:
    """/proc/meminfo in bytes; its "kB" are 1,024 bytes each."""
    sizes = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        value, _, unit = rest.strip().partition(" ")
        sizes[name] = int(value) * (1024 if unit == "kB" else 1)
    return sizes


def parse_port_ranges(text: str) -> tuple[PortRange, ...]:
    """Read "5557,8000-8010" into ((5557, 5557), (8000, 8010)), sorted."""
    ranges = []
    for item in text.replace(",", " ").split():
        low, _, high = item.partition("-")
        ranges.append((int(low), int(high or low)))
    return tuple(sorted(ranges))


def format_port_ranges(ranges: tuple[PortRange, ...]) -> str:
    """The inverse of `parse_port_ranges`, in the form that the sysctl takes."""
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _amount(text: str, thousand: int) -> int:
    """ "64G" as a number; 0 if it is none."""
    matched = re.fullmatch(r"([0-9]{1,18})([kmgt]?)(?:i?b)?", text.lower())
    return int(matched[1]) * thousand ** " kmgt".index(matched[2] or " ") if matched else 0


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:  # absent in this kernel, or hidden in a container
        return None


def _numbers(path: Path) -> list[int]:
    return [int(word) for word in (_text(path) or "").split()]


def _number(path: Path) -> int | None:
    return next(iter(_numbers(path)), None)


def _triple(path: Path) -> tuple[int, int, int] | None:
    numbers = _numbers(path)
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def _cpus_allowed(proc: Path) -> set[int]:
    """CPU numbers of this process's affinity, which a cpuset narrows too."""
    for line in (proc / "self/status").read_text().splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return {
                cpu for low, high in parse_port_ranges(line.split(":", 1)[1]) for cpu in range(low, high + 1)
            }
    return set(os.sched_getaffinity(0))


def _cpuinfo(proc: Path) -> dict[str, str]:
    """The first processor of /proc/cpuinfo (ARM has no "model name")."""
    first = (_text(proc / "cpuinfo") or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _nofile(proc: Path) -> tuple[int, int]:
    """RLIMIT_NOFILE, soft and hard; "unlimited" is not possible for it, nr_open bounds it."""
    for line in (proc / "self/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            soft, hard = line.split()[3:5]
            return int(soft), int(hard)
    raise RuntimeError(f"{proc}/self/limits does not show RLIMIT_NOFILE")


def _cgroup_directories(proc: Path, root: Path) -> Iterator[Path]:
    """This process's cgroups and all their ancestors that are visible here; each may hold a limit.

    A container without a cgroup namespace reads a path in /proc/self/cgroup that does not exist in its own
    mount, where the root is the container's group: hence all prefixes of the path are tried.
    """
    for line in (_text(proc / "self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        mount = root / controllers if controllers else root  # v2 has no controller list
        group = Path(path.lstrip("/"))
        for directory in (group, *group.parents):
            if (mount / directory).is_dir():
                yield mount / directory


def _cgroup_cores(directory: Path) -> float | None:
    """The CPU quota in cores: cpu.max (v2), cpu.cfs_quota_us over cpu.cfs_period_us (v1)."""
    if (v2 := _text(directory / "cpu.max")) is not None:
        quota, period = v2.split()
        return None if quota == "max" else int(quota) / int(period)
    v1_quota, v1_period = _number(directory / "cpu.cfs_quota_us"), _number(directory / "cpu.cfs_period_us")
    if v1_quota is None or v1_quota < 0 or not v1_period:
        return None
    return v1_quota / v1_period


def _cgroup_memory(directory: Path) -> tuple[int, int] | None:
    """Limit and what is left of it, in bytes; clean file pages count as left, since they are dropped."""
    for limit_name, usage_name, inactive_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _text(directory / limit_name)
        if limit is None or limit == "max" or int(limit) >= _CGROUP_V1_UNLIMITED_BYTES:
            continue
        stat = dict(line.split() for line in (_text(directory / "memory.stat") or "").splitlines())
        used = (_number(directory / usage_name) or 0) - int(stat.get(inactive_name, 0))
        return int(limit), max(0, int(limit) - used)
    return None
