"""One epoll set for all of a process's connections.

A connection is registered once, edge-triggered, and touched again only when something cannot be sent at
once: a request costs no `epoll_ctl` and no gevent watcher. gevent's own loop sees a single descriptor, that
of the epoll set; when it becomes readable, each event switches directly to the greenlet that waits for it.

Edge-triggered means that an event comes once. One that arrives while nobody waits is kept in `ready`, and
whoever waits next returns at once and tries again; a wake-up is a hint, never a promise.
"""

from __future__ import annotations

import math
import select
import time
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent import monkey
from greenlet import getcurrent

from parked.loadtest.client.errors import TimedOut

if TYPE_CHECKING:
    from collections.abc import Callable

#: monkey-patching takes `epoll` out of `select`, since it would block the loop; here it is never asked to
#: block.
_epoll = monkey.get_original("select", "epoll")

IN = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
BOTH_WAYS = IN | select.EPOLLOUT
GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

#: Events taken a call. More only delays the ticks of the think timers.
EVENTS_A_POLL = 512
#: Seconds between two looks at the deadlines: what a timeout may come late.
SWEEP_S = 0.5


class Watched(Protocol):
    """A connection, as whoever watches it knows it."""

    fd: int
    #: The greenlet or :class:`Listener` that waits on it; None at rest.
    waiter: Any
    #: Something happened while nobody waited.
    ready: bool
    #: The peer has closed its sending side.
    hung_up: bool

    def close_lost(self) -> None: ...


class Listener(Protocol):
    """Waits on a connection without a greenlet: what would switch to one, or throw into it, calls it in the
    hub. Nothing may be raised there, since gevent stops a watcher whose callback raises."""

    def switch(self) -> None: ...

    def throw(self, error: TimedOut) -> None: ...


