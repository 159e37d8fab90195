"""The one model of what a run needs: processes, addresses, memory, CPU, descriptors.

Pure functions over a `Plan` (what is asked for) and a `Machine` (what there is).  The preflight, the printed
plan and `-c auto` all ask this model, so they cannot contradict each other.

Where each figure comes from: "pair" is the pair of prototypes on 2 virtual EPYC cores with 24 GiB, Python
3.11, Linux 6.18, client and server on loopback, 400,000 connections, think 10-90 s, held for 2 minutes.
Memory is PSS.  CPU is user and system time together, so it includes the kernel's work inside system calls.

The sums for addresses: a connection is told apart by source address and port once the destination is
fixed, so one source address gives as many connections to one server port as there are local ports.  With
the whole range that is 65535 - 1024 + 1 = 64,512, so 400,000 need 7 addresses; with the kernel's default
range 60999 - 32768 + 1 = 28,232, so they need 15.  Each client process has addresses of its own, and a
process held to 20,000 descriptors stays below either figure: one address a process is then enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtest.machine import Machine

KIB = 1024
MIB = 1024 * KIB

#: What `-c auto` stops at: the size this project exists for.  Larger runs are asked for by number.
AUTO_CONNECTIONS_MAX = 400_000

#: Client users that one process carries without company, so that small runs start in an instant.
USERS_OF_ONE_PROCESS = 2_000

#: Descriptors a client process keeps for other than its users: libraries, ZeroMQ, logs, connections that
#: are being replaced.  Too low ends in EMFILE, too high costs a process more.
CLIENT_DESCRIPTORS_RESERVED = 500

#: The same for a server worker: listeners, epoll, logs, files of the application.
SERVER_DESCRIPTORS_RESERVED = 200

#: SO_REUSEPORT spreads connections by hash, so a worker's share is binomial.  Six standard deviations above
#: the mean is passed once in 10^9 workers.
SERVER_SHARE_SIGMAS = 6.0

#: Bytes of kernel memory of one end of an idle connection: 4.0 GB of slab for 800,000 ends (pair); TCP 2,368
#: + inode 832 + file 192 + dentry 192 + epoll 128 + allocator slack.
KERNEL_BYTES_PER_END = 5_000

#: Bytes of a server: 234 MB in 22 workers at 400,000 connections (pair), 0.4-0.6 KB each.
SERVER_SUPERVISOR_BYTES = 25 * MIB
SERVER_WORKER_BYTES = 4 * MIB
SERVER_CONNECTION_BYTES = 500

#: Bytes of a client: 384 MB in 7 processes and a master at 100,000 users (results/reference/100000).  A
#: forked Locust 2.47 worker without users: 10 MB of its own and its part of 32 MB that all of them share.
CLIENT_MASTER_BYTES = 45 * MIB
CLIENT_WORKER_BYTES = 15 * MIB
CLIENT_USER_BYTES = 2_400

#: CPU seconds of one request: 0.8, 0.65 and 0.18 cores at 8,000 requests/s (pair).
SERVER_CPU_S_PER_REQUEST = 100e-6
CLIENT_CPU_S_PER_REQUEST = 82e-6
KERNEL_CPU_S_PER_REQUEST = 22e-6

#: Bytes of a response's status line and header fields, beside the body.
RESPONSE_HEAD_BYTES = 170

#: Pages that one request under way keeps in TCP buffers.  Measured on Linux 6.18: an unread request 1, an
#: unread response of 5.8 KB 2, of 10.4 KB 3, an idle connection none.
TCP_PAGES_PER_REQUEST = 3

#: Seconds of offered requests that may be under way at once when one side stalls (an overloaded machine).
STALL_S = 5.0

#: Open files of a process that are no connections, counted against fs.file-max.
FILES_PER_PROCESS = 100

#: How much of what is free a run may plan for.  The rest is for page tables, bursts, and other programs.
MEMORY_SHARE = 0.9
CPU_SHARE = 0.9

#: 127.1.0.0/16, from which client processes on loopback take their source addresses.
LOOPBACK_ADDRESSES = 65_536


@dataclass(frozen=True)
class Plan:
    """What one run on this machine is to do.  A count of 0 processes means: as many as the model says."""

    connections: int
    think_s: tuple[float, float] = (10.0, 90.0)  #: each user's pause, uniform between the two
    body_bytes: tuple[int, int] = (1_024, 10_240)  #: length of a response body, uniform
    hold_s: float = 60.0
    spawn_per_s: float = 2_000.0  #: connections opened a second during the ramp
    local_server: bool = True  #: the server runs on this machine, so both ends cost here
    start_server: bool = True  #: ... and is still to be started, so its port must be free
    host: str = "127.0.0.1"
    port: int = 8000
    client_workers: int = 0
    server_workers: int = 0
    master_port: int | None = 5557  #: Locust's master; None: it chooses a free one
    web_port: int | None = None  #: Locust's web UI; None: there is none
    metrics: tuple[str, int] | None = None  #: address and port of the load test's own metrics
    source_addresses: int = LOOPBACK_ADDRESSES  #: local addresses that clients may bind
    results: Path = field(default_factory=lambda: Path("results"))

    def on(self, machine: Machine) -> Plan:
        """This plan with the process counts that the model gives for `machine` filled in."""
        client = self.client_workers or client_workers(
            self.connections, machine.nofile_hard, machine.cpu_count
        )
        server = self.server_workers or server_workers(
            self.connections, machine.nofile_hard, machine.cpu_count
        )
        return replace(self, client_workers=client, server_workers=server if self.local_server else 0)

    @property
    def offered_per_s(self) -> float:
        """Requests a second: each user sends one every mean think time (its response time left out).

        Infinite without a think time: then the machine sets the rate.
        """
        return self.connections / (sum(self.think_s) / 2) if sum(self.think_s) else math.inf


@dataclass(frozen=True)
class Estimate:
    """What a plan is expected to take on this machine."""

    requests_per_s: float
    received_bytes_per_s: float
    kernel_bytes: int
    server_bytes: int
    client_bytes: int
    kernel_cores: float
    server_cores: float
    client_cores: float
    files: int  #: open files of all processes
    tcp_pages: int  #: TCP buffers in a stall
    tracked_connections: int  #: entries where connections are tracked; loopback has one for both ends

    @property
    def memory_bytes(self) -> int:
        return self.kernel_bytes + self.server_bytes + self.client_bytes

    @property
    def cores(self) -> float:
        return self.kernel_cores + self.server_cores + self.client_cores


@dataclass(frozen=True)
class Fit:
    """The most connections that fit (0 if not even one does), and what they would need more of.

    The bottleneck is empty where nothing but the limit that was given stands in the way.
    """

    connections: int
    bottleneck: str


def client_workers(
    connections: int, nofile: int, cpu_count: int, reserve: int = CLIENT_DESCRIPTORS_RESERVED
) -> int:
    """Client processes for `connections` users: one a core, more where descriptors demand it.

    Where there are several, there is one more than the descriptors need, so that the users of a process
    that dies find room in the others.
    """
    for_cores = min(cpu_count, math.ceil(connections / USERS_OF_ONE_PROCESS))
    for_descriptors = math.ceil(connections / max(1, nofile - reserve))
    spare = 1 if connections > USERS_OF_ONE_PROCESS or for_descriptors > 1 else 0
    return max(1, for_cores, for_descriptors + spare)


def server_workers(
    connections: int, nofile: int, cpu_count: int, reserve: int = SERVER_DESCRIPTORS_RESERVED
) -> int:
    """Server workers whose uneven shares of `connections` all stay below the descriptor limit.

    A share of mean m reaches m + sigmas * sqrt(m); solved for m, that gives the mean that still fits.
    """
    room = max(1, nofile - reserve)
    if connections <= room:  # even all of them fit into one
        return max(1, cpu_count)
    half = SERVER_SHARE_SIGMAS / 2
    mean = (math.sqrt(half**2 + room) - half) ** 2
    return max(cpu_count, min(connections, math.ceil(connections / mean)))


def server_share(connections: int, workers: int) -> int:
    """Connections that the fullest of `workers` SO_REUSEPORT listeners is expected to get, at most."""
    if workers <= 1:
        return connections
    mean = connections / workers
    deviation = math.sqrt(mean * (1 - 1 / workers))
    return min(connections, math.ceil(mean + SERVER_SHARE_SIGMAS * deviation))


def addresses_needed(connections_per_worker: int, usable_ports: int) -> int:
    """Source addresses that one client process needs towards one server address and port."""
    return max(1, math.ceil(connections_per_worker / max(1, usable_ports)))


def estimate(plan: Plan, machine: Machine) -> Estimate:
    """What `plan` takes on `machine`; a remote server's share is not counted, it is not ours."""
    plan = plan.on(machine)
    connections, rate = plan.connections, plan.offered_per_s
    ends = 2 if plan.local_server else 1
    server = 0
    if plan.local_server:
        server = SERVER_SUPERVISOR_BYTES + SERVER_WORKER_BYTES * plan.server_workers
        server += SERVER_CONNECTION_BYTES * connections
    client = CLIENT_MASTER_BYTES + CLIENT_WORKER_BYTES * plan.client_workers + CLIENT_USER_BYTES * connections
    # The "+ 2" are the supervisor and the master.
    processes = plan.client_workers + plan.server_workers + 2
    return Estimate(
        requests_per_s=rate,
        received_bytes_per_s=rate * (sum(plan.body_bytes) / 2 + RESPONSE_HEAD_BYTES),
        kernel_bytes=KERNEL_BYTES_PER_END * ends * connections,
        server_bytes=server,
        client_bytes=client,
        kernel_cores=rate * KERNEL_CPU_S_PER_REQUEST,
        server_cores=rate * SERVER_CPU_S_PER_REQUEST if plan.local_server else 0.0,
        client_cores=rate * CLIENT_CPU_S_PER_REQUEST,
        files=connections * ends + processes * FILES_PER_PROCESS,
        tcp_pages=math.ceil(min(connections, rate * STALL_S) * TCP_PAGES_PER_REQUEST),
        tracked_connections=connections,
    )


