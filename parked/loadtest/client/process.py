"""What all users of a Locust process share.

One of each in a worker (or in a Locust that runs without workers): the epoll set, the think timer, the turn
greenlets, the counters, the statistics, and per server address what its connections have in common.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import gevent
from locust.runners import WorkerRunner

from parked.loadtest.client.counters import Counters
from parked.loadtest.client.errors import RequestFailure
from parked.loadtest.client.heard import HeardByProcess
from parked.loadtest.client.locust_stats import BatchedStatistics
from parked.loadtest.client.origin import Origin, Place, Server, TlsSettings, last_of_each, tls_context
from parked.loadtest.client.readiness import Readiness
from parked.loadtest.client.think import GOLDEN, SLOT_S, Sleeper, ThinkTimer
from parked.loadtest.client.turns import TurnPool
from parked.loadtest.terms import values, variables
from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.sample import MESSAGE, Sample
from parked.shared.moderation import Moderation
from parked.shared.pauses import Collections

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from locust.env import Environment
    from locust.runners import Runner

    from parked.loadtest.client.response import KeepAliveResponse

logger = logging.getLogger(__name__)

#: Seconds between two samples for the master.
SAMPLE_S = 1.0

#: Allocations between two collections of the youngest generation, and collections of one generation per
#: collection of the next. Users at rest are live objects by the ten thousand that no collection will ever
#: free; Python's defaults (700, 10, 10) would walk them all again and again in a ramp. Requests make no
#: cycles, so little waits to be collected.
GC_THRESHOLDS = (100_000, 50, 1_000)
#: Characters of the Server field that are told; it goes to the master each second.
LONGEST_NAME = 100

#: In place of what a task has taken out of `KeepAliveResponse.request_meta`.
TAKEN_OUT = {
    "request_type": "",
    "name": "",
    "response_time": None,
    "response_length": None,
    "start_time": None,
    "context": None,
}


def _is_quantity(value: object) -> bool:
    """Whether it can be a time (ms) or a length (bytes)."""
    return isinstance(value, int | float) and 0 <= value < 1e15


class Member(Sleeper, TlsSettings, Protocol):
    """A user, as its process knows it."""

    default_headers: dict[str, str] | None

    def _turn(self, due: float) -> None: ...

    def context(self) -> dict[str, Any]: ...


class Owner(Member, Protocol):
    """A user, as its session knows it."""

    host: str | None
    environment: Environment
    _process: Process
    connection_timeout: float
    network_timeout: float
    total_timeout: float
    max_redirects: int
    max_body_bytes: int
    allow_redirects: bool


def _let_others_finish() -> None:
    """Batch processes do not preempt each other on waking (sched(7)).

    So each ends what it is at while its caches are warm. 51 processes of client and server on two cores,
    8,000 requests/s, p99 of 20-s holds: 361, 431, 881 ms without it, 74, 145 ms with it. The master is left
    out: what it does is little and must not wait.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:  # a sandbox that does not know the call; slower, that's all
        pass


#: What a child forked by a task must let go of (see :func:`_let_go`).
_PROCESSES: weakref.WeakSet[Process] = weakref.WeakSet()


def _let_go() -> None:
    """In a child that a task has forked: leave the connections to the parent.

    The two share the epoll set, and each edge is told to one of them only.
    """
    for process in list(_PROCESSES):
        process.readiness.close()
        process.timer.close()


os.register_at_fork(after_in_child=_let_go)


