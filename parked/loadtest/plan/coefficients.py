"""What a connection, a process and a request cost: the figures behind `plan.sizing`, in one place.

Fitted with `benchmarks/sizing` to runs of `./run_test` with client and server on one machine: 2 virtual cores
(AMD EPYC), 24 GiB, Linux 6.18, Python 3.11, Locust 2.47, gevent 26.9, at most 20,000 descriptors per process,
bodies of 1-10 KB.  On 2026-11-28 to results/reference/*, memory by `--fit`, CPU of requests by a search for
the least deviation of server, client and sum, that of events and polls by what is left.  A program of that
machine went through the descriptors of all processes meanwhile, in the kernel's name: 0.2 cores at 400,000
connections, 0.4 at 1,000,000.
tests/loadtest/plan/test_measured_run.py compares every one of them with the model.  `benchmarks/sizing` shows
the deviations, so another machine can be fitted the same way.

Memory of processes is PSS.  CPU is user and system time together, so it has the kernel's work inside system
calls.
"""

from __future__ import annotations

from typing import Final

from parked.loadtest.terms.units import MIB

#: Bytes of kernel memory of one end of a connection, as /proc/slabinfo has it: TCP 2,368 + inode 832 + file
#: 192 + dentry 192 + security blobs 56 + epoll item and its wait entry 192 + half a bucket 64.  Runs
#: of 36,000 and 60,000 with both ends here: 7,806 and 7,794 a connection.
KERNEL_BYTES_PER_END: Final = 3_900

#: Bytes of a server: the supervisor with what all processes share and the process that tells the metrics,
#: each worker's own part, each connection.
SERVER_SUPERVISOR_BYTES: Final = 35 * MIB
SERVER_WORKER_BYTES: Final = 5_420_000
SERVER_CONNECTION_BYTES: Final = 175

#: Bytes of a server's connection whose response is pending: results/reference/events-400000. Of 20,000 each,
#: event streams of the demo application took 324 bytes more than parked connections, long polls 107 (PSS).
SERVER_PENDING_BYTES: Final = 475

#: Bytes of a client: Locust's master with what all processes share, each worker's own part, each user.
CLIENT_MASTER_BYTES: Final = 72 * MIB
CLIENT_WORKER_BYTES: Final = 2_070_000
CLIENT_USER_BYTES: Final = 1_080

#: Bytes of a user that waits for what is sent: of 400,000 event streams, in broadcasts that keep both cores.
CLIENT_WAITING_USER_BYTES: Final = 2_290

#: CPU seconds of a request in a process that is warm but shares its caches.  One that has a core for itself
#: needs 21 us (benchmarks/server: 48,000/s) and, in a busier hour, 42 us (benchmarks/client, 5,000/s).
SERVER_CPU_S_PER_REQUEST: Final = 23e-6
CLIENT_CPU_S_PER_REQUEST: Final = 30e-6

#: CPU seconds of an event on its way to one client, with its part of the heartbeats between events.
#: results/reference/events-400000; processes at rest are counted by themselves below.
SERVER_CPU_S_PER_EVENT: Final = 24e-6
CLIENT_CPU_S_PER_EVENT: Final = 18.5e-6

#: CPU seconds of an answer to a long poll and the next poll: results/reference/longpoll-400000, where those
#: of a slot of the server's deadlines go out together.
SERVER_CPU_S_PER_POLL: Final = 44e-6
CLIENT_CPU_S_PER_POLL: Final = 60e-6

#: CPU seconds more if the request wakes the process on an idle core, instead of being served with others.
SERVER_CPU_S_PER_WAKE: Final = 102e-6
CLIENT_CPU_S_PER_WAKE: Final = 68e-6

#: Share of a wake-up that is left where no core is idle: nobody is woken then, but the caches are cold.
COLD_SHARE_OF_WAKE: Final = 0.85

#: Requests a second of one process at which half of them share a wake-up, however idle the cores are
#: (benchmarks/client: 89 us per request at 1,000/s, 42 us at 5,000/s in one process).
SHARED_WAKE_REQUESTS_PER_S: Final = 1_000

#: Cores that a process takes beside its requests: a sample and a heartbeat each second, a look at deadlines.
SERVER_WORKER_CORES: Final = 0.0039
CLIENT_WORKER_CORES: Final = 0.0031
CLIENT_MASTER_CORES: Final = 0.03

#: What the kernel spends outside of our processes where all cores are busy: CPU seconds of a request, and
#: cores of each worker of either side, what the other program took of their descriptors in it.
KERNEL_CPU_S_PER_REQUEST: Final = 5e-6
KERNEL_WORKER_CORES: Final = 5.0e-3

#: Share of the cores beyond which workers fetch events at intervals (parked/shared/moderation.py), which
#: takes from what their wake-ups cost and from what they cost beside their requests, and what is left of that
#: at the longest interval. 400,000, 600,000, 1,000,000 and 1,600,000 connections of results/before-1.0 took
#: 0.89 to 0.92 of two cores.
MODERATED_SHARE: Final = 0.92
MODERATED_LEAST: Final = 0.15