#: Name of each thing that bounds `-c auto`, and whether a plan with its estimate stays inside it.
_BOUNDS: tuple[tuple[str, Callable[[Plan, Estimate, Machine], bool]], ...] = (
    (
        "CPU",  # users without a think time take whatever CPU there is, so it bounds no number of them
        lambda plan, need, has: math.isinf(need.cores) or need.cores <= has.cpu_count * CPU_SHARE,
    ),
    ("memory", lambda plan, need, has: need.memory_bytes <= has.memory_available_bytes * MEMORY_SHARE),
    (
        "open files (fs.file-max)",
        lambda plan, need, has: has.file_max is None or need.files <= has.file_max - (has.file_nr or 0),
    ),
    (
        "local ports x source addresses",
        lambda plan, need, has: plan.connections <= plan.source_addresses * has.usable_ports,
    ),
    ("connection tracking (nf_conntrack_max)", lambda plan, need, has: not conntrack_overflows(need, has)),
)


def users_of_a_worker(plan: Plan) -> int:
    """Users of the fullest client process; Locust spreads them evenly."""
    return math.ceil(plan.connections / max(1, plan.client_workers))


def conntrack_overflows(need: Estimate, machine: Machine) -> bool:
    """Whether connections are tracked now (the table is in use) and these would not fit.

    The kernel tracks only where a firewall rule asks for it; a table that stays empty costs nothing.
    """
    if machine.conntrack_max is None or not machine.conntrack_count:
        return False
    return need.tracked_connections > machine.conntrack_max - machine.conntrack_count


def largest_that_fits(machine: Machine, plan: Plan, limit: int = AUTO_CONNECTIONS_MAX) -> Fit:
    """How many connections `plan` can ask for on `machine`, whatever number it names now.

    Process counts that the plan names are kept, so leave them 0 (and do not call `on` before) for the
    model's own.

    Every need grows with the connections, so a binary search finds the edge; the answer is rounded down to
    two digits, since no figure of the model is better than that.
    """

    def bound(connections: int) -> str | None:
        sized = replace(plan, connections=connections).on(machine)
        need = estimate(sized, machine)
        return next((name for name, fits in _BOUNDS if not fits(sized, need, machine)), None)

    if bound(limit) is None:
        return Fit(limit, "")
    low, high = 0, limit  # low fits (or is 0), high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bound(middle) is None else (low, middle)
    step = 10 ** max(0, len(str(low)) - 2)
    return Fit(low // step * step, bound(high) or "")
