"""Numbers that the workers share with the supervisor: a row of counters a worker, in memory mapped by all.

Each row has one writer, and each number is one aligned 64-bit store, so there is nothing to lock.
"""

from __future__ import annotations

import mmap
from typing import Final

#: The counters of a worker, in their order in its row.
COUNTERS: Final = ("ready",)
_ROW: Final = 32


class Scoreboard:
    """*rows* rows of counters, shared with all processes forked afterwards."""

    def __init__(self, rows: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, rows * _ROW * 8)).cast("Q")

    def get(self, row: int, counter: str) -> int:
        return self._cells[row * _ROW + COUNTERS.index(counter)]

    def set(self, row: int, counter: str, value: int) -> None:
        self._cells[row * _ROW + COUNTERS.index(counter)] = value

    def clear(self, row: int) -> None:
        """Forget what the last worker of this row has written."""
        for cell in range(row * _ROW, (row + 1) * _ROW):
            self._cells[cell] = 0
