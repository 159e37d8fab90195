"""What there is only so much of, and so how many connections fit: cores, memory, descriptors, ports, pages.

Each resource compares what the model (`parked.loadtest.plan.sizing`) says a plan needs with what a machine
has. Every need grows with the connections, so the size that fits, the think time, the cores or the limit of
descriptors with which a size fits are all found by a binary search.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan import sizing
from parked.loadtest.plan.sizing import Estimate, Plan

#: What `-c auto` stops at: the size this project exists for.  Larger runs are asked for by number.
AUTO_CONNECTIONS_MAX = 400_000

#: How much of what is free a run may plan for.  The rest is for page tables, bursts, and other programs.
MEMORY_SHARE = 0.9

#: How busy the cores may be: at 0.95 of them 400,000 connections were held with nothing failed, at a
#: latency of 10 ms (p50) and 300 ms (p99), which is waiting for a core.
CPU_SHARE = 0.98

#: Ends of searches, beyond any machine: tenths by which a think time is stretched, cores, RLIMIT_NOFILE (the
#: kernel's own end, NR_OPEN_MAX, is about that).
STRETCH_MAX = 1_000_000
CORES_MAX = 1 << 20
NOFILE_MAX = 1 << 30

#: Share of CPU or memory that processes may take beyond what the fewest would, before it is the limit of
#: descriptors that is said to be too low.
OVERHEAD_SHARE = 0.1


@dataclass(frozen=True)
class Fit:
    """The most connections that fit (0 if not even one does), and what they would need more of.

    The bottleneck is empty where nothing but the limit that was given stands in the way.
    """

    connections: int
    bottleneck: str


@dataclass(frozen=True)
class Resource:
    """One thing that there is only so much of.  `has` is None where the machine does not show it."""

    name: str
    unit: str
    needs: Callable[[Plan, Machine, Estimate], float]
    has: Callable[[Plan, Machine], float | None]

    def fits(self, plan: Plan, machine: Machine) -> bool:
        """Whether `plan` stays within it on `machine`."""
        sized = plan.on(machine)
        has = self.has(sized, machine)
        return has is None or self.needs(sized, machine, sizing.estimate(sized, machine)) <= has


def _in_few_processes(plan: Plan, machine: Machine) -> Estimate:
    """What the plan would take if a process could have as many descriptors as it likes."""
    return sizing.estimate(
        replace(plan, client_workers=0, server_workers=0), replace(machine, nofile_hard=NOFILE_MAX)
    )


def _charged(all_: float, few: float, budget: float) -> float:
    """CPU or memory without what the number of processes adds to it, beyond a part that is not worth a word.

    It is more than it need be only because of the descriptor limit, see `_too_many_processes`.
    """
    return few + min(all_ - few, budget * OVERHEAD_SHARE)


def _cpu(plan: Plan, machine: Machine, need: Estimate) -> float:
    """Users without a think time take whatever CPU there is, so it bounds no number of them."""
    if math.isinf(need.cores):
        return 0.0
    return _charged(need.cores, _in_few_processes(plan, machine).cores, _cpu_budget(plan, machine))


def _memory(plan: Plan, machine: Machine, need: Estimate) -> float:
    few = _in_few_processes(plan, machine).memory_bytes
    return _charged(need.memory_bytes, few, _memory_budget(plan, machine))


def _cpu_budget(plan: Plan, machine: Machine) -> float:
    return machine.cpu_count * CPU_SHARE


def _memory_budget(plan: Plan, machine: Machine) -> float:
    return machine.memory_available_bytes * MEMORY_SHARE


def _too_many_processes(plan: Plan, machine: Machine) -> bool:
    """Whether it takes so many processes that there is not enough CPU or memory for them."""
    need, few = sizing.estimate(plan, machine), _in_few_processes(plan, machine)
    cpu, memory = _cpu_budget(plan, machine), _memory_budget(plan, machine)
    return (
        not math.isinf(need.cores) and need.cores - few.cores > max(cpu * OVERHEAD_SHARE, cpu - few.cores)
    ) or need.memory_bytes - few.memory_bytes > max(memory * OVERHEAD_SHARE, memory - few.memory_bytes)


def descriptors_that_fit(machine: Machine, plan: Plan) -> int:
    """The least limit of descriptors with which there are not too many processes."""
    plan = replace(plan, client_workers=0, server_workers=0)
    return _least(
        sizing.CLIENT_DESCRIPTORS_RESERVED + 1,
        NOFILE_MAX,
        lambda nofile: not _too_many_processes(plan, replace(machine, nofile_hard=nofile)),
    )


def _free(limit: int | None, used: int | None) -> int | None:
    return None if limit is None else max(0, limit - (used or 0))


def _conntrack_room(plan: Plan, machine: Machine) -> int | None:
    """Entries left, if connections are tracked now; a table that stays empty costs nothing."""
    return _free(machine.conntrack_max, machine.conntrack_count) if machine.conntrack_count else None


_CPU = Resource("CPU", "cores", _cpu, _cpu_budget)

#: Everything that bounds a size; where several do at once, the first is named.
RESOURCES: tuple[Resource, ...] = (
    _CPU,
    Resource("memory", "bytes", _memory, _memory_budget),
    Resource(
        "descriptors of a process (nofile)",
        "descriptors",
        lambda plan, machine, need: descriptors_that_fit(machine, plan),
        lambda plan, machine: machine.nofile_hard,
    ),
    Resource(
        "open files (fs.file-max)",
        "files",
        lambda plan, machine, need: need.files,
        lambda plan, machine: _free(machine.file_max, machine.file_nr),
    ),
    Resource(
        "local ports x source addresses",
        "connections",
        lambda plan, machine, need: plan.connections if plan.local_client else 0,
        lambda plan, machine: plan.source_addresses * machine.usable_ports,
    ),
    Resource(
        "TCP buffers (tcp_mem)",
        "pages",
        lambda plan, machine, need: need.tcp_pages,
        lambda plan, machine: machine.tcp_mem_pages and machine.tcp_mem_pages[1],
    ),
    Resource(
        "connection tracking (nf_conntrack_max)",
        "entries",
        lambda plan, machine, need: need.tracked_connections,
        _conntrack_room,
    ),
)


def largest_that_fits(machine: Machine, plan: Plan, limit: int = AUTO_CONNECTIONS_MAX) -> Fit:
    """How many connections `plan` can ask for on `machine`, whatever number it names now.

    Process counts that the plan names are kept, so leave them 0 (and do not call `on` before) for the
    model's own.

    Every need grows with the connections, so a binary search finds the edge; the answer is rounded down to
    two digits.
    """
    if not _too_little(machine, plan, limit):
        return Fit(limit, "")
    low, high = _edge(machine, plan, RESOURCES, limit)
    return Fit(_two_digits(low), _too_little(machine, plan, high)[0].name)


def holds(resource: Resource, machine: Machine, plan: Plan, limit: int) -> int:
    """Connections that `machine` holds, as far as `resource` alone is concerned; `limit` at most."""
    if resource.fits(replace(plan, connections=limit), machine):
        return limit
    return _two_digits(_edge(machine, plan, (resource,), limit)[0])


def _too_little(machine: Machine, plan: Plan, connections: int) -> list[Resource]:
    sized = replace(plan, connections=connections)
    return [resource for resource in RESOURCES if not resource.fits(sized, machine)]


def _edge(machine: Machine, plan: Plan, within: tuple[Resource, ...], limit: int) -> tuple[int, int]:
    """The most connections that fit within some resources (0 if not one does), and one more."""
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        sized = replace(plan, connections=middle)
        fits = all(resource.fits(sized, machine) for resource in within)
        low, high = (middle, high) if fits else (low, middle)
    return low, high


def _two_digits(number: int) -> int:
    """Rounded down: no figure of the model is better than that."""
    step: int = 10 ** max(0, len(str(number)) - 2)
    return number // step * step


def think_that_fits(machine: Machine, plan: Plan) -> str:
    """The plan's think time, stretched by the least number of tenths with which the CPU suffices."""

    def stretched(tenths: int) -> Plan:
        least, most = plan.think_s
        return replace(plan, think_s=(least * tenths / 10, most * tenths / 10))

    factor = _least(11, STRETCH_MAX, lambda tenths: _CPU.fits(stretched(tenths), machine))
    ends = stretched(factor).think_s
    return ":".join(f"{end:g}" for end in (ends[:1] if plan.waits == "events" else ends))


def cores_that_fit(machine: Machine, plan: Plan) -> int:
    """The fewest cores with which the CPU suffices."""
    return _least(1, CORES_MAX, lambda cores: _CPU.fits(plan, replace(machine, cpu_count=cores)))


def _least(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The least of `low` to `high` that fits, if what is larger than one that fits does too."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return high
