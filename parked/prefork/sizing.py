"""How many workers this server starts, and for how many connections: what the user left open, completed."""

from __future__ import annotations

import os

from parked.shared.listeners import MAX_WORKERS, capacity
from parked.shared.listeners import workers_for as workers_at


class SizingError(ValueError):
    """The limits do not allow what was asked for; the text says which and how to raise it."""


def cpu_count() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def workers_for(connections: int, nofile: int, cpus: int) -> int:
    """The number of workers for *connections* with *nofile* descriptors each.

    :raises SizingError: they are more than make sense.
    """
    workers = workers_at(connections, nofile, cpus)
    if workers > MAX_WORKERS:
        raise SizingError(
            f"{connections} connections need more than {MAX_WORKERS} workers with {nofile} open files;"
            " raise the limit (ulimit -Hn, or LimitNOFILE= of the service)"
        )
    return workers


def plan(workers: int | None, connections: int | None, nofile: int, cpus: int) -> tuple[int, int]:
    """Complete what the user left open: the numbers of workers and of connections.

    :raises SizingError: both are given and do not fit, or there are too many workers.
    """
    if workers is not None and workers > MAX_WORKERS:
        raise SizingError(f"{workers:,} workers are more than the {MAX_WORKERS:,} that there can be")
    if workers is None:
        workers = cpus if connections is None else workers_for(connections, nofile, cpus)
    possible = capacity(workers, nofile)
    if connections is None:
        return workers, possible
    if connections > possible:
        needed = workers_for(connections, nofile, workers)
        raise SizingError(
            f"{workers} {'worker' if workers == 1 else 'workers'} with {nofile:,} open files each can hold"
            f" {possible:,} connections, not {connections:,};"
            f" use --workers {needed} or auto, or raise the limit of open files"
        )
    return workers, connections
