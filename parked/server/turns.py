"""Turns of those that could keep the process for themselves: clients whose bytes are always there.

A greenlet that never waits is never interrupted, and `gevent.sleep(0)` comes back from the queue of
callbacks, which gevent works off without a look at the sockets: those who yield in that way give way to each
other only. Here they share one turn between two polls, however many they are, and who has used it up waits
for a poll.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final
from weakref import WeakValueDictionary

from gevent.hub import get_hub
from greenlet import getcurrent

#: Seconds between two polls for all who take turns. Everyone else waits that long, and for one piece of their
#: work (64 KB of content: 4 ms at most). Shorter turns spend more of them on polls, of some 10 us each.
TURN_S: Final = 0.01


class Turns:
    """The turns of one hub; see `of_hub`."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._queue: deque[Callable[[], Any]] = deque()
        self._timer: Any = None
        self._poll = -1
        self._resumed = 0
        #: When the present turn is over, on the monotonic clock.
        self.ends = 0.0

    def share(self) -> None:
        """Go on while there is time, else let the others be served first; called in a request greenlet."""
        if monotonic() >= self.ends and self.over():
            self._wait()

    def over(self) -> bool:
        """Whether those who take turns have had theirs since the last poll."""
        now = monotonic()
        if now < self.ends:
            return False
        poll = self._polls()
        if poll == self._poll:
            return True
        self._poll = poll
        self.ends = now + TURN_S
        return False

    def after_poll(self, callback: Callable[[], Any]) -> None:
        """Call *callback* in the hub when the sockets have been looked at, in a turn that has time left."""
        self._queue.append(callback)
        if len(self._queue) == 1:
            self._schedule()

    def _polls(self) -> int:
        """How often the loop has polled. libuv does not say; then only who has waited here knows."""
        try:
            polls: int = self._hub.loop.iteration
        except (AttributeError, NotImplementedError):
            return self._resumed
        return polls

    def _wait(self) -> None:
        me = getcurrent()
        if me is self._hub:  # the hub serves by itself (spawn=None) and cannot wait
            return
        switch = me.switch
        self.after_poll(switch)
        try:
            self._hub.switch()
        finally:
            if switch in self._queue:  # killed, or its time is up
                self._queue.remove(switch)

    def _schedule(self) -> None:
        # A timer of no time is due behind the next poll. Of the lowest priority, so that what the poll has
        # found comes first (libev; libuv knows no priorities and calls timers before it polls).
        loop = self._hub.loop
        if self._timer is None:
            self._timer = loop.timer(0, priority=loop.MINPRI)
        self._timer.start(self._resume)

    def _resume(self) -> None:
        """In the hub: one of those who wait for sure, others while there is time."""
        self._resumed += 1
        try:
            last = self._queue[-1] if self._queue else None
            while self._queue:
                callback = self._queue.popleft()
                callback()
                if callback is last or self.over():
                    break
        finally:
            if self._queue:
                self._schedule()


# A hub's id is its own for as long as its turns live, for they keep it.
_by_hub: Final[WeakValueDictionary[int, Turns]] = WeakValueDictionary()


def of_hub() -> Turns:
    """The turns that all servers in this thread share."""
    hub = get_hub()
    turns = _by_hub.get(id(hub))
    if turns is None:
        turns = _by_hub[id(hub)] = Turns(hub)
    return turns


def _forget() -> None:
    """In a forked child: who waits there belongs to the parent."""
    for turns in _by_hub.values():
        turns._queue.clear()


os.register_at_fork(after_in_child=_forget)
