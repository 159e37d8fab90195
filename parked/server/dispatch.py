"""Request greenlets: a few, reused, for the connections that have something to say.

The first switch into a new greenlet costs 13 us, because it maps a fresh stack; a switch into one that waits
costs 1 us. So the hub switches straight to a waiting greenlet, which serves the queue until it is empty or
until the application blocks; only then, with work left and nobody waiting, is a new greenlet made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from gevent.hub import get_hub
from greenlet import getcurrent

from parked.server.connection import Connection
from parked.server.turns import of_hub

#: Waiting greenlets kept for the next burst; each holds about 10 KB.
MAX_WAITING: Final = 64


class RequestGreenlets:
    """Serve connections, each in one greenlet at a time.

    :param serve: serves one connection; it handles its own errors and returns when it is done with it.
    :param spawn: makes a greenlet, as *spawn* of `gevent.baseserver.BaseServer`; None serves in the hub.
    :param limit: greenlets at once, that is requests in flight; 0 for no bound. Others wait in the queue.
    """

    def __init__(
        self, serve: Callable[[Connection], None], spawn: Callable[..., Any] | None, limit: int = 0
    ) -> None:
        self.limit = limit
        self._serve = serve
        self._spawn = spawn
        self._hub = get_hub()
        self._turns = of_hub()
        self._queue: deque[Connection] = deque()
        self._waiting: list[Any] = []
        self._count = 0  # greenlets alive, the waiting ones with them
        self._running = False  # inside run(): whoever yields comes back there
        self._budget = 0
        self._scheduled = False
        self._stopping = False

    @property
    def active(self) -> int:
        """Requests in flight and connections queued."""
        return self._count - len(self._waiting) + len(self._queue)

    def put(self, connections: Iterable[Connection]) -> None:
        """Queue connections and serve them; to be called in the hub, where the greenlets come back to."""
        self._queue.extend(connections)
        self.run()

    def put_back(self, connection: Connection) -> None:
        """Queue a connection behind all others, those that the next poll finds included.

        Called in a request greenlet that has served it for long.
        """
        self._queue.append(connection)
        if not self._scheduled:
            self._scheduled = True
            self._turns.after_poll(self.run)

    def run(self) -> None:
        """Serve what is queued now; what is added meanwhile waits until the hub has been round once."""
        self._scheduled = False
        if self._running:
            self._schedule()
            return
        self._running = True
        self._budget = len(self._queue)
        try:
            while self._queue and self._budget > 0:
                if self._spawn is None:
                    self._budget -= 1
                    self._serve(self._queue.popleft())
                elif self._waiting:
                    self._waiting.pop().switch()
                else:
                    self._grow()
                    return
        finally:
            self._running = False
        if self._queue:
            self._schedule()

    def stop(self) -> None:
        """Let the waiting greenlets end now, the others after their request."""
        self._stopping = True
        self._hub.loop.run_callback(self._end_waiting)

    def _end_waiting(self) -> None:
        """In the hub, where the greenlets that end come back to."""
        while self._waiting:
            self._waiting.pop().switch()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._hub.loop.run_callback(self.run)

    def _grow(self) -> None:
        """Make a greenlet, which calls for run() when it has started; at the limit, the next to finish."""
        assert self._spawn is not None
        if not self.limit or self._count < self.limit:
            self._count += 1
            try:
                self._spawn(self._work)
            except BaseException:
                self._count -= 1
                raise

    def _work(self) -> None:
        """A request greenlet: serve while called by run(), then wait for the next call."""
        me = getcurrent()
        try:
            while True:
                while self._running and self._queue and self._budget > 0:
                    self._budget -= 1
                    self._serve(self._queue.popleft())
                if self._stopping or len(self._waiting) >= MAX_WAITING:
                    return
                self._waiting.append(me)
                if self._queue and not self._running:
                    self._schedule()
                try:
                    self._hub.switch()
                except BaseException:  # killed while waiting, by the owner of the pool
                    if me in self._waiting:
                        self._waiting.remove(me)
                    raise
        finally:
            self._count -= 1
            if self._queue:
                self._schedule()
