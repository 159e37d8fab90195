"""`./run_test --plan`: what a machine can hold, which limits are reached first, and what to change.

All figures are the sizing model's (`parked.loadtest.plan.sizing`).  Each resource is looked at alone: how
many connections would there be if nothing else were short?  The least of these is the bottleneck, the second
least the next one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan import resources, sizing
from parked.loadtest.plan.resources import Resource
from parked.loadtest.plan.sizing import Estimate, Plan
from parked.loadtest.terms import checkout
from parked.loadtest.terms.units import size

#: Sizes beyond this are not told apart.
SIZE_MAX = 100_000_000

#: Ports of one source address where a client host has widened the range, 65535 - 1024 + 1.
WIDEST_PORTS = 64_512

EXIT_FITS, EXIT_TOO_SMALL = 0, 3


@dataclass(frozen=True)
class Row:
    """One resource of the table."""

    resource: str
    unit: str  #: of the next two
    needs: float
    has: float | None  #: None where the machine does not limit it, or does not show it
    holds: int  #: connections, as far as this resource alone is concerned; SIZE_MAX is "at least"
    fits: bool
    change: str  #: what would make it fit, empty if it does


@dataclass(frozen=True)
class Hosts:
    """How many of this machine hold the connections together, each with one side only."""

    client_hosts: int
    connections_a_client_host: int
    addresses_a_client_host: int  #: towards one server address and port, with the widest range of ports
    client_bottleneck: str
    server_hosts: int
    connections_a_server_host: int
    server_bottleneck: str


@dataclass(frozen=True)
class Report:
    """Everything that `--plan` shows."""

    plan: Plan
    machine: Machine
    need: Estimate
    rows: tuple[Row, ...]  #: the scarcest first
    hosts: Hosts | None  #: None where one machine is enough, or where not even one connection fits on it

    @property
    def fits(self) -> bool:
        return all(row.fits for row in self.rows)

    @property
    def exit_code(self) -> int:
        return EXIT_FITS if self.fits else EXIT_TOO_SMALL


def report(machine: Machine, plan: Plan) -> Report:
    """What `plan` needs of `machine`, resource by resource."""
    need = sizing.estimate(plan, machine)
    rows = sorted(
        (_row(resource, machine, plan, need) for resource in resources.RESOURCES), key=lambda row: row.holds
    )
    fits = all(row.fits for row in rows)
    return Report(plan.on(machine), machine, need, tuple(rows), None if fits else _hosts(machine, plan))


def _row(resource: Resource, machine: Machine, plan: Plan, need: Estimate) -> Row:
    sized = plan.on(machine)
    fits = resource.fits(plan, machine)
    return Row(
        resource.name,
        resource.unit,
        resource.needs(sized, machine, need),
        resource.has(sized, machine),
        resources.holds(resource, machine, plan, SIZE_MAX),
        fits,
        "" if fits else _CHANGES[resource.name](machine, plan, need),
    )


def _amount(unit: str, value: float | None) -> str:
    if value is None:
        return "not limited"
    if unit == "bytes":
        return size(value)
    return f"{value:.2f} cores" if unit == "cores" else f"{value:,.0f}"


def _more_descriptors(machine: Machine, plan: Plan, need: Estimate) -> str:
    needed = resources.descriptors_that_fit(machine, plan)
    return f"ulimit -Hn {needed} as root, for good nofile in limits.conf(5)"


def _more_cpu(machine: Machine, plan: Plan, need: Estimate) -> str:
    cores = resources.cores_that_fit(machine, plan)
    rarer = resources.think_that_fits(machine, plan)
    return f"{cores} cores, or {f'an event each {rarer} s' if plan.waits == 'events' else f'--think {rarer}'}"


def _more_memory(machine: Machine, plan: Plan, need: Estimate) -> str:
    more = need.memory_bytes / resources.MEMORY_SHARE - machine.memory_available_bytes
    return f"{size(more)} more, or client and server on machines of their own"


def _more_files(machine: Machine, plan: Plan, need: Estimate) -> str:
    return f"sudo sysctl -w fs.file-max={need.files + (machine.file_nr or 0)}"


def _more_ports(machine: Machine, plan: Plan, need: Estimate) -> str:
    addresses = sizing.addresses_needed(plan.connections, WIDEST_PORTS)
    wider = (
        ""
        if machine.usable_ports >= WIDEST_PORTS
        else f"sudo {checkout.sysconfig('apply')} -c {plan.connections} (ports)"
    )
    more = (
        f"{addresses} addresses ({checkout.sysconfig('addresses')})"
        if addresses > plan.source_addresses
        else ""
    )
    return " and ".join(filter(None, (wider, more)))


def _more_tcp_memory(machine: Machine, plan: Plan, need: Estimate) -> str:
    return f"sudo {checkout.sysconfig('apply')} -c {plan.connections} (net.ipv4.tcp_mem)"


def _more_tracking(machine: Machine, plan: Plan, need: Estimate) -> str:
    entries = need.tracked_connections + (machine.conntrack_count or 0)
    return f"sudo sysctl -w net.netfilter.nf_conntrack_max={entries}, or no tracking of this port"


#: What to change, by the name of the resource.
_CHANGES = dict(
    zip(
        (resource.name for resource in resources.RESOURCES),
        (
            _more_cpu,
            _more_memory,
            _more_descriptors,
            _more_files,
            _more_ports,
            _more_tcp_memory,
            _more_tracking,
        ),
        strict=True,
    )
)


def _hosts(machine: Machine, plan: Plan) -> Hosts | None:
    """Hosts of one side each, with the source addresses and the kernel settings that they need."""
    machine = replace(
        machine, port_range=(1024, 65_535), file_max=None, tcp_mem_pages=None, conntrack_max=None
    )
    clients = replace(plan, local_server=False, source_addresses=SIZE_MAX)
    servers = replace(plan, local_client=False)
    client, server = (
        resources.largest_that_fits(machine, side, max(1, plan.connections)) for side in (clients, servers)
    )
    if not (client.connections and server.connections):
        return None
    client_hosts = math.ceil(plan.connections / client.connections)
    each = math.ceil(plan.connections / client_hosts)
    server_hosts = math.ceil(plan.connections / server.connections)
    return Hosts(
        client_hosts,
        each,
        sizing.addresses_needed(each, WIDEST_PORTS),
        client.bottleneck,
        server_hosts,
        math.ceil(plan.connections / server_hosts),
        server.bottleneck,
    )


def lines(said: Report) -> list[str]:
    """For the terminal."""
    plan, machine, need = said.plan, said.machine, said.need
    what = "events/s" if plan.waits == "events" else "requests/s"
    rate = "as fast as answered" if math.isinf(need.requests_per_s) else f"{need.requests_per_s:,.0f} {what}"
    sides = " and ".join(
        side for side, here in (("client", plan.local_client), ("server", plan.local_server)) if here
    )
    shown = [
        f"plan     {plan.connections:,} connections, {rate}, {sides} on one machine of {machine.cpu_count} "
        f"cores, {size(machine.memory_available_bytes)} available",
        f"memory   {size(need.memory_bytes)}: kernel {size(need.kernel_bytes)}, "
        f"client {size(need.client_bytes)} ({plan.client_workers} workers), "
        f"server {size(need.server_bytes)} ({plan.server_workers} workers)",
    ]
    if not math.isinf(need.cores):
        shown.append(
            f"CPU      {need.cores:.2f} cores: kernel {need.kernel_cores:.2f}, "
            f"client {need.client_cores:.2f}, server {need.server_cores:.2f}"
        )
    shown += ["", *_table(said.rows), ""]
    first, second = said.rows[0], said.rows[1]
    at_least = "at least " if first.holds == SIZE_MAX else ""
    shown.append(f"holds    {at_least}{first.holds:,} connections; limit reached first: {first.resource}")
    shown.append(f"next     {second.resource}, at {second.holds:,}")
    if said.hosts:
        shown += _host_lines(said.hosts)
    elif not said.fits:
        shown.append("hosts    not one connection fits on this machine")
    return shown


def _table(rows: tuple[Row, ...]) -> list[str]:
    cells = [("resource", "needs", "has", "would allow", "change")]
    for row in rows:
        holds = f"{'> ' if row.holds == SIZE_MAX else ''}{row.holds:,}"
        needs, has = _amount(row.unit, row.needs), _amount(row.unit, row.has)
        cells.append((row.resource, needs, has, holds, row.change or "enough"))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return [
        f"{name:<{widths[0]}}  {needs:>{widths[1]}}  {has:>{widths[2]}}  {holds:>{widths[3]}}  {change}"
        for name, needs, has, holds, change in cells
    ]


def _host_lines(hosts: Hosts) -> list[str]:
    clients = _hosts_of(hosts.client_hosts, "client", hosts.connections_a_client_host)
    servers = _hosts_of(hosts.server_hosts, "server", hosts.connections_a_server_host)
    addresses = f"{hosts.addresses_a_client_host} source addresses{_limit(hosts.client_bottleneck)}"
    return [
        "hosts    of this kind that hold it together, with sysconfig/apply done on each:",
        f"         {clients}, {addresses}",
        f"         {servers}{_limit(hosts.server_bottleneck)}",
    ]


def _hosts_of(count: int, side: str, connections: int) -> str:
    return f"{count:,} {side} host{'s' * (count > 1)}: {connections:,} connections{' each' * (count > 1)}"


def _limit(bottleneck: str) -> str:
    return f"; {bottleneck} allows no more" if bottleneck else ""


def as_json(said: Report) -> str:
    """The same for programs: sizes in bytes, CPU in cores; what has no bound is null."""
    need: dict[str, Any] = {
        **asdict(said.need),
        "memory_bytes": said.need.memory_bytes,
        "cores": said.need.cores,
    }
    whole = {
        "connections": said.plan.connections,
        "fits": said.fits,
        "holds": said.rows[0].holds,
        "bottleneck": said.rows[0].resource,
        "next_bottleneck": said.rows[1].resource,
        "client_workers": said.plan.client_workers,
        "server_workers": said.plan.server_workers,
        "need": {name: None if math.isinf(value) else value for name, value in need.items()},
        "resources": [asdict(row) for row in said.rows],
        "hosts": asdict(said.hosts) if said.hosts else None,
        "machine": said.machine.as_dict(),
    }
    return json.dumps(whole, indent=2)