class Readiness:
    """Wakes greenlets when their connections have something for them."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._epoll = _epoll()
        #: By descriptor.
        self._connections: list[Watched | None] = []
        # Descriptors registered since the events at hand were fetched. A number that was closed and taken
        # again in between would get its predecessor's event, such as its end.
        self._newborn: set[int] = set()
        # Waiting connections by timeout. All entries of one inner dict have the same timeout, so insertion
        # order is the order of their deadlines and a sweep looks at the expired ones only.
        self._deadlines: dict[float, dict[Watched, float]] = {}
        # How many greenlets are in `wait`. Listeners may have deadlines, too, and would wait as long.
        self._greenlets = 0
        self._watcher = self._hub.loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self.dispatch)
        # Waits for nothing: an epoll set is never writable. But while one watcher is left, to stop and start
        # the other is EPOLL_CTL_MOD. When a set is added to a set, the kernel looks at all in it for loops,
        # under a lock of the whole system (fs/eventpoll.c, ep_loop_check): 9 ms for 18,000 connections.
        self._anchor = self._hub.loop.io(self._epoll.fileno(), 2)
        self._anchor.start(float)
        #: Events fetched since this was last reset.
        self.events = 0
        self._at_once = True
        #: Asked after each fetch, when nobody but listeners waits: seconds that what comes next may lie.
        self.pause_s: Callable[[], float] = float
        self._pause: Any = None
        self._sweeper = self._hub.loop.timer(SWEEP_S, SWEEP_S)
        self._sweeper.start(self._sweep)

    def close(self) -> None:
        """Stop watching, also what is being dispatched now. The connections are their owners' to close."""
        self._connections[:] = [None] * len(self._connections)
        for watcher in (self._watcher, self._anchor):
            watcher.stop()
            watcher.close()
        if self._pause is not None:
            self._pause.close()
        self._sweeper.stop()
        self._sweeper.close()
        self._epoll.close()

    def register(self, connection: Watched, room: bool) -> None:
        """Watch a connection.

        :param room: also for room to send, which a new connection that is open has: each would be an event,
            and a read at its first request to find that nothing has come.
        """
        connections, fd = self._connections, connection.fd
        if fd >= len(connections):
            connections.extend([None] * (fd + 1 - len(connections)))
        connections[fd] = connection
        self._newborn.add(connection.fd)
        self._epoll.register(connection.fd, BOTH_WAYS if room else IN)

    def watch_room(self, connection: Watched) -> None:
        """From now on tell of room to send, too; at once if there is some.

        That is not taken back: while nothing waits to be sent it makes no event.
        """
        self._epoll.modify(connection.fd, BOTH_WAYS)

    def unregister(self, connection: Watched) -> None:
        """Forget a connection that is about to close; the kernel drops the descriptor from the set by
        itself."""
        self._connections[connection.fd] = None

    @property
    def waiting(self) -> int:
        """Connections on which a greenlet waits, which is the number of requests in flight; no listeners."""
        return self._greenlets

    def wait(self, connection: Watched, timeout_s: float) -> None:
        """Give up the processor until something happened on the connection.

        Raises :class:`TimedOut` after `timeout_s` seconds, counted from this call.
        """
        if connection.ready:
            connection.ready = False
            return
        deadlines = self._deadlines.get(timeout_s)
        if deadlines is None:
            deadlines = self._deadlines[timeout_s] = {}
        deadlines[connection] = time.perf_counter() + timeout_s
        connection.waiter = getcurrent()
        self._greenlets += 1
        try:
            self._hub.switch()
        finally:
            self._greenlets -= 1
            connection.waiter = None
            del deadlines[connection]

    def listen(self, connection: Watched, listener: Listener, timeout_s: float | None = None) -> None:
        """Tell the listener each time that something happened on the connection, until :meth:`leave`; and
        after `timeout_s` seconds, once, that they are over."""
        connection.waiter = listener
        if timeout_s is not None:
            self._deadlines.setdefault(timeout_s, {})[connection] = time.perf_counter() + timeout_s
        if connection.ready or connection.hung_up:  # no further event may say so
            connection.ready = False
            self.prompt(connection, listener)

    def prompt(self, connection: Watched, listener: Listener) -> None:
        """Tell the listener in the next iteration of the loop, if it still listens then."""
        self._hub.loop.run_callback(self._prompt, connection, listener)

    def _prompt(self, connection: Watched, listener: Listener) -> None:
        if connection.waiter is listener:
            listener.switch()

    def leave(self, connection: Watched, timeout_s: float | None = None) -> None:
        """Nobody listens any more. `timeout_s` is what :meth:`listen` was given."""
        connection.waiter = None
        if timeout_s is not None and (deadlines := self._deadlines.get(timeout_s)) is not None:
            deadlines.pop(connection, None)

    def fetch_at_once(self, at_once: bool) -> None:
        """Whether events are fetched as they come, as at the beginning, or only when `dispatch` is called."""
        if at_once != self._at_once:
            self._at_once = at_once
            if not at_once:
                self._watcher.stop()
            elif self._pause is None:
                self._watcher.start(self.dispatch)

    def _rest(self, seconds: float) -> None:
        """Fetch nothing for so long: what comes meanwhile is fetched together."""
        self._watcher.stop()
        self._pause = self._hub.loop.timer(seconds)
        self._pause.start(self._resume, update=True)

    def _resume(self) -> None:
        self._pause.close()
        self._pause = None
        if self._at_once:
            self._watcher.start(self.dispatch)

    def dispatch(self) -> None:
        """Fetch events and wake who waits for them. To be called in the hub."""
        connections, newborn = self._connections, self._newborn
        ready = self._epoll.poll(0, EVENTS_A_POLL)
        newborn.clear()
        self.events += len(ready)
        for fd, events in ready:
            connection = connections[fd]
            if connection is None or fd in newborn:
                continue  # closed by a greenlet that an earlier event of this batch woke
            if events & GONE:
                connection.hung_up = True
            waiter: Any = connection.waiter
            if waiter is not None:
                waiter.switch()
            elif events & GONE:
                connection.close_lost()
            else:
                connection.ready = True
        if len(ready) < EVENTS_A_POLL and self._at_once and self._pause is None and not self._epoll.closed:
            seconds = self.pause_s()
            if seconds and not self._greenlets:
                self._rest(seconds)

    def _sweep(self) -> None:
        now = time.perf_counter()
        # A copy: who is woken may be the first to wait for another time.
        for timeout_s, deadlines in list(self._deadlines.items()):
            if not deadlines:  # tasks may give each request a timeout of its own
                del self._deadlines[timeout_s]
            expired = []
            for connection, deadline in deadlines.items():
                if deadline > now:
                    break
                expired.append(connection)
            for connection in expired:
                waiter: Any = connection.waiter
                # Not if one of those before has woken or closed it, or has forked and this is the child.
                if (
                    waiter is not None
                    and deadlines.get(connection, math.inf) <= now
                    and not self._epoll.closed
                ):
                    waiter.throw(TimedOut("no answer in time"))
