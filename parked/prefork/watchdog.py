"""Workers whose event loop stands still: seen, made to say where, ended and replaced.

A worker's loop notes on the scoreboard that it turns; the supervisor looks there. An application that blocks
one greenlet does not hold up the loop; an endless loop does, and so does code that sleeps in C. Stacks are
written by `faulthandler`, from a signal handler in C, since no Python code of such a worker comes to run.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import gevent

from parked.prefork import forks
from parked.prefork.scoreboard import Scoreboard

#: Makes a worker write its stacks; none that an application would use, and none that ends with a core dump.
_STACKS: Final = signal.SIGRTMIN
#: Seconds that it may take for that, before it is killed.
_LAST_WORDS_S: Final = 1.0
#: Seconds between two notes of a loop, and between two looks at them, at most; of short timeouts a share.
_NOTE_S: Final = 1.0
_LOOK_S: Final = 0.25
_SHARE: Final = 0.25
#: Seconds between two looks of a supervisor that was held up itself.
_HELD_UP_S: Final = 2.0
_STDERR: Final = 2


def look_s(timeout_s: float) -> float:
    """Seconds between two looks of a `Watchdog`."""
    return min(timeout_s * _SHARE, _LOOK_S)


class Pulse:
    """In a worker: from now on note that the loop of this thread turns."""

    def __init__(self, scoreboard: Scoreboard, row: int, timeout_s: float) -> None:
        self._scoreboard = scoreboard
        self._row = row
        faulthandler.register(_STACKS, file=_STDERR, all_threads=True, chain=False)
        pause = min(timeout_s * _SHARE, _NOTE_S)
        self._timer: Any = gevent.get_hub().loop.timer(pause, pause, ref=False)
        self._timer.start(self._note)
        self._note()
        forks.in_child(self._timer.stop)  # whose loop is not the worker's

    def _note(self) -> None:
        self._scoreboard.set(self._row, "turned", _milliseconds(monotonic()))


class Watchdog:
    """In the supervisor: end processes whose loop has not turned for *timeout_s* seconds.

    :param say: writes a line.
    :param kill: sends a signal.
    """

    def __init__(
        self,
        scoreboard: Scoreboard,
        timeout_s: float,
        say: Callable[[str], object],
        kill: Callable[[int, int], object] = os.kill,
    ) -> None:
        self._scoreboard = scoreboard
        self._timeout_s = timeout_s
        self._say = say
        self._kill = kill
        self._looked = monotonic()
        #: By process id: when it was asked for its stacks.
        self._condemned: dict[int, float] = {}

    def look(self, now: float) -> None:
        """Look at all workers.

        Not if this process was held up itself (a machine that was suspended, say): then they had no time to
        turn either.
        """
        held_up = now - self._looked > _HELD_UP_S
        self._looked = now
        if held_up:
            return
        owners = self._scoreboard.column("owner")
        latest = _milliseconds(now - self._timeout_s)
        for pid, turned in zip(owners, self._scoreboard.column("turned"), strict=True):
            if turned and pid and turned < latest and pid not in self._condemned:
                self._say(
                    f"the event loop of worker {pid} has not turned for {self._timeout_s:g} s; its stacks:"
                )
                self._condemned[pid] = now
                self._signal(pid, _STACKS)
                break  # the next one at the next look: what two write at once would be mixed
        for pid, asked in [*self._condemned.items()]:
            if pid not in owners:
                del self._condemned[pid]
            elif now - asked >= _LAST_WORDS_S:  # also one that the first signal has woken
                self._signal(pid, signal.SIGKILL)

    def _signal(self, pid: int, number: int) -> None:
        try:
            self._kill(pid, number)
        except OSError:
            pass  # it has ended


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
