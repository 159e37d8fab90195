"""What is worth remembering: what comes again.

A memory that takes whatever it does not know fills up with what never comes again, such as lengths of pages,
ETags, and ids that a proxy adds to each request: megabytes in each worker, for nothing. So a newcomer has to
come twice within a while (the doorkeeper of Einziger, Friedman and Manes, "TinyLFU", ACM ToS 13(4), 2017).
"""

from __future__ import annotations

from collections.abc import Hashable


class Doorkeeper:
    """Knows who has come once.

    :param size: how many; beyond it all are forgotten at once. 70 to 100 bytes each.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # Hashes: nothing of what came stays in memory. Two that are taken for one do no harm.
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self._seen)

    def admits(self, newcomer: Hashable) -> bool:
        """Whether it has come before."""
        seen = self._seen
        mark = hash(newcomer)
        if mark in seen:
            return True
        if len(seen) >= self._size:
            seen.clear()
        seen.add(mark)
        return False

    def forget(self) -> None:
        self._seen.clear()
