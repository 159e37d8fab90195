"""How long a process stood still: garbage collections, and how late its event loop was.

Neither costs a request anything: the collector calls us only when it runs, and one timer per process asks
the loop twice a second how late it is.
"""

from __future__ import annotations

import gc
from time import monotonic
from typing import Any, Final

from gevent.hub import get_hub

#: Seconds between two looks at the loop. What holds it up for less is seen by chance only, in this share of
#: the cases; more looks would wake 100 idle workers for nothing, each of which costs 0.2 ms of CPU.
LOOK_S: Final = 0.5


class Pauses:
    """Number, sum and maximum of one kind of pause.

    The maximum is of the last two windows (:meth:`begin_window`): whoever reads once a window misses none,
    without having to begin it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._now = self._before = 0.0

    def note(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds
        self._now = max(self._now, seconds)

    @property
    def longest(self) -> float:
        """Seconds."""
        return max(self._now, self._before)

    def begin_window(self) -> float:
        """Returns the longest of the window that ends here, in seconds."""
        self._before, self._now = self._now, 0.0
        return self._before


class Collections(Pauses):
    """The garbage collector's pauses, from now on."""

    def __init__(self) -> None:
        super().__init__()
        self._began = 0.0
        gc.callbacks.append(self._step)

    def close(self) -> None:
        gc.callbacks.remove(self._step)

    def _step(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._began = monotonic()
        else:
            self.note(monotonic() - self._began)


class LoopLag(Pauses):
    """How late the event loop of this thread comes to a timer, from now on."""

    def __init__(self, look_s: float = LOOK_S) -> None:
        super().__init__()
        self._look_s = look_s
        self._due = monotonic() + look_s
        # ref=False: that time passes is no reason for a program to stay.
        self._timer: Any = get_hub().loop.timer(look_s, repeat=look_s, ref=False)
        self._timer.start(self._look, update=True)

    def close(self) -> None:
        self._timer.stop()
        self._timer.close()

    def _look(self) -> None:
        now = monotonic()
        self.note(max(0.0, now - self._due))
        self._due = now + self._look_s
        self._timer.again(self._look, update=True)  # counted from now, however late it is
