"""How many workers hold how many connections.

A worker holds what RLIMIT_NOFILE lets it open. The kernel spreads new connections over the workers'
SO_REUSEPORT sockets by a hash, so a worker's share is binomially distributed: its mean m, its standard
deviation about the square root of m. A worker that gets more than it can open refuses clients while
others have room, so each is planned to have room for m + 6 sqrt(m): with 100 workers that fails once in
10 million runs.
"""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path
from typing import Final

#: Descriptors of a worker that are not its clients': its own few, and what the application opens meanwhile.
#: Of a small limit, a quarter.
RESERVED_DESCRIPTORS: Final = 256
#: Standard deviations of room for the uneven hashing.
SLACK_SIGMAS: Final = 6
#: No sense beyond it, and a slot of shared memory is set aside for each.
MAX_WORKERS: Final = 1024


class SizingError(ValueError):
    """The limits do not allow what was asked for; the text says which and how to raise it."""


def raise_nofile() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = int(Path("/proc/sys/fs/nr_open").read_text("ascii"))
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def cpu_count() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def worker_room(nofile: int) -> int:
    """Connections that one worker can hold with *nofile* descriptors."""
    return nofile - min(RESERVED_DESCRIPTORS, nofile // 4)


def capacity(workers: int, nofile: int) -> int:
    """Connections that *workers* hold together without one of them overflowing."""
    room = worker_room(nofile)
    if workers == 1:
        return room
    mean = ((math.sqrt(SLACK_SIGMAS**2 + 4 * room) - SLACK_SIGMAS) / 2) ** 2
    return int(mean) * workers


def workers_for(connections: int, nofile: int, cpus: int) -> int:
    """The number of workers for *connections*: one a CPU, or more if the descriptors ask for it."""
    workers = cpus
    while capacity(workers, nofile) < connections:
        workers += 1
        if workers > MAX_WORKERS:
            raise SizingError(
                f"{connections} connections need more than {MAX_WORKERS} workers with {nofile} open files;"
                " raise the limit (ulimit -Hn, or LimitNOFILE= of the service)"
            )
    return workers


def plan(workers: int | None, connections: int | None, nofile: int, cpus: int) -> tuple[int, int]:
    """Complete what the user left open: the numbers of workers and of connections.

    :raises SizingError: if both are given and do not fit.
    """
    if workers is None:
        workers = cpus if connections is None else workers_for(connections, nofile, cpus)
    possible = capacity(workers, nofile)
    if connections is None:
        return workers, possible
    if connections > possible:
        needed = workers_for(connections, nofile, workers)
        raise SizingError(
            f"{workers} workers with {nofile} open files each hold {possible} connections, not {connections};"
            f" use --workers {needed} or auto, or raise the limit of open files"
        )
    return workers, connections
