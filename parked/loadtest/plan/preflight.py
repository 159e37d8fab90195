"""What stands in a run's way on this machine, said before the run and with the command that fixes it.

`check` compares a plan's needs (`parked.loadtest.plan.sizing`) with the machine's limits
(`parked.loadtest.machine.machine`), `plan_lines` shows the plan.

A finding that "blocks" is a run that cannot reach its connections; one that "warns" may still pass.
What only looks like a limit is not reported: the default port range has 28,232 ports per address, but each
client process has an address of its own and never more users than descriptors.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parked.loadtest.machine.machine import Machine, format_port_ranges
from parked.loadtest.plan import resources, sizing
from parked.loadtest.plan.sizing import Plan
from parked.loadtest.terms import checkout
from parked.loadtest.terms.units import MIB, size
from parked.shared import listeners

#: Connections that wait in one listener's queue while its worker is busy for this long in the ramp.
ACCEPT_STALL_S = 0.5

#: The widest range of local ports: those below 1024 belong to services.
WIDEST_PORT_RANGE = (1024, 65535)

#: Above this share of what is free, an estimate that fits is worth a warning.
MEMORY_WARN_SHARE = resources.MEMORY_SHARE

#: Bytes of a small run's folder: Locust's page is half of it, then there are ours, the rows and five plots.
RESULTS_BYTES = 2 * MIB

Severity = Literal["blocks", "warns"]


@dataclass(frozen=True)
class Finding:
    """One setting that does not suit the plan."""

    severity: Severity
    setting: str
    found: str
    needed: str
    why: str  #: what happens if the run is started all the same
    fix: str  #: a command, or what to ask for instead

    def __str__(self) -> str:
        if self.found == "in use":
            return f"{self.setting} is in use: {self.why}; fix: {self.fix}"
        return f"{self.setting} is {self.found}, needs {self.needed}: {self.why}; fix: {self.fix}"


def check(machine: Machine, plan: Plan) -> list[Finding]:
    """Everything that is too low for `plan` on `machine`, what blocks first.

    Opens and closes a listening socket on each port that the run will listen on; changes nothing else.
    """
    plan = plan.on(machine)
    need = sizing.estimate(plan, machine)
    findings = [
        *_descriptors(machine, plan),
        *_open_files(machine, plan, need),
        *_ports(machine, plan),
        *_memory(machine, need),
        *_conntrack(machine, plan, need),
        *_busy_ports(plan),
        *_results(plan.results),
        *_reserved_ports(machine, plan),
        *_tcp_memory(machine, plan, need),
        *_backlog(machine, plan),
        *_cpu(machine, plan, need),
    ]
    return sorted(findings, key=lambda finding: finding.severity != "blocks")


def _descriptors(machine: Machine, plan: Plan) -> Iterator[Finding]:
    """The hard limit counts: our processes raise their own soft limit to it."""
    sides = [
        (
            "client",
            plan.client_workers,
            sizing.users_of_a_worker(plan) + sizing.CLIENT_DESCRIPTORS_RESERVED,
        )
    ]
    if plan.local_server and plan.start_server:  # a server that runs already has limits of its own
        workers = min(plan.server_workers, listeners.MAX_WORKERS)  # the server starts no more
        share = listeners.fullest_share(plan.connections, workers)
        sides.append(("server", workers, listeners.nofile_for(share)))
    for side, workers, needed in sides:
        if needed > machine.nofile_hard:
            beyond = machine.nr_open is not None and needed > machine.nr_open
            raise_first = f"sudo sysctl -w fs.nr_open={needed}, then " if beyond else ""
            yield Finding(
                "blocks",
                "RLIMIT_NOFILE (hard)",
                f"{machine.nofile_hard:,}",
                f"{needed:,} in each of {_count(workers, f'{side} process')}",
                "connections fail with EMFILE, too many open files",
                f"{raise_first}ulimit -Hn {needed} as root (lasting: nofile in /etc/security/limits.conf),"
                f" or more {side} processes",
            )


def _open_files(machine: Machine, plan: Plan, need: sizing.Estimate) -> Iterator[Finding]:
    if machine.file_max is None:
        return
    needed = need.files + (machine.file_nr or 0)
    if needed > machine.file_max:
        yield Finding(
            "blocks",
            "fs.file-max",
            f"{machine.file_max:,}",
            f"{needed:,}",
            "every process of the machine gets ENFILE, also those that are not ours",
            f"sudo sysctl -w fs.file-max={needed}",
        )


def _ports(machine: Machine, plan: Plan) -> Iterator[Finding]:
    room = machine.usable_ports * plan.source_addresses
    if plan.connections <= room:
        return
    first, last = WIDEST_PORT_RANGE
    addresses = sizing.addresses_needed(plan.connections, last - first + 1)
    commands = [] if machine.port_range == WIDEST_PORT_RANGE else [
        f'sudo sysctl -w net.ipv4.ip_local_port_range="{first} {last}"'
    ]  # fmt: skip
    if addresses > plan.source_addresses:
        script = checkout.sysconfig("addresses")
        commands.append(f"sudo {script} add DEV CIDR for {addresses} addresses in all")
    yield Finding(
        "blocks",
        "local ports x source addresses",
        f"{machine.usable_ports:,} x {plan.source_addresses:,} = {room:,}",
        f"{plan.connections:,}",
        "connect() fails with EADDRNOTAVAIL once all ports to the server are taken",
        ", and ".join(commands) or "release net.ipv4.ip_local_reserved_ports",
    )


def _memory(machine: Machine, need: sizing.Estimate) -> Iterator[Finding]:
    available = machine.memory_available_bytes
    if need.memory_bytes <= available * MEMORY_WARN_SHARE:
        return
    blocks = need.memory_bytes > available
    yield Finding(
        "blocks" if blocks else "warns",
        "available memory",
        size(available),
        f"about {size(need.memory_bytes)}",
        "the kernel ends processes when memory runs out (OOM killer)"
        if blocks
        else f"less than {1 - MEMORY_WARN_SHARE:.0%} is left for everything else",
        "fewer connections (-c), more memory, or the server on another machine (--host)",
    )


def _tcp_memory(machine: Machine, plan: Plan, need: sizing.Estimate) -> Iterator[Finding]:
    if machine.tcp_mem_pages is None:
        return
    _, pressure, _ = machine.tcp_mem_pages
    if need.tcp_pages > pressure:
        yield Finding(
            "warns",
            "net.ipv4.tcp_mem (pressure)",
            f"{pressure:,} pages",
            f"{need.tcp_pages:,} pages",
            f"if one side stalls for {sizing.STALL_S:.0f} s, the kernel shrinks windows and drops segments",
            f"sudo {checkout.sysconfig('apply')} -c {plan.connections}",
        )


def _conntrack(machine: Machine, plan: Plan, need: sizing.Estimate) -> Iterator[Finding]:
    """A table in use blocks; an empty one is worth a word, since a firewall rule may start tracking."""
    if machine.conntrack_max is None:
        return
    tracking = bool(machine.conntrack_count)
    needed = need.tracked_connections + (machine.conntrack_count or 0)
    if needed > machine.conntrack_max:
        yield Finding(
            "blocks" if tracking else "warns",
            "net.netfilter.nf_conntrack_max",
            f"{machine.conntrack_max:,}",
            f"{needed:,}",
            "connections are tracked here, and a full table drops packets"
            if tracking
            else "nothing is tracked now; if a firewall rule starts it, a full table drops packets",
            f"sudo sysctl -w net.netfilter.nf_conntrack_max={needed}",
        )


def _listening(plan: Plan) -> list[tuple[str, str, int]]:
    """(flag, host, port) of each port that this run listens on."""
    ports = []
    if plan.local_server and plan.start_server:
        ports.append(("--host", plan.host, plan.port))
    if plan.master_port:
        ports.append(("--master-port", plan.master_host, plan.master_port))
    if plan.web_port:
        ports.append(("--web-port", "127.0.0.1", plan.web_port))
    if plan.metrics:
        ports.append(("--metrics", *plan.metrics))
    return ports


def _busy_ports(plan: Plan) -> Iterator[Finding]:
    for flag, host, port in _listening(plan):
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(1)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                continue  # the host is not an address of ours, or does not resolve: the probe says that
            busy = error.errno == errno.EADDRINUSE
            yield Finding(
                "blocks",
                f"port {port}",
                "in use" if busy else "not permitted",
                "free",
                "the run cannot listen on it",
                f"another {flag}, or see who has it: sudo ss -Hltnp 'sport = :{port}'" if busy
                else f"another {flag}, or sudo sysctl -w net.ipv4.ip_unprivileged_port_start={port}",
            )  # fmt: skip


def _reserved_ports(machine: Machine, plan: Plan) -> Iterator[Finding]:
    """A listening port that connect() may choose is lost to the next start, or connects to itself."""
    ports = {port for _, _, port in _listening(plan)} | ({plan.port} if plan.local_server else set())
    open_ports = sorted(port for port in ports if machine.may_take_port(port))
    if open_ports:
        together = tuple(sorted({*machine.reserved_ports, *((port, port) for port in open_ports)}))
        yield Finding(
            "warns",
            "net.ipv4.ip_local_reserved_ports",
            format_port_ranges(machine.reserved_ports) or "empty",
            format_port_ranges(together),
            f"a client connection may take {_list(open_ports)} as its own, then nothing can listen there",
            f'sudo sysctl -w net.ipv4.ip_local_reserved_ports="{format_port_ranges(together)}"',
        )


def _backlog(machine: Machine, plan: Plan) -> Iterator[Finding]:
    if machine.somaxconn is None or not plan.local_server:
        return
    needed = math.ceil(min(plan.connections, plan.spawn_per_s * ACCEPT_STALL_S) / plan.server_workers)
    if needed > machine.somaxconn:
        yield Finding(
            "warns",
            "net.core.somaxconn",
            f"{machine.somaxconn:,}",
            f"{needed:,}",
            f"a worker that is busy for {ACCEPT_STALL_S} s in the ramp overflows its queue; each dropped"
            " SYN costs its client a second",
            f"sudo sysctl -w net.core.somaxconn={max(4096, needed)}",
        )


def _cpu(machine: Machine, plan: Plan, need: sizing.Estimate) -> Iterator[Finding]:
    if math.isinf(need.cores) or need.cores <= machine.cpu_count:
        return
    yield Finding(
        "warns",
        "the number of CPU cores",
        str(machine.cpu_count),
        f"about {need.cores:.1f} for {need.requests_per_s:,.0f} requests/s",
        "the rate will stay below what is offered, and latency grows",
        f"{_rarer(machine, plan)}, or fewer connections",
    )


def _rarer(machine: Machine, plan: Plan) -> str:
    fits = resources.think_that_fits(machine, plan)
    if plan.waits == "events":
        return f"rarer events, e.g. --path '/events?every={fits}'"
    return f"longer think times (--think), e.g. {fits}"


def _results(folder: Path) -> Iterator[Finding]:
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        disk = os.statvfs(nearest)
        free = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and free < RESULTS_BYTES:  # some file systems don't say
            yield Finding(
                "blocks",
                "results folder",
                f"on a disk with {free // 1024:,} KiB free",
                size(RESULTS_BYTES),
                "what is measured could not be kept",
                "room on it, or another --results",
            )
        return
    yield Finding(
        "blocks",
        "results folder",
        f"{nearest} is {'not writable' if nearest.is_dir() else 'no directory'}",
        "a writable directory",
        "nothing of the run could be kept",
        "another --results",
    )


def plan_lines(machine: Machine, plan: Plan) -> list[str]:
    """The plan for the terminal, one aligned line per fact."""
    plan = plan.on(machine)
    need = sizing.estimate(plan, machine)
    connections = f"{plan.connections:,} to {_host_port(plan)}, opened at {plan.spawn_per_s:,.0f}/s,"
    connections += f" held for {plan.hold_s:,.0f} s"
    if math.isinf(need.requests_per_s):
        requests = "as fast as they are answered"
    else:
        mib = need.received_bytes_per_s / MIB
        requests = f"{need.requests_per_s:,.0f}/s offered ({mib:,.1f} MiB/s received)"
    if plan.waits == "events":
        requests = f"an event each {_range(plan.think_s)} s to everybody, {need.requests_per_s:,.0f} events/s"
    elif plan.waits:
        requests += f", each answered {_range(plan.think_s)} s after it was sent"
    else:
        requests += f", think {_range(plan.think_s)} s, body {_range(plan.body_bytes)} bytes"
    if plan.workload:
        requests = f"as {plan.workload} makes them; the estimates below are for {requests}"
    ours = plan.local_server and plan.start_server
    processes = f"{_count(plan.server_workers, 'server worker')} (here), " if ours else ""
    if plan.local_server and not ours:
        processes = "the server that runs here, "
    processes += f"{_count(plan.client_workers, 'client process')} and a master,"
    processes += f" {machine.nofile_hard:,} descriptors each"
    each = sizing.users_of_a_worker(plan)
    per_process = sizing.addresses_needed(each, machine.usable_ports)
    used = min(plan.source_addresses, per_process * plan.client_workers)
    addresses = f"{_count(used, 'source address')} of {machine.usable_ports:,} ports,"
    addresses += f" {each:,} connections per client process"
    whole = size(need.memory_bytes if ours else need.memory_bytes - need.server_bytes)
    memory = f"about {whole} of {size(machine.memory_available_bytes)} available:"
    memory += f" kernel {size(need.kernel_bytes)}, client {size(need.client_bytes)}"
    cores = _count(machine.cpu_count, "core")
    if math.isinf(need.cores):
        cpu = f"all of {cores}"
    else:
        own = need.cores if ours else need.cores - need.server_cores
        cpu = f"about {own:.2f} of {cores}: kernel {need.kernel_cores:.2f},"
        cpu += f" client {need.client_cores:.2f}"
    if ours:
        memory += f", server {size(need.server_bytes)}"
        cpu += "" if math.isinf(need.cores) else f", server {need.server_cores:.2f}"
    elif plan.local_server:
        memory += "; the server's is its own"
    rows = {
        "connections": connections,
        "requests": requests,
        "processes": processes,
        "addresses": addresses,
        "memory": memory,
        "CPU": cpu,
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {text}" for name, text in rows.items()]


def _host_port(plan: Plan) -> str:
    return f"[{plan.host}]:{plan.port}" if ":" in plan.host else f"{plan.host}:{plan.port}"


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _range(ends: tuple[float, float]) -> str:
    return "-".join(f"{end:,g}" if end < 1e5 else f"{end:,.0f}" for end in dict.fromkeys(ends))


def _list(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
