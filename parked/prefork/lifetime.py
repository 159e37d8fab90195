"""How long a worker serves, where that is bounded: by requests, by memory or by time.

A worker that has come to its end says so on the scoreboard. The supervisor starts its successor in the same
place, one at a time, and lets it retire when that is ready; see `parked.prefork.supervisor`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

from parked.prefork.settings import Settings

#: Seconds in which memory and age do not count: a bound below what an application takes at once would else
#: have workers replaced without end, as fast as they start.
LEAST_LIFE_S: Final = 10.0
#: Of --max-worker-age: what a worker's own bound may be below it, lest they all come to it together.
_AGE_SPREAD: Final = 0.1

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Memory of this process, shared pages included: RES of top(1)."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE_BYTES


class Lifetime:
    """That of one worker, from now on.

    :param draw: a number between 0 and 1, for the jitter.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = monotonic,
        memory: Callable[[], int] = resident_bytes,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._requests = settings.max_requests
        if self._requests:
            self._requests += round(settings.max_requests_jitter * draw())
        self._memory_bytes = settings.max_worker_memory
        self._age_s = settings.max_worker_age * (1 - _AGE_SPREAD * draw())
        self._clock = clock
        self._memory = memory
        self._began = clock()

    def over(self, requests: int) -> str:
        """Why it is over; empty while it is not.

        :param requests: served so far.
        """
        if self._requests and requests >= self._requests:
            return f"{requests} requests"
        age = self._clock() - self._began
        if age < LEAST_LIFE_S:
            return ""
        if self._age_s and age >= self._age_s:
            return f"{age:.0f} s of age"
        if self._memory_bytes and (size := self._memory()) >= self._memory_bytes:
            return f"{size >> 20} MiB of memory"
        return ""


def is_bounded(settings: Settings) -> bool:
    return bool(settings.max_requests or settings.max_worker_memory or settings.max_worker_age)
