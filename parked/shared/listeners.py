"""How many workers hold how many connections.

A worker holds what RLIMIT_NOFILE lets it open. The kernel spreads new connections over the workers'
SO_REUSEPORT sockets by a hash, so a worker's share is binomially distributed: its mean m, its standard
deviation about the square root of m. A worker that gets more than it can open refuses clients while
others have room, so each is planned to have room for m + 6 sqrt(m): with 100 workers that fails once in
10 million runs. The server counts its workers with this, and the load test plans with the same.
"""

from __future__ import annotations

import math
from typing import Final

#: Descriptors of a worker that are not its clients': its own few, and what the application opens meanwhile.
#: Of a small limit, a quarter.
RESERVED_DESCRIPTORS: Final = 256
#: Standard deviations of room for the uneven hashing.
SLACK_SIGMAS: Final = 6
#: No sense beyond it, and a slot of shared memory is set aside for each.
MAX_WORKERS: Final = 1024


def room(nofile: int) -> int:
    """Connections that one worker can hold with *nofile* descriptors; one at least."""
    return max(1, nofile - min(RESERVED_DESCRIPTORS, nofile // 4))


def nofile_for(connections: int) -> int:
    """The least limit of descriptors with which a worker has room for so many."""
    return min(connections + RESERVED_DESCRIPTORS, max(1, math.ceil(connections * 4 / 3) - 1))


def mean_share(nofile: int) -> int:
    """The mean share of connections at which the fullest worker still has room for its own; one at least."""
    half = SLACK_SIGMAS / 2
    return max(1, int((math.sqrt(half**2 + room(nofile)) - half) ** 2))


def fullest_share(connections: int, workers: int) -> int:
    """Connections that the fullest of *workers* is expected to get, at most."""
    if workers <= 1:
        return connections
    mean = connections / workers
    deviation = math.sqrt(mean * (1 - 1 / workers))
    return min(connections, math.ceil(mean + SLACK_SIGMAS * deviation))


def capacity(workers: int, nofile: int) -> int:
    """Connections that *workers* hold together without one of them overflowing."""
    # However they are spread, not more than all of them come to one.
    return max(room(nofile), mean_share(nofile) * workers if workers > 1 else 0)


def workers_for(connections: int, nofile: int, cpus: int) -> int:
    """Workers for *connections*: one per CPU, or more if the descriptors ask for it.

    The number may exceed `MAX_WORKERS`, which no server starts.
    """
    if connections <= room(nofile):
        return max(1, cpus)
    return max(cpus, math.ceil(connections / mean_share(nofile)))