class Process:
    """Made with the first user of a process, after any fork. Get it with :meth:`of`."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.hub = gevent.get_hub()
        self.counters = Counters()
        #: Connections and requests to other hosts than the users' own: no part of what a run holds.
        self.elsewhere = Counters()
        #: What those users hear who wait for what is sent (long polls, event streams).
        self.heard = HeardByProcess()
        self.pauses = Collections()
        self.readiness = Readiness()
        self.readiness.pause_s = self.heard.pause_s
        self.turns = TurnPool()
        number = max(getattr(environment.runner, "worker_index", 0), 0)
        self.timer: ThinkTimer[Member] = ThinkTimer(self._wake, number)
        self.statistics = BatchedStatistics(environment)
        self._moderation = Moderation()
        #: Requests under way: by session when they were due (`time.perf_counter`). Of a long poll, when its
        #: answer is.
        self.open_requests: dict[object, float] = {}
        #: Of the user that was made last, before its class may have put something else in its place.
        self.newest_session: Any = None
        #: Running users by class name, and most of them that the garbage collector was kept from.
        self.users: Counter[str] = Counter()
        self._users_ended = 0
        self._frozen = 0
        #: The Server field of the first response; None before one came.
        self.server_software: str | None = None
        self._servers: weakref.WeakValueDictionary[tuple[str, int], Server] = weakref.WeakValueDictionary()
        self._origins: weakref.WeakValueDictionary[tuple[Any, ...], Origin] = weakref.WeakValueDictionary()
        self._tls_contexts: dict[tuple[Any, ...], ssl.SSLContext] = {}
        self._targets: dict[str, Iterator[str]] = {}
        _PROCESSES.add(self)
        # Before whoever listens already: they look at figures that are only whole after this.
        environment.events.test_stopping._handlers.insert(0, self._test_stopping)
        environment.events.test_stop._handlers.insert(0, self._test_stopped)
        environment.events.spawning_complete.add_listener(freeze_users)
        gc.set_threshold(*GC_THRESHOLDS)
        _let_others_finish()
        gevent.spawn(self._report, number * GOLDEN % 1 * SAMPLE_S)

    @classmethod
    def of(cls, environment: Environment) -> Process:
        process: Process | None = getattr(environment, "parked_process", None)
        if process is None:
            process = environment.parked_process = cls(environment)  # type: ignore[attr-defined]
        return process

    def origin(self, url: str, user: Member) -> Origin:
        """Whom the user talks to at the URL of a host; users who say the same of themselves share it.

        Raises ValueError for what is no http:// or https:// URL.
        """
        headers, factory = last_of_each(user.default_headers or ()), user.ssl_context_factory
        # What a method of the user's makes is the user's own.
        shared = getattr(factory, "__self__", None) is not user
        key = (url, user.insecure, factory, *((name, str(value)) for name, value in headers.items()))
        origin = self._origins.get(key) if shared else None
        if origin is None:
            place = Place.of(urlsplit(url))
            context = self._tls_context(user, shared) if place.scheme == "https" else None
            origin = Origin(url, self.server(place), headers, context)
            if shared:
                self._origins[key] = origin
        return origin

    def server(self, place: Place) -> Server:
        address = place.hostname, place.port
        server = self._servers.get(address)
        if server is None:
            worker_index = getattr(self._environment.runner, "worker_index", 0)
            server = self._servers[address] = Server(*address, worker_index)
        return server

    def _tls_context(self, user: Member, shared: bool) -> ssl.SSLContext:
        key = user.insecure, user.ssl_context_factory
        if not shared:
            return tls_context(user)
        if key not in self._tls_contexts:
            self._tls_contexts[key] = tls_context(user)
        return self._tls_contexts[key]

    def target(self, hosts: str) -> str:
        """The next of several URLs with commas between, in turns. Workers begin at different ones, so that
        what does not divide evenly falls on all of them."""
        turns = self._targets.get(hosts)
        if turns is None:
            urls = values.hosts(hosts)
            begin = max(getattr(self._environment.runner, "worker_index", 0), 0) % len(urls)
            turns = self._targets[hosts] = itertools.cycle(urls[begin:] + urls[:begin])
        return next(turns)

    def _wake(self, user: Member, due: float) -> None:
        """Its think time is over: run a turn. Called in the hub."""
        self.turns.run(user._turn, due)

    def user_started(self, class_name: str) -> None:
        self.users[class_name] += 1

    def user_ended(self, class_name: str) -> None:
        self.users[class_name] -= 1
        self._users_ended += 1

    def request_done(
        self,
        user: Member,
        meta: dict[str, Any],
        received_bytes: int,
        failure: Exception | None,
        response: KeepAliveResponse | None = None,
    ) -> None:
        """Count a request that has ended, here and in Locust.

        :param meta: what the request event is given, without what only listeners of it see. Time, length and
            names may be what a task has put there; what is no number fails its request.
        """
        if seen := "response" in meta:  # a task may have changed anything
            meta = TAKEN_OUT | meta
        time_ms, length_bytes = meta["response_time"], meta["response_length"]
        name, method = meta["name"], meta["request_type"]
        if seen and not (_is_quantity(time_ms) and _is_quantity(length_bytes)):
            failure = failure or RequestFailure("the task has set a time or length that is no number")
            time_ms, length_bytes = 0.0, 0
        if type(name) is not str or type(method) is not str:
            method, name = str(method), str(name)  # Locust sorts its rows by them
        self.counters.request_done(time_ms, length_bytes, received_bytes, failure)
        if self.server_software is None and response is not None and response.status_code:
            self.server_software = str(response.headers.get("server", ""))
        if self.statistics.only_locust_listens:
            self.statistics.log(method, name, time_ms, length_bytes, failure)
        else:
            if response is None:
                told = meta | {"response": None, "context": {**user.context(), **(meta["context"] or {})}}
            else:
                told = TAKEN_OUT | response.request_meta
            checked = {
                "request_type": method,
                "name": name,
                "response_time": time_ms,
                "response_length": length_bytes,
                "exception": failure,
            }
            self.statistics.tell(**told | checked)

    def send_sample(self) -> None:
        runner = self._environment.runner
        if self.users.total() > self._frozen:
            self._frozen = self.users.total()
            freeze_users()
        if runner is not None and self._is_heard(runner):
            source = next((server.sources for server in list(self._servers.values()) if server.sources), "")
            counted = self.counters.sample(self.timer, source, self.users.total())
            sample: Sample = {
                **counted,  # type: ignore[typeddict-item]  # it might have a key that it does not
                "elsewhere": self.elsewhere.requests_sent_now,
                "others": self.statistics.others,
                "others_failed": self.statistics.others_failed,
                "users_ended": self._users_ended,
                "open_s": self._open_s(),
                "gc_pause_s": self.pauses.seconds,
                "gc_pause_max_s": self.pauses.begin_window(),
                "server": (self.server_software or "")[:LONGEST_NAME],
                "host": os.environ.get(variables.HOST, ""),
            }
            if self.heard.used:
                sample["heard"] = self.heard.sample()
            runner.send_message(MESSAGE, sample)

    def _is_heard(self, runner: Runner) -> bool:
        """Whether there is a recorder. Not in an environment that a program has made: Locust would say of
        each sample that nobody takes it."""
        if isinstance(runner, WorkerRunner):
            return self._environment.parsed_options is not None
        return MESSAGE in runner.custom_messages

    def _open_s(self) -> list[Any]:
        now, ages = time.perf_counter(), Distribution()
        ages.add([now - due for due in self.open_requests.values() if due <= now])
        return ages.as_list()

    def _report(self, phase_s: float) -> None:
        """Fold the statistics and send samples, each second as near to its end as the loop allows.

        :param phase_s: by which it is behind the first process. All had their first users at once, and
            22 that count what they did in the same milliseconds keep two cores from all else.
        """
        loop = self.hub.loop
        gevent.sleep(phase_s)
        next_sample = loop.now()
        while True:
            next_sample = max(next_sample, loop.now() - SAMPLE_S) + SAMPLE_S
            gevent.sleep(max(0.0, next_sample - loop.now()))
            try:
                self.statistics.fold()
                self._moderate()
                self.turns.give_back()
                self.send_sample()
            except Exception:  # without samples the master would take this process for dead
                logger.exception("a sample could not be made")

    def _moderate(self) -> None:
        """If cores are short, fetch responses when think times end."""
        window_s = self._moderation.look(self.readiness.events, self.counters.connections)
        self.readiness.events = 0
        self.readiness.fetch_at_once(not window_s)
        dispatch = self.readiness.dispatch if window_s else None
        self.timer.serve_together(max(1, round(window_s / SLOT_S)), dispatch)

    def _test_stopping(self, **_: Any) -> None:
        self.timer.paused = True

    def _test_stopped(self, **_: Any) -> None:
        self.timer.paused = False  # nobody is left, unless they have come since
        self._frozen = 0
        self.statistics.fold()
        self.send_sample()
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            # A worker with a stop timeout sleeps for all of it before it hears that it is to quit: too late,
            # its master is gone by then (docs/upstream/locust-quit.md).
            runner._send_stats()


def freeze_users(**_: Any) -> None:
    """Keep the garbage collector from walking the users that are there (Python docs, gc.freeze).

    Without a collection before: all workers come here at once, and 32 of them with 18,750 users each stood
    still for two seconds. In a ramp they come here each second, or all of them would reach the collector's
    threshold together: 0.6 to 2 s, at 600,000 connections. What garbage is frozen along is little, since
    requests make no cycles.
    """
    gc.freeze()
