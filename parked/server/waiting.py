"""All pending responses of a process: their number, deadlines and callbacks, and their end when it stops."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import Any, Final

import gevent
from gevent import monkey
from gevent.hub import get_hub
from greenlet import getcurrent

from parked.server.connection import Connection
from parked.server.deadlines import Deadlines
from parked.server.dispatch import ties
from parked.server.parking import Parking
from parked.server.pending import REASONS, Callback, PendingResponse, Reason
from parked.server.reports import described
from parked.server.turns import of_hub

#: Bytes that may wait for a client that does not read; a single body or chunk may be longer. Too few cut off
#: slow links in a burst of events, too many are memory for clients that nobody sits behind.
MAX_OUTGOING_BYTES: Final = 65536
#: Greenlets that run callbacks at once; only callbacks that block need more than one.
MAX_CALLERS: Final = 64
#: Pending responses that are ended in one go when the server stops, some 20 us each.
STOPS_A_TURN: Final = 128
#: Seconds over which clients are asked to spread their return, when the server stops or is full.
RETRY_SPREAD_S: Final = 5

_get_ident: Callable[[], int] = monkey.get_original("_thread", "get_ident")


class PendingResponses:
    """Keeps the pending responses of a server.

    :param serve: serves a connection whose next request may be there already.
    :param finish: ends a connection behind its last response.
    :param on_end: told of each response that has ended, with its connection, for log and statistics.
    :param on_called: told when the last callback has returned.
    :param log: writes a line for the operator.
    :param on_fault: told of exceptions that have nowhere else to go; raises none itself.
    :param limit: pending responses at once; more get a 503. 0 for no bound.
    """

    def __init__(
        self,
        parking: Parking,
        serve: Callable[[Connection], None],
        finish: Callable[[Connection], None],
        on_end: Callable[[PendingResponse, Connection], None],
        on_called: Callable[[], None],
        log: Callable[[str], Any],
        on_fault: Callable[[str, BaseException], None],
        write_timeout: float = 0,
        limit: int = 0,
    ) -> None:
        self.write_timeout = write_timeout
        self.limit = limit
        self.max_outgoing_bytes = MAX_OUTGOING_BYTES
        self.deadlines: Deadlines[PendingResponse] = Deadlines(PendingResponse.on_due, self.give_up)
        self.thread = 0
        self.stopping = False
        # Counters, since the start; `count` is of now.
        self.count = 0
        self.deferred = 0
        self.messages = 0
        self.heartbeats = 0
        self.chunk = b""
        self.framed = b""
        self.totals: dict[int, int] = {}
        self.endings: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self._parking = parking
        parking.later = self._later
        self._serve = serve
        self._finish = finish
        self._on_end = on_end
        self._on_called = on_called
        self._log = log
        self._on_fault = on_fault
        self._calls: deque[tuple[Callback, PendingResponse]] = deque()
        self._callers = 0
        self._scheduled = False
        self._loop: Any = None

    def figures(self) -> Iterator[tuple[str, int]]:
        """What is counted here: name and value."""
        yield "pending", self.count
        yield "deferred", self.deferred
        yield "pending_messages", self.messages
        yield "pending_heartbeats", self.heartbeats
        for reason in REASONS:
            yield f"pending_{reason}", self.endings[reason]

    def _later(self) -> tuple[int, int]:
        return self.deferred, self.count

    def open(self) -> None:
        """The server starts, in this thread."""
        self.thread = _get_ident()
        self.stopping = False
        self._loop = get_hub().loop

    def add(self, connection: Connection, flags: int, **options: Any) -> PendingResponse:
        """Make the response of a connection's request a pending one; for *options* see docs/pending.md.

        :raises RuntimeError: this is not the server's thread.
        """
        if _get_ident() != self.thread:
            raise RuntimeError("parked.defer: this is another thread than the request's")
        pending = PendingResponse(self, connection, flags, **options)
        pending.started = monotonic()
        connection.busy = pending
        self.deferred += 1
        self.count += 1
        if self.limit and self.count > self.limit:
            pending.refuse()
        return pending

    def stop(self) -> None:
        """End all in order, some at a time, and from now on each that is added."""
        self.stopping = True
        self._stop_some(deque(c.busy for c in self._parking.connections()))

    def _stop_some(self, holders: deque[Any]) -> None:
        for _ in range(min(STOPS_A_TURN, len(holders))):
            pending = holders.popleft()
            if isinstance(pending, PendingResponse):
                try:
                    pending.stop()
                except Exception as error:
                    self.give_up(pending, error)
        if holders:
            of_hub().after_poll(partial(self._stop_some, holders))

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        for connection in self._parking.connections():
            if isinstance(connection.busy, PendingResponse):
                connection.busy.disown()
        self.deadlines.clear()
        self._calls.clear()
        self._callers = self.count = 0

    # -- callbacks

    @property
    def calling(self) -> bool:
        """Whether a callback runs, or is to."""
        return bool(self._calls) or self._callers > 0

    def call(self, function: Callback, pending: PendingResponse) -> None:
        self._calls.append((function, pending))
        self._schedule()

    def call_from_thread(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._loop.run_callback_threadsafe(gevent.spawn, function, *arguments)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self._add_caller)

    def _add_caller(self) -> None:
        """In the hub: calls that are left here wait for a caller that blocks, or for the first one."""
        self._scheduled = False
        if self._calls and self._callers < MAX_CALLERS:
            try:
                gevent.spawn(self._make_calls)
            except BaseException as error:  # no memory; those that are there, or the next, will see to it
                self._on_fault("making a greenlet for callbacks", error)
            else:
                self._callers += 1

    def _make_calls(self) -> None:
        """One after another, as long as none leaves anything behind for the next, as with requests."""
        me = getcurrent()
        before = ties(me)
        process = os.getpid()
        try:
            while self._calls and ties(me) == before:
                function, pending = self._calls.popleft()
                if self._calls:
                    self._schedule()
                try:
                    function(pending)
                except Exception as error:
                    self.give_up(pending, error)
                function = pending = None  # type: ignore[assignment]
                me.gr_context = None
        finally:
            if process == os.getpid():  # not in the child of a fork, which has not counted it
                self._callers -= 1
            if self._calls:
                self._schedule()
            elif not self._callers:
                self._on_called()

    def complain(self, callback: Any, error: BaseException) -> None:
        """One line about a callback of the application that failed, with the place."""
        name = getattr(callback, "__qualname__", None) or f"a {type(callback).__name__}"
        place = ""
        if error.__traceback__ is not None:
            trace = error.__traceback__
            while trace.tb_next is not None:
                trace = trace.tb_next
            place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        self._log(f"pending response: {name} failed: {described(error)}{place}\n")

    def retry_after(self) -> str:
        return str(random.randint(1, RETRY_SPREAD_S))

    # -- connections

    def watch_room(self, connection: Connection, wanted: bool) -> None:
        self._parking.watch_room(connection, wanted)

    def ended(self, pending: PendingResponse, connection: Connection, keep: bool, lost: bool) -> None:
        self._count_end(pending)
        connection.busy = True
        try:
            self._on_end(pending, connection)
        except Exception as error:
            self._on_fault("logging a pending response", error)
        if lost:
            self._parking.close(connection)
        elif not keep or self.stopping:
            self._finish(connection)
        elif connection.buffer or connection.reported:
            self._serve(connection)
        else:
            self._parking.park(connection)

    def give_up(self, pending: PendingResponse, error: BaseException) -> None:
        """Something of ours has failed: it costs this response, and no other."""
        self._on_fault("a pending response", error)
        try:
            pending.abandon()
        except Exception as another:
            self._on_fault("giving up a pending response", another)

    def withdrawn(self, pending: PendingResponse) -> None:
        self._count_end(pending)

    def _count_end(self, pending: PendingResponse) -> None:
        self.count -= 1
        assert pending.reason is not None
        self.endings[pending.reason] += 1
