"""Users without greenlets: a user at rest is an object, and borrows a greenlet for each turn.

A greenlet at rest costs 6-8 KB: a page of Python data stack, its saved C stack and gevent's object. A user
rests nearly all of its life, so none is kept for it: when its think time ends, an idle greenlet of a small
pool runs its turn (one task, up to the next think time). As many greenlets exist as turns were ever under way
at once.

Locust keeps its users' greenlets in a `gevent.pool.Group`: counts them, walks them and kills them.
:class:`UserHandle` stands there in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import gevent
from gevent import GreenletExit
from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

#: Greenlets kept for later turns. A worker has tens of turns under way at once; after a server's stall it may
#: have had thousands, whose memory (7 KB each) is given back.
IDLE_MAX = 200


#: One of so many idle greenlets ends when the pool is told to give back. A ramp needs hundreds at once; what
#: a hold needs again is made again, 13 us each.
GIVEN_BACK = 10


class _Over(BaseException):
    """Ends an idle greenlet."""


def _nothing() -> None: ...


def _end() -> None:
    raise _Over


class TurnPool:
    """Runs functions in reused greenlets."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._idle: list[greenlet] = []

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Run it now, up to where it first blocks. To be called in the hub."""
        turn = self._idle.pop() if self._idle else greenlet(self._loop, self._hub)
        turn.switch(function, args)

    def run_soon(self, function: Callable[..., None], *args: Any) -> None:
        """Run it in the next iteration of the loop. May be called from anywhere."""
        self._hub.loop.run_callback(self.run, function, *args)

    def give_back(self) -> None:
        """End a part of those that are idle. May be called from anywhere."""
        self._hub.loop.run_callback(self._give_back)

    def _give_back(self) -> None:
        some = len(self._idle) // GIVEN_BACK
        ended, self._idle[:some] = self._idle[:some], []
        for turn in ended:
            turn.switch(_end, ())

    def _loop(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        me = getcurrent()
        to_hub = self._hub.switch
        while True:
            try:
                function(*args)
            except GreenletExit:
                pass
            except _Over:
                return
            except BaseException as error:  # the same place that an uncaught error of a greenlet goes to
                self._hub.handle_error(function, type(error), error, error.__traceback__)
            if len(self._idle) >= IDLE_MAX:
                return
            self._idle.append(me)
            function, args = _nothing, ()  # or an idle greenlet would keep its last user
            while True:
                try:
                    function, args = to_hub()
                    break
                except BaseException as error:  # a gevent.Timeout that a task started and never cancelled
                    self._hub.handle_error(me, type(error), error, error.__traceback__)


class Ending(Protocol):
    """A user that can be told to end."""

    def _end(self, exception: Any) -> None: ...


class UserHandle:
    """Stands in Locust's group of user greenlets for one user.

    Has what `gevent.pool.Group` and `locust.runners` use of a greenlet: `args`, `dead`, `ready`, `kill`,
    `join`, `rawlink` and `unlink`. Which calls these are is checked by the tests against the pinned versions.
    """

    __slots__ = ("_links", "dead", "turn", "user")

    _usual_links: ClassVar[tuple[Callable[[UserHandle], object], ...]] = ()

    def __init__(self, user: Ending) -> None:
        self.user = user
        self.dead = False
        #: The greenlet that runs the user's turn, or None at rest.
        self.turn: greenlet | None = None
        self._links: tuple[Callable[[UserHandle], object], ...] = ()

    @property
    def args(self) -> tuple[Ending]:
        """Locust finds a greenlet's user here (`Runner.stop_users`)."""
        return (self.user,)

    @property
    def name(self) -> str:
        return f"{type(self.user).__name__}-{id(self):x}"

    def ready(self) -> bool:
        return self.dead

    # What scripts may ask of their `greenlet` besides

    started, value, exception = True, None, None

    def successful(self) -> bool:
        return self.dead

    def link(self, callback: Callable[[UserHandle], object]) -> None:
        """Call it in a greenlet of its own once the user has ended."""
        self.rawlink(lambda handle: gevent.spawn(callback, handle) and None)

    def rawlink(self, callback: Callable[[UserHandle], object]) -> None:
        if self.dead:
            self._tell(callback)
        else:
            # Group.add links its own discard, and mostly nobody else anything: all users share what that
            # makes, 112 bytes each otherwise.
            links = (*self._links, callback)
            if links != UserHandle._usual_links:
                UserHandle._usual_links = links
            self._links = UserHandle._usual_links

    def unlink(self, callback: Callable[[UserHandle], object]) -> None:
        self._links = tuple(link for link in self._links if link != callback)

    def finish(self) -> None:
        """The user has ended: tell the groups."""
        self.dead, self.turn = True, None
        links, self._links = self._links, ()
        for link in links:
            self._tell(link)

    def _tell(self, link: Callable[[UserHandle], object]) -> None:
        """In the hub, as gevent does: whoever waits for several at once can be told nowhere else."""
        gevent.get_hub().loop.run_callback(link, self)

    def kill(self, exception: Any = GreenletExit, block: bool = True, timeout: float | None = None) -> None:
        if not self.dead:
            self.user._end(exception)
        if block:
            self.join(timeout)

    def throw(self, turn: greenlet, exception: Any) -> None:
        """Raise the exception in the turn. If that is over by now, its greenlet may serve another user: end
        at rest."""
        if self.turn is turn is not None:
            turn.throw(exception)
        elif not self.dead:
            self.user._end(exception)

    def join(self, timeout: float | None = None) -> None:
        if self.dead:
            return
        if self.turn is getcurrent():
            gevent.sleep(0)  # if it was told to end, it does so here
            return
        ended = gevent.event.Event()
        self.rawlink(lambda _: ended.set())
        ended.wait(timeout)
