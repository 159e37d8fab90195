"""Request greenlets: a few, reused, for the connections that have something to say.

The first switch into a new greenlet costs 13 us, because it maps a fresh stack; a switch into one that waits
costs 1 us. So the hub switches straight to a waiting greenlet, which serves the queue until it is empty or
until the application blocks; only then, with work left and nobody waiting, is a new greenlet made.

A greenlet is reused only if nothing of a request is left on it. Context variables are reset for each request
(`parked.server.server`); what else an application leaves shows in who refers to the greenlet: an entry of
`gevent.local` and a thread object are linked to it or know it weakly, a `gevent.Timeout` that was never
cancelled holds it, and so does whoever keeps it as a key. A greenlet with more such ties than it had at its
beginning ends, as it would in pywsgi; then locals are gone, and the timeout fires into nobody's request. The
looks cost 0.2 us per request. One whose request has failed gets such a tie (`end_with_request`): it may have
been killed, and who kills a greenlet waits for its end.

With a pool, a greenlet is a member of it only while it serves, and waits for its place in a greenlet of its
own, in turn with all others who want one: the hub never waits, and what is idle is in nobody's way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from sys import getrefcount
from typing import Any, Final
from weakref import WeakSet, getweakrefcount

from gevent import Greenlet
from gevent.hub import get_hub
from greenlet import getcurrent

from parked.server.connection import Connection
from parked.server.turns import of_hub

#: Waiting greenlets kept for the next burst; each holds about 10 KB.
MAX_WAITING: Final = 64
#: Seconds until a greenlet is asked for again when none could be made.
RETRY_S: Final = 0.05


def ties(greenlet: Any) -> int:
    """How much there is that knows this greenlet, as a number to compare."""
    links: Callable[[], int] = getattr(greenlet, "has_links", int)
    return getrefcount(greenlet) + getweakrefcount(greenlet) + links()


#: Greenlets whose request has failed. That they are known here is their tie.
_failed: Final[WeakSet[Any]] = WeakSet()


def end_with_request() -> None:
    """Have the present greenlet serve nobody after this request."""
    _failed.add(getcurrent())


class _Waiting:
    """A greenlet that waits for work, and how many refer to it when nothing of a request is left."""

    __slots__ = ("greenlet", "referrers")

    def __init__(self, greenlet: Any) -> None:
        self.greenlet = greenlet
        self.referrers = 0  # not yet counted


class RequestGreenlets:
    """Serve connections, each in one greenlet at a time.

    :param serve: serves one connection; it handles its own errors and returns when it is done with it.
    :param spawn: makes a greenlet, as *spawn* of `gevent.baseserver.BaseServer`; None serves in the hub.
    :param pool: a `gevent.pool.Pool` or the like that bounds the requests in flight; others wait.
    :param on_fault: told of exceptions that have nowhere else to go; raises none itself.
    """

    def __init__(
        self,
        serve: Callable[[Connection], None],
        spawn: Callable[..., Any] | None,
        pool: Any = None,
        on_fault: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self._serve = serve
        # A pool that can be entered is entered by the greenlet itself; of any other only spawn() is known.
        self._pool = pool if hasattr(pool, "add") and hasattr(pool, "discard") else None
        self._spawn = spawn if self._pool is None else self._spawn_outside
        self._on_fault = on_fault
        self._hub = get_hub()
        self._turns = of_hub()
        self._queue: deque[Connection] = deque()
        self._waiting: list[_Waiting] = []
        self._count = 0  # greenlets alive, the waiting ones with them
        self._entering = 0  # of these, in the pool's queue: one at most is sent there
        self._running = False  # inside run(): whoever yields comes back there
        self._budget = 0
        self._scheduled = False
        self._stopping = False
        self._retry: Any = None

    @property
    def active(self) -> int:
        """Requests in flight and connections queued."""
        return self._count - self._entering - len(self._waiting) + len(self._queue)

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
        """Serve what is queued now; what is added meanwhile waits until the hub has been round once.

        Whatever goes wrong, it returns: gevent stops a watcher whose callback raised.
        """
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
                elif self._entering:
                    return  # it will serve as soon as it has a place
                elif self._waiting:
                    self._wake(self._waiting.pop())
                else:
                    self._grow(self._spawn)
                    return
        except BaseException as error:
            self._fault("serving the queue", error)
            self._retry_later()
            return
        finally:
            self._running = False
        if self._queue:
            self._schedule()
        elif self._stopping:
            self._end_waiting()

    def stop(self) -> None:
        """Let the waiting greenlets end now, the others after their request."""
        self._stopping = True
        self._hub.loop.run_callback(self._end_waiting)

    def forget(self) -> None:
        """In a forked child: the queue and the greenlets are the parent's."""
        self._queue.clear()
        self._waiting.clear()
        self._stopping = True

    def _end_waiting(self) -> None:
        """In the hub, where the greenlets that end come back to."""
        while self._waiting:
            try:
                self._waiting.pop().greenlet.switch(False)
            except BaseException as error:
                self._fault("ending a request greenlet", error)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._hub.loop.run_callback(self.run)

    def _retry_later(self) -> None:
        self._retry = self._hub.loop.timer(RETRY_S)
        self._retry.start(self.run)

    def _fault(self, what: str, error: BaseException) -> None:
        if self._on_fault is not None:
            self._on_fault(what, error)

    def _wake(self, waiting: _Waiting) -> None:
        """Let it serve the queue, or end if somebody still refers to it."""
        referrers = getrefcount(waiting.greenlet)
        if not waiting.referrers:
            waiting.referrers = referrers  # it has served nobody yet
        waiting.greenlet.switch(referrers <= waiting.referrers)

    def _grow(self, spawn: Callable[..., Any]) -> None:
        """Make a greenlet, which calls for run() when it has started."""
        self._count += 1
        try:
            spawn(self._work)
        except BaseException:  # a pool that is full, or no memory
            self._count -= 1
            raise

    def _spawn_outside(self, run: Callable[[], None]) -> None:
        getattr(self._pool, "greenlet_class", Greenlet)(run).start()

    def _work(self) -> None:
        """A request greenlet: serve while called by run(), then wait for the next call."""
        me = getcurrent()
        waiting = _Waiting(me)
        links: Callable[[], int] = getattr(me, "has_links", int)
        ties = links() + getweakrefcount(me)
        pool = self._pool
        try:
            while len(self._waiting) < MAX_WAITING and (self._queue or not self._stopping):
                self._waiting.append(waiting)
                if self._queue and not self._running:
                    self._schedule()
                try:
                    clean = self._hub.switch()
                except BaseException:  # killed while waiting, or a timeout of a request that is over
                    if waiting in self._waiting:
                        self._waiting.remove(waiting)
                    return
                if not clean:
                    return
                if pool is not None and not self._enter(pool, me):
                    return
                try:
                    self._serve_queue(me, links)
                finally:
                    if pool is not None:
                        pool.discard(me)
                if links() + getweakrefcount(me) != ties:
                    return
        finally:
            self._count -= 1
            if self._queue:
                self._schedule()

    def _enter(self, pool: Any, me: Any) -> bool:
        """Become a member of the pool, in turn; False if that cannot be."""
        self._entering += 1
        try:
            pool.add(me)
        except BaseException as error:  # killed, or a pool of another kind
            self._fault("entering the pool", error)
            return False
        finally:
            self._entering -= 1
            if self._queue and not self._running:
                self._schedule()  # what had to wait with us
        return True

    def _serve_queue(self, me: Any, links: Callable[[], int]) -> None:
        """One connection, and more as long as run() waits for us and nothing is left of the one before."""
        if not self._running and self._queue:
            self._serve(self._queue.popleft())  # we had to wait for our place
            return
        queue, serve = self._queue, self._serve
        ties = getrefcount(me) + getweakrefcount(me) + links()
        while self._running and queue and self._budget > 0:
            self._budget -= 1
            serve(queue.popleft())
            if getrefcount(me) + getweakrefcount(me) + links() != ties:
                return
