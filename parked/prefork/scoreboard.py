"""Numbers that the workers share with the supervisor: a row of counters a worker, in memory mapped by all.

Each row has one writer, and each number is one aligned 64-bit store, so there is nothing to lock. Workers
count in ordinary variables and copy them here once a second: a request pays nothing for it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final
from zlib import crc32

from parked.server.pending import REASONS
from parked.shared.listeners import MAX_WORKERS

#: Upper bounds of the request time histogram, in seconds; what is beyond the last is counted as well.
TIME_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: Statuses with a counter each; others count under 0.
STATUSES: Final = (0, *(status.value for status in HTTPStatus))

#: The counters of a worker, in their order in its row. `owner` is its process id, and so is `ready` when it
#: serves. A row without an owner is free. `turned` is when its event loop last did, in milliseconds of the
#: monotonic clock; `leaving` is 1 when it wants a successor.
COUNTERS: Final = (
    "owner",
    "ready",
    "connections",
    "active",
    "accepted",
    "rejected",
    "refused",
    "failed_handshakes",
    "faults",
    "idle_timeouts",
    "header_timeouts",
    "body_timeouts",
    "write_timeouts",
    "pending",
    "deferred",
    "pending_messages",
    "pending_heartbeats",
    *(f"pending_{reason}" for reason in REASONS),
    "sent_bytes",
    "request_us",
    "collections",
    "collection_us",
    "collection_longest_us",
    "lags",
    "lag_us",
    "lag_longest_us",
    "turned",
    "leaving",
    *(f"status_{status}" for status in STATUSES),
    *(f"bucket_{number}" for number in range(len(TIME_BUCKETS_S) + 1)),
)
#: What goes up and down.
_LEVELS: Final = (
    *("ready", "connections", "active", "pending", "collection_longest_us", "lag_longest_us"),
    *("turned", "leaving"),
)
_PLACES: Final = {name: place for place, name in enumerate(COUNTERS)}


#: A scoreboard of another version of this module is not ours to read.
LAYOUT: Final = crc32(",".join(COUNTERS).encode())
#: Workers, and as many of three earlier generations that are still retiring. Rows never used take no memory.
ROWS: Final = 4 * MAX_WORKERS
#: The first cell holds the number of rows that were ever used.
_ROW_0: Final = 1


class Scoreboard:
    """Rows of counters, shared with all processes forked afterwards, and by descriptor with a later image.

    :param fd: the descriptor of an existing one, of the same `LAYOUT`.
    """

    def __init__(self, fd: int | None = None) -> None:
        size = (_ROW_0 + ROWS * len(COUNTERS)) * 8
        if fd is None:
            fd = os.memfd_create("scoreboard")
            os.ftruncate(fd, size)
        self.fd = fd
        self._cells = memoryview(mmap.mmap(fd, size)).cast("Q")

    def claim(self) -> int | None:
        """A row that belongs to no process, for the next one; None if there is none."""
        owners = self.column("owner")
        row = owners.index(0) if 0 in owners else len(owners)
        if row == ROWS:
            return None
        self._cells[0] = max(self._cells[0], row + 1)
        self.set(row, "owner", os.getpid())  # until it is forked
        return row

    def release(self, pid: int) -> None:
        """A process has ended: what counts up stays, its levels are nobody's any more."""
        for row, owner in enumerate(self.column("owner")):
            if owner == pid:
                self.free(row)

    def free(self, row: int) -> None:
        """The same of a row whose process is known to have ended, or has not begun."""
        self.restart(row)
        self.set(row, "owner", 0)

    def get(self, row: int, counter: str) -> int:
        return self._cells[_ROW_0 + row * len(COUNTERS) + _PLACES[counter]]

    def column(self, counter: str) -> list[int]:
        """A counter of all rows in use; 10 us for 1,024 of them, where `get` would take 300."""
        end = _ROW_0 + self._cells[0] * len(COUNTERS)
        return self._cells[_ROW_0 + _PLACES[counter] : end : len(COUNTERS)].tolist()

    def set(self, row: int, counter: str, value: int) -> None:
        """A number below 0 cannot be stored, and must not end who tells it."""
        self._cells[_ROW_0 + row * len(COUNTERS) + _PLACES[counter]] = max(0, value)

    def restart(self, row: int) -> None:
        """A worker's successor takes over its row: what counts up goes on, what is a level starts at 0."""
        for counter in _LEVELS:
            self.set(row, counter, 0)

    def snapshot(self, row: int) -> dict[str, int]:
        return {counter: self.get(row, counter) for counter in COUNTERS}

    def update(self, row: int, values: Iterable[tuple[str, int]], base: Mapping[str, int]) -> None:
        """Store a worker's counters on top of its predecessor's, which are *base*."""
        for counter, value in values:
            self.set(row, counter, value if counter in _LEVELS else base[counter] + value)
