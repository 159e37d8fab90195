"""KeepAliveUser: a Locust user that is one keep-alive connection.

Write tasks for it as for `FastHttpUser`. What differs inside is what makes hundreds of thousands of them fit
on a machine: one connection instead of a pool, and no greenlet while the user thinks (see
:mod:`parked.loadtest.client.turns`).

A *turn* is what a user does between two think times: it runs Locust's own `TaskSet.run`, which ends the turn
where it would go to sleep. A nested TaskSet, `self.wait()` and `gevent.sleep()` inside a task keep their
greenlet while they sleep, as everywhere in Locust.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from gevent import GreenletExit
from greenlet import getcurrent
from locust import User
from locust.contrib.fasthttp import FastHttpUser
from locust.exception import StopTest, StopUser
from locust.user.task import (
    LOCUST_STATE_RUNNING,
    LOCUST_STATE_STOPPING,
    LOCUST_STATE_WAITING,
    DefaultTaskSet,
    TaskSet,
)

from parked.loadtest.client.errors import RequestFailure
from parked.loadtest.client.process import Process
from parked.loadtest.client.session import KeepAliveSession
from parked.loadtest.client.think import SLOT_S, Slot
from parked.loadtest.client.turns import UserHandle
from parked.loadtest.client.wire import FAR

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.pool import Group
    from locust.env import Environment

logger = logging.getLogger(__name__)

#: Users that Locust starts in one go open their connections spread over this many seconds, or each second of
#: a ramp would begin with all of its SYNs at once.
START_SPREAD_S = 1.0
#: Seconds before a user whose connection could not be opened tries again; doubled each time, up to the last.
RETRY_CONNECT_FIRST_S = 1.0
RETRY_CONNECT_LAST_S = 8.0


#: Waits below this many seconds keep their greenlet: the think timer has slots of half of it, and a wait of
#: nothing is to be nothing.
SHORT_WAIT_S = 2 * SLOT_S

#: Of a wait that a script means never to end, such as infinity: 30 years.
LONGEST_WAIT_S = 1e9

#: Settings of FastHttpUser that one connection of a user's own has no place for, and their defaults. Setting
#: one is an error, since to ignore it would be a surprise.
UNSUPPORTED = {
    "client_pool": None,
    "proxy_host": None,
    "proxy_port": None,
    "concurrency": 10,
    "max_retries": 0,
}


class Rest(BaseException):
    """Leaves `TaskSet.run` where it would sleep. Not an `Exception`, which `TaskSet.run` would take for a
    failed task."""

    __slots__ = ("seconds", "thinks")

    def __init__(self, seconds: float, thinks: bool = False) -> None:
        self.seconds = seconds
        #: Whether this is a think time between two tasks: it counts as one.
        self.thinks = thinks


class Waits(BaseException):
    """Leaves a turn where the user waits for bytes of its connection, and the next one comes with these."""


class RestingTaskSet(DefaultTaskSet):
    """Locust's default task set, except that its sleep ends the turn.

    Made for each turn, so it has no more than a turn needs, and that in slots: a turn asks for `user` eight
    times, each of which is a call in `TaskSet`.

    :ivar is_last: it is the user's on_stop that waits: there is nothing more to be told to end.
    """

    __slots__ = ("_in_task", "_session", "_task_queue", "is_last", "user")

    wait_function = None
    _cp_last_run = _cp_last_wait_time = _time_start = 0.0
    user: KeepAliveUser

    def __init__(self, user: KeepAliveUser, session: KeepAliveSession) -> None:
        self.user = user
        self._session = session
        self._task_queue = deque()
        self._in_task = self.is_last = False

    @property
    def parent(self) -> User:
        return self.user

    _user = _parent = parent

    @property
    def min_wait(self) -> float | None:  # type: ignore[override]
        return self.user.min_wait

    @property
    def max_wait(self) -> float | None:  # type: ignore[override]
        return self.user.max_wait

    def execute_next_task(self) -> None:
        self._in_task = True
        try:
            self.execute_task(self._task_queue.popleft())
        finally:
            self._in_task = False

    def start(self, on_start: Callable[[], object]) -> None:
        """Like a task, it keeps its greenlet while it waits."""
        self._in_task = True
        try:
            on_start()
        finally:
            self._in_task = False

    def wait(self) -> None:
        if self.is_last:
            self._sleep(self.wait_time())
            return
        if self._in_task:  # a task's own self.wait(): it goes on afterwards, so it needs its greenlet
            super().wait()
            return
        user = self.user
        if user._state == LOCUST_STATE_STOPPING:
            raise StopUser
        user._state = LOCUST_STATE_WAITING
        wait_s = self.wait_time()
        if wait_s >= SHORT_WAIT_S:
            raise Rest(wait_s, thinks=True)
        wait_s = float(wait_s) if wait_s > 0 else 0.0  # NaN would stop the event loop
        user._process.counters.thinks_s.append(wait_s)
        self._session.due = None
        self._sleep(wait_s)
        if user._state == LOCUST_STATE_STOPPING:
            raise StopUser
        user._state = LOCUST_STATE_RUNNING


def _wait_by_themselves(tasks: Any) -> bool:
    """Whether one of the tasks is a TaskSet that has waits of its own."""
    return any(
        task.wait_time is not TaskSet.wait_time or _wait_by_themselves(task.tasks)
        for task in tasks
        if isinstance(task, type) and issubclass(task, TaskSet)
    )


class KeepAliveUser(FastHttpUser):
    """One user, one connection, opened when the user starts and kept.

    :cvar think_time: shortest and longest think time in seconds, drawn evenly: --think, unless a class has
        its own. A `wait_time` of your own takes its place, as in any Locust user.
    :cvar network_timeout: seconds without any byte of a response after which a request has failed.
    :cvar connection_timeout: seconds that opening the connection may take.
    :cvar total_timeout: seconds that a request and all of its response may take, however steadily it comes.
        Each of the three may be None, for as long as it takes.
    :cvar max_body_bytes: of a response, as received and as decoded; a larger one has failed.
    :cvar insecure: whether any certificate will do: --insecure, unless a class says it.
    :cvar allow_redirects: whether redirections are followed where a request does not say.
    """

    abstract = True

    #: What such users do, for reports: keepalive, longpoll or events.
    workload: ClassVar[str] = "keepalive"
    think_time: ClassVar[tuple[float, float]] = (10.0, 90.0)
    total_timeout: float = 600.0
    max_body_bytes: int = 268_435_456
    allow_redirects: bool = True
    insecure: bool = False
    client: KeepAliveSession  # type: ignore[assignment]
    _greenlet: UserHandle
    #: None at rest, as long as no task has put others into its queue.
    _taskset_instance: RestingTaskSet | None
    #: Its own, once a script has something else as `client`.
    _session: KeepAliveSession | None = None
    #: Where the user waits among the think timer's slots; None while its turn runs.
    _slot: Slot | None = None
    _retry_connect_s = RETRY_CONNECT_FIRST_S

    def __init__(self, environment: Environment) -> None:
        for attribute, usual in UNSUPPORTED.items():
            if getattr(self, attribute) != usual:
                raise StopTest(
                    f"{type(self).__name__}.{attribute}: a KeepAliveUser has one connection of its own"
                )
        for attribute in ("connection_timeout", "network_timeout", "total_timeout"):
            if getattr(self, attribute) is None:
                setattr(self, attribute, FAR)
        # Not FastHttpUser's: it makes an HTTP client with a pool and a cookie jar, of which nothing is used.
        User.__init__(self, environment)
        if type(self).wait_time is KeepAliveUser.wait_time:
            self._cp_last_run = 0.0  # for constant_pacing alone, and 24 bytes for each user
        if self.host is None:
            raise StopTest("no host: give --host URL, or set `host` in the user class")
        self._process = Process.of(environment)
        if "," in self.host:
            self.host = self._process.target(self.host)
        self.client = self._process.newest_session = KeepAliveSession(self)

    # What subclasses may change

    def wait_time(self) -> float:
        """Seconds to think before the next task."""
        return random.uniform(*self.think_time)

    def first_wait_time(self) -> float:
        """Seconds from the start to the first task.

        With the built-in think times users begin as if they had been there for ever: the wait is what is left
        of a think time into which one looks at random, so that the request rate is (users / mean think time)
        from the first second on. The length of such a think time has a density proportional to itself, hence
        the square root (renewal theory: Cox, Renewal Theory, 1962, chapter 5). With a `wait_time` of its own,
        a class starts with a task at once, as in Locust.
        """
        own = getattr(self.wait_time, "__func__", None) is not KeepAliveUser.wait_time
        if own or not self.draws_think_time():
            return 0.0
        shortest, longest = self.think_time
        length = (shortest**2 + random.random() * (longest**2 - shortest**2)) ** 0.5
        return float(random.random() * length)

    @classmethod
    def draws_think_time(cls) -> bool:
        """Whether all of its waits are drawn from `think_time`."""
        return cls.wait_time is KeepAliveUser.wait_time and not _wait_by_themselves(cls.tasks)

    # What Locust's runner calls

    def start(self, group: Group) -> UserHandle:
        """In place of `User.start`, which spawns a greenlet for the user's whole life."""
        self._keep(self._process.newest_session)
        self._process.newest_session = None
        self._group = group
        self._greenlet = handle = UserHandle(self)
        group.add(handle)
        self._process.user_started(type(self).__name__)
        self._process.timer.sleep(self, random.random() * START_SPREAD_S, roughly=True)
        return handle

    def stop(self, force: bool = False) -> bool:
        """As in Locust; one whose connection is just being opened has nothing to end in order."""
        stopped: bool = super().stop(force or self._state is None)
        return stopped

    def _end(self, exception: Any = GreenletExit) -> None:
        """Stop the user now: its turn, if one runs, gets the exception."""
        handle = self._greenlet
        if handle.turn is not None:
            self._process.hub.loop.run_callback(handle.throw, handle.turn, exception)
            return
        self._process.timer.forget(self)
        if type(self).on_stop is User.on_stop:
            self._finish()
        elif self._state != LOCUST_STATE_STOPPING:  # otherwise its last turn is already on its way
            self._state = LOCUST_STATE_STOPPING
            self._process.turns.run_soon(self._last_turn)

    # One turn

    def _turn(self, due: float) -> None:
        self._greenlet.turn = getcurrent()
        session = self._session or self.client
        try:
            if self._state == LOCUST_STATE_WAITING:
                self._state = LOCUST_STATE_RUNNING
                session.due = due
                self._work(session)()
            else:
                self._begin(session)()
        except Rest as rest:
            self._let_go(session)
            process, seconds = self._process, float(rest.seconds)
            slept_s = process.timer.sleep(self, seconds if seconds < LONGEST_WAIT_S else LONGEST_WAIT_S)
            if rest.thinks:
                process.counters.thinks_s.append(slept_s)
        except Waits:
            self._let_go(session)
        except (GreenletExit, StopUser, StopTest):
            self._keep(session)
            self._last_turn()
        except BaseException:
            self._keep(session)
            self._finish()
            raise

    def _own_session(self) -> KeepAliveSession:
        """At the beginning of a turn: whatever a script has put in its place since, it is known by then."""
        return self._session or self.client

    def _keep(self, session: KeepAliveSession | None) -> None:
        """A script may have something else as `client` now; the connection is still this one's."""
        if session is not None and session.user is self and getattr(self, "client", None) is not session:
            self._session = session

    def _let_go(self, session: KeepAliveSession) -> None:
        """Give up what a turn needs."""
        self._greenlet.turn = None
        session.due = None
        if getattr(self, "client", None) is not session:
            self._keep(session)
        taskset = self._taskset_instance
        if taskset is not None and not taskset._task_queue:
            self._taskset_instance = None

    def _work(self, session: KeepAliveSession) -> Callable[[], None]:
        """What there is to do until the next rest, which raises."""
        taskset = self._taskset_instance
        if taskset is None:
            taskset = self._taskset_instance = RestingTaskSet(self, session)
        return taskset.run

    def _begin(self, session: KeepAliveSession) -> Callable[[], None]:
        """As `User.run` begins, with the connection opened first; returns what there is to do then."""
        self._open_connection(session)
        self._state = LOCUST_STATE_RUNNING
        taskset = self._taskset_instance = RestingTaskSet(self, session)
        try:
            taskset.start(self.on_start)
        except Exception as error:
            logger.error("%s\n%s", error, traceback.format_exc())
            if not isinstance(error, StopUser | StopTest):
                self.environment.events.user_error.fire(
                    user_instance=self, exception=error, tb=error.__traceback__
                )
            raise
        if self._state == LOCUST_STATE_STOPPING:  # asked to stop while on_start waited for something
            raise StopUser
        wait_s = self.first_wait_time()
        if wait_s > 0:
            self._state = LOCUST_STATE_WAITING
            raise Rest(wait_s)
        return self._work(session)

    def _open_connection(self, session: KeepAliveSession) -> None:
        try:
            session.connect()
        except RequestFailure as failure:
            session.record_failure("CONNECT", failure)
            wait_s = self._retry_connect_s
            self._retry_connect_s = min(2 * wait_s, RETRY_CONNECT_LAST_S)
            raise Rest(wait_s) from None

    def _last_turn(self) -> None:
        self._greenlet.turn = getcurrent()
        session = self._own_session()
        taskset = self._taskset_instance = RestingTaskSet(self, session)
        taskset.is_last = True
        try:
            self.on_stop()
        finally:
            self._keep(session)
            self._finish()

    def _finish(self) -> None:
        try:
            self._own_session().close()
        finally:
            self._process.user_ended(type(self).__name__)
            self._greenlet.finish()
