"""The one model of what a run needs: processes, addresses, memory, CPU, descriptors.

Pure functions over a `Plan` (what is asked for) and a `Machine` (what there is).  The preflight, the
printed plan, `--plan` and `-c auto` all ask this model, so they cannot contradict each other.  Its measured
figures are in `parked.loadtest.plan.coefficients`, its arithmetic is explained in docs/sizing.md.

CPU is the part that is not a sum.  A request costs what it costs in a warm process, and what it takes to wake
that process: on an idle core all of that, on busy cores the share C of it that cold caches are.  In a process
with many requests they are served together.  With U the share of the cores that is busy and r the requests a
second of one process,

    CPU per request = warm + wake x R / (R + r) x (1 - (1 - C) U)

which is linear in U as U is in the CPU, so the two are solved for in closed form.  Beside that each process
takes a bit of a core to itself.  It is the limit of descriptors that makes processes many, and so their
requests few: 400,000 connections in 44 of them take twice what 36,000 with the same requests take in 6.
Where the cores would not suffice, processes wake less often, and that part shrinks.

The sums for addresses: a connection is told apart by source address and port once the destination is
fixed, so one source address gives as many connections to one server port as there are local ports.  With
the whole range that is 65535 - 1024 + 1 = 64,512, so 400,000 need 7 addresses; with the kernel's default
range 60999 - 32768 + 1 = 28,232, so they need 15.  Each client process has addresses of its own, and a
process held to 20,000 descriptors stays below either figure: one address per process is then enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan import coefficients as measured
from parked.shared import listeners

#: Client users that one process carries without company, so that small runs start in an instant.
USERS_OF_ONE_PROCESS = 2_000

#: Descriptors a client process keeps for other than its users: libraries, ZeroMQ, logs, connections that
#: are being replaced.  Too low ends in EMFILE, too high costs a process more.
CLIENT_DESCRIPTORS_RESERVED = 500

#: Bytes of a response's status line and header fields, beside the body.
RESPONSE_HEAD_BYTES = 170
#: Bytes of an event of the demo application with its framing, and of its answer to a long poll's request.
EVENT_BYTES = 75
POLL_BYTES = 190

#: Pages that one request under way keeps in TCP buffers.  Measured on Linux 6.18: an unread request 1, an
#: unread response of 5.8 KB 2, of 10.4 KB 3, an idle connection none.
TCP_PAGES_PER_REQUEST = 3

#: Seconds of offered requests that may be under way at once when one side stalls (an overloaded machine).
STALL_S = 5.0

#: Open files of a process that are no connections, counted against fs.file-max.
FILES_PER_PROCESS = 100

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
    local_client: bool = True  #: ... and so do the clients; one of the two is
    start_server: bool = True  #: ... and is still to be started, so its port must be free
    host: str = "127.0.0.1"
    port: int = 8000
    client_workers: int = 0
    server_workers: int = 0
    master_port: int | None = 5557  #: Locust's master; None: it chooses a free one
    master_host: str = "127.0.0.1"  #: where it listens; "": at all addresses, for workers of other hosts
    web_port: int | None = None  #: Locust's web UI; None: there is none
    metrics: tuple[str, int] | None = None  #: address and port of the load test's own metrics
    source_addresses: int = LOOPBACK_ADDRESSES  #: local addresses that clients may bind
    waits: str = ""  #: longpoll or events: what is sent to each comes a think time after the last
    workload: str = ""  #: the locustfile that decides on think times and lengths by itself
    results: Path = field(default_factory=lambda: Path("results"))

    def on(self, machine: Machine) -> Plan:
        """This plan with the process counts that the model gives for `machine` filled in."""
        client = self.client_workers or client_workers(
            self.connections, machine.nofile_hard, machine.cpu_count
        )
        server = self.server_workers or listeners.workers_for(
            self.connections, machine.nofile_hard, machine.cpu_count
        )
        return replace(
            self,
            client_workers=client if self.local_client else 0,
            server_workers=server if self.local_server else 0,
        )

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


def addresses_needed(connections_per_worker: int, usable_ports: int) -> int:
    """Source addresses that one client process needs towards one server address and port."""
    return max(1, math.ceil(connections_per_worker / max(1, usable_ports)))


def estimate(plan: Plan, machine: Machine) -> Estimate:
    """What `plan` takes on `machine`; a side that runs elsewhere is not counted, it is not ours."""
    plan = plan.on(machine)
    connections, rate = plan.connections, plan.offered_per_s
    ends = plan.local_client + plan.local_server
    server = client = 0
    if plan.local_server:
        server = measured.SERVER_SUPERVISOR_BYTES + measured.SERVER_WORKER_BYTES * plan.server_workers
        each = measured.SERVER_PENDING_BYTES if plan.waits else measured.SERVER_CONNECTION_BYTES
        server += each * connections
    if plan.local_client:
        client = measured.CLIENT_MASTER_BYTES + measured.CLIENT_WORKER_BYTES * plan.client_workers
        each = measured.CLIENT_WAITING_USER_BYTES if plan.waits else measured.CLIENT_USER_BYTES
        client += each * connections
    processes = plan.client_workers + plan.server_workers + ends  # a master, a supervisor
    kernel_cores, server_cores, client_cores = _cores(plan, machine.cpu_count)
    return Estimate(
        requests_per_s=rate,
        received_bytes_per_s=rate * _received_bytes(plan),
        kernel_bytes=measured.KERNEL_BYTES_PER_END * ends * connections,
        server_bytes=server,
        client_bytes=client,
        kernel_cores=kernel_cores,
        server_cores=server_cores,
        client_cores=client_cores,
        files=connections * ends + processes * FILES_PER_PROCESS,
        tcp_pages=math.ceil(min(connections, rate * STALL_S) * TCP_PAGES_PER_REQUEST),
        tracked_connections=connections,
    )


def _received_bytes(plan: Plan) -> float:
    """Of one response, or one event."""
    if plan.waits:
        return EVENT_BYTES if plan.waits == "events" else POLL_BYTES
    return sum(plan.body_bytes) / 2 + RESPONSE_HEAD_BYTES


def _cores(plan: Plan, cpu_count: int) -> tuple[float, float, float]:
    """Busy cores of kernel, server and client: each is a + b U, and U is their sum over `cpu_count`."""
    rate = plan.offered_per_s
    if math.isinf(rate):
        return math.inf, math.inf, math.inf
    workers = plan.server_workers + plan.client_workers
    kernel_slope = rate * measured.KERNEL_CPU_S_PER_REQUEST + workers * measured.KERNEL_WORKER_CORES
    server, client = _sides(plan)
    master = measured.CLIENT_MASTER_CORES if plan.local_client else 0.0
    idle = server.idle + client.idle + master
    slope = kernel_slope + server.slope + client.slope
    # U = (idle + slope U) / cores.  What does not fit costs what it costs on a busy machine.
    busy = min(1.0, idle / (cpu_count - slope)) if slope < cpu_count else 1.0
    cores = (
        kernel_slope * busy,
        server.idle + server.slope * busy,
        client.idle + master + client.slope * busy,
    )
    # Where that is too much, workers wake less often, and find less cold.
    over = sum(cores) - measured.MODERATED_SHARE * cpu_count
    wakes = server.wakes + client.wakes
    saved = min(1 - measured.MODERATED_LEAST, max(0.0, over / wakes)) if wakes else 0.0
    return cores[0], cores[1] - saved * server.wakes, cores[2] - saved * client.wakes


class _Side(NamedTuple):
    """Cores of the processes of one side."""

    idle: float  #: on an idle machine
    slope: float  #: what is added to that where all cores are busy
    wakes: float  #: of it there, what fewer wake-ups would save


def _sides(plan: Plan) -> tuple[_Side, _Side]:
    """Server and client."""
    server = plan.server_workers, measured.SERVER_WORKER_CORES
    client = plan.client_workers, measured.CLIENT_WORKER_CORES
    rate = plan.offered_per_s
    if plan.waits == "events":
        return (
            _side(rate, *server, measured.SERVER_CPU_S_PER_EVENT),
            _side(rate, *client, measured.CLIENT_CPU_S_PER_EVENT),
        )
    if plan.waits:
        return (
            _side(rate, *server, measured.SERVER_CPU_S_PER_POLL),
            _side(rate, *client, measured.CLIENT_CPU_S_PER_POLL),
        )
    return (
        _side(rate, *server, measured.SERVER_CPU_S_PER_REQUEST, measured.SERVER_CPU_S_PER_WAKE),
        _side(rate, *client, measured.CLIENT_CPU_S_PER_REQUEST, measured.CLIENT_CPU_S_PER_WAKE),
    )


def _side(rate: float, workers: int, worker_cores: float, warm_s: float, wake_s: float = 0.0) -> _Side:
    """What so many requests take of so many workers, each of which takes *worker_cores* besides."""
    if not workers:
        return _Side(0.0, 0.0, 0.0)
    shared = measured.SHARED_WAKE_REQUESTS_PER_S
    wakes = rate * wake_s * shared / (shared + rate / workers)
    cold = wakes * measured.COLD_SHARE_OF_WAKE
    at_rest = workers * worker_cores
    return _Side(rate * warm_s + wakes + at_rest, cold - wakes, cold + at_rest)


def users_of_a_worker(plan: Plan) -> int:
    """Users of the fullest client process; Locust spreads them evenly."""
    return math.ceil(plan.connections / max(1, plan.client_workers))
