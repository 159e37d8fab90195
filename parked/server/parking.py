"""The connections between their requests: one epoll set for all of them.

A connection is in one of these phases, and this is who holds it:

    accepted   the accept loop, until it calls `Parking.add`
    parked     `Parking`: no greenlet, no watcher, no buffer; `busy` is false
    queued     the request queue: the kernel reported something; `busy` is true
    served     a request greenlet, until it calls `park` or `close`; `busy` is true
    lingering  `Lingering`: our side is shut, what the client still sends is thrown away; `busy` is its holder

    accepted -> parked -> queued -> served -> parked | lingering | closed

Each descriptor is registered once, edge-triggered, for its whole life: parking and waking cost no
`epoll_ctl`. An edge that comes while a connection is busy is remembered in `reported`, and whoever parks a
connection looks there first, so no edge is lost. That is safe without locks, because only the hub sets
it and no request greenlet switches to the hub between its last look and `park`.

What is kept for an idle connection is a `Connection` and its place in a list by descriptor, since
half a kilobyte per connection is 200 MB at 400,000.
"""

from __future__ import annotations

import _socket
from collections.abc import Callable
from itertools import islice
from random import uniform
from time import monotonic
from typing import Any, Final

from gevent import monkey
from gevent.hub import get_hub

from parked.server.connection import EDGE, HUNG_UP, Connection, Holder
from parked.server.lingering import Lingerer, Lingering
from parked.server.request import HeadScan
from parked.shared.moderation import Moderation

_select_epoll: Any = monkey.get_original("select", "epoll")  # patch_select() hides it
_close: Any = monkey.get_original("os", "close")  # gevent's waits until its loop has been round

EPOLLIN: Final = 0x001
EPOLLOUT: Final = 0x004
EPOLLERR: Final = 0x008
EPOLLHUP: Final = 0x010
EPOLLRDHUP: Final = 0x2000
EPOLLET: Final = 1 << 31
_HUNG_UP: Final = EPOLLRDHUP | EPOLLHUP | EPOLLERR

#: Events taken from the kernel at once. More would delay what else the loop has to do (accepting,
#: answers of the application's own connections), fewer would pay the system call more often.
EVENTS_A_POLL: Final = 512
#: Seconds between two looks at the timeouts: the grain of all of them.
TICK_S: Final = 1.0
#: Ticks in which the idle timeout's clock hand goes once round all descriptors. The hand makes the idle
#: timeout free for a request (one attribute store) and late by this at most, and two ticks more.
TICKS_A_ROUND: Final = 8
#: Overdue connections that are answered and closed in one go, some 30 us each, and seconds until the next go.
#: Thousands may be overdue at once, for that is what an attack is; the others shall not wait for it.
EXPIRIES_A_TURN: Final = 10
EXPIRY_PAUSE_S: Final = 0.002


class Parking:
    """All connections of a process, and the waiting for the idle ones.

    :param on_ready: called in the hub with the connections that have become readable.
    :param on_header_timeout: called in the hub with a connection whose request head took too long.
    :param idle_timeout: seconds that a connection may be parked; 0 for ever.
    :param header_timeout: seconds from the first byte of a request head to its last; 0 for ever.
    :param on_empty: called after `drain` or `tell_when_empty` when none is left, and each time that the last
        of those is closed that came in afterwards; `open` ends that.
    :param on_fault: told of exceptions that have nowhere else to go, for gevent stops a watcher whose
        callback raised; raises none itself.
    """

    def __init__(
        self,
        on_ready: Callable[[list[Connection]], None],
        on_header_timeout: Callable[[Connection], None],
        on_empty: Callable[[], None],
        idle_timeout: float = 0,
        header_timeout: float = 0,
        on_fault: Callable[[str, BaseException], None] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.idle_timeout = idle_timeout
        self.header_timeout = header_timeout
        self.idle_timed_out = 0
        self.count = 0
        self._on_ready = on_ready
        self._on_header_timeout = on_header_timeout
        self._on_empty = on_empty
        self._draining = False
        self._clock = clock
        self._by_fd: list[Connection | None] = []
        self._hand = 0
        self._now = int(clock())
        # Deadlines; all entries of one kind wait equally long, so the order of insertion is the order in
        # time.
        self._half_requests: dict[Connection, float] = {}
        #: Where the reading of half a request head goes on.
        self.scans: dict[Connection, HeadScan] = {}
        self._on_fault = on_fault
        self._lingering = Lingering(self.close, self.guarded, self._give_up, clock)
        self._epoll: Any = None
        self._watcher: Any = None
        self._moderation = Moderation()
        #: Requests so far whose response came or comes later, and how many of these wait for it now.
        self.later: Callable[[], tuple[int, int]] = _none_later
        self._deferred = 0
        self._events = 0  # fetched since the last tick
        self._added = 0  # connections since then
        self._held = 0  # connections at the last tick
        #: Told at each tick at what intervals new connections may be taken, in seconds; 0 as they come.
        self.on_intervals: Callable[[float], None] = _tell_nobody
        self._window_s: float | None = None
        self._timer: Any = None
        self._expiry: Any = None

    # -- in the accept loop and in request greenlets

    def open(self) -> None:
        """Connections may come and go: that none is left means nothing."""
        self._draining = False

    def add(self, connection: Connection) -> None:
        """Take over a new connection. What it has sent already is reported like all else."""
        if self._epoll is None:
            self._open()
        fd = connection.sock.fileno()
        self._epoll.register(fd, EPOLLIN | EPOLLRDHUP | EPOLLET)  # first, since it may fail
        by_fd = self._by_fd
        if fd >= len(by_fd):
            by_fd.extend([None] * (fd + 1 - len(by_fd)))
        before = by_fd[fd]
        if before is not None:
            self._disown(before)
        by_fd[fd] = connection
        self.count += 1
        self._added += 1
        connection.since = self._now

    def park(self, connection: Connection) -> None:
        """Wait for more from the client; the caller has just seen that nothing is `reported`."""
        connection.since = self._now
        connection.busy = False
        if connection.buffer and self.header_timeout and connection not in self._half_requests:
            self._half_requests[connection] = self._clock() + self.header_timeout

    def head_complete(self, connection: Connection) -> None:
        """No head is awaited any more: it is there, or it is not wanted."""
        self._half_requests.pop(connection, None)
        self.scans.pop(connection, None)

    def close(self, connection: Connection) -> None:
        """Close at once. Closing a closed connection does nothing."""
        fd = connection.sock.fileno()
        if fd < 0:
            return
        self._by_fd[fd] = None
        self._strike(connection)
        try:
            # close() alone would do, if no forked child held a copy of the descriptor (epoll(7), questions).
            self._epoll.unregister(fd)
        except (FileNotFoundError, PermissionError):  # no socket of ours, or nothing that epoll could watch
            connection.sock.detach()  # closed by somebody else, and its number is another file's by now
        except (OSError, ValueError, AttributeError):
            pass  # somebody has closed the set, or this process is the child of a fork
        try:
            connection.sock.close()
        except (OSError, ValueError):
            pass  # a RST noticed this late changes nothing; the descriptor is gone in any case
        if self._draining and not self.count:
            self._end_drain()

    def _strike(self, connection: Connection) -> None:
        self.count -= 1
        self.head_complete(connection)
        if type(connection.busy) is Lingerer:
            self._lingering.forget(connection)
            connection.busy = True  # not its holder any more, which refers to it

    def _disown(self, connection: Connection) -> None:
        """Somebody else has closed its descriptor, as programs do that close one twice.

        The kernel has told us nothing, and has given the number to a newcomer, which is not to be closed by
        what we still have of the one before.
        """
        self._strike(connection)
        connection.sock.detach()
        connection.reported |= HUNG_UP
        if connection.busy and connection.busy is not True:
            self._tell_holder(connection, connection.busy, EPOLLHUP)

    def watch_room(self, connection: Connection, wanted: bool) -> None:
        """Report also when there is room for more bytes, now and after it was used up; or do not any more.

        :raises OSError: the connection is lost.
        """
        events = EPOLLIN | EPOLLRDHUP | EPOLLET | (EPOLLOUT if wanted else 0)
        self._epoll.modify(connection.sock.fileno(), events)

    def linger(self, connection: Connection) -> None:
        """Shut our side, let the client read what we sent, then close."""
        self.head_complete(connection)
        if connection.hung_up and not connection.buffer:
            self.close(connection)
            return
        try:
            connection.sock.shutdown(_socket.SHUT_WR)
        except Exception:  # the client has left, or TLS is broken
            self.close(connection)
            return
        self._lingering.begin(connection)

    def connections(self) -> list[Connection]:
        """All connections, in no order that means anything."""
        return [connection for connection in self._by_fd if connection is not None]

    def tell_when_empty(self) -> None:
        """From now on call *on_empty* when the last connection is closed, which may be now."""
        self._draining = True
        if not self.count:
            self._end_drain()

    def drain(self) -> None:
        """Close what is parked, be it with half a request, and tell when nothing is left."""
        self._draining = True
        self._lingering.hasten()
        if not self.count:
            self._end_drain()
            return
        asking = self._fetch_last()
        for connection in self.connections():
            if not connection.busy and connection not in asking:
                self.close(connection)

    def _fetch_last(self) -> set[Connection]:
        """Those of whom something has come that nobody has fetched yet; it is handled soon."""
        if self._epoll is None:
            return set()
        events: list[tuple[int, int]] = self._epoll.poll(0, len(self._by_fd) or 1)
        if not events:
            return set()

        def handle() -> None:
            if self._epoll is not None:  # who was kept may have been closed by somebody else
                self._handle(events)

        get_hub().loop.run_callback(self.guarded("fetching the last events", handle))
        by_fd = self._by_fd
        return {connection for fd, _ in events if fd < len(by_fd) and (connection := by_fd[fd]) is not None}

    def forget(self) -> None:
        """In a forked child: the connections are the parent's; here they, and its epoll set, are let go of.

        The set is one for both processes: whoever unregisters something there does so for the other too.
        Without copies of the sockets in the child, the parent's close is a close for the client.
        """
        self._shut()
        for connection in self.connections():
            try:
                _close(connection.sock.detach())
            except OSError:
                pass  # closed by whoever forked
        self._by_fd.clear()
        self._half_requests.clear()
        self.scans.clear()
        self._lingering = Lingering(self.close, self.guarded, self._give_up, self._clock)
        self.count = 0
        self._draining = False

    def guarded(self, what: str, callback: Callable[[], None]) -> Callable[[], None]:
        """*callback* for the hub: what it raises is told to *on_fault*."""

        def call() -> None:
            try:
                callback()
            except BaseException as error:
                self._fault(what, error)

        return call

    def _fault(self, what: str, error: BaseException) -> None:
        if self._on_fault is not None:
            self._on_fault(what, error)
        else:
            get_hub().handle_error(what, type(error), error, error.__traceback__)

    def _shut(self) -> None:
        self._lingering.stop()
        if self._epoll is not None:
            for watcher in (self._watcher, self._timer, self._expiry):
                watcher.stop()
                watcher.close()
            self._epoll.close()
            self._epoll = self._watcher = self._timer = self._expiry = None
            self._window_s = None
            self.on_intervals(0.0)

    def _end_drain(self) -> None:
        self._shut()
        self._on_empty()

    # -- in the hub

    def _open(self) -> None:
        loop = get_hub().loop
        self._now = int(self._clock())  # nobody has looked at the clock while there was no connection
        self._epoll = _select_epoll()
        self._watch(0.0)
        # ref=False: that time passes is no reason for a program to stay.
        # Workers have their first connections at once, yet are not to look at things at once ever after, nor
        # to fetch events in the same moments.
        self._timer = loop.timer(TICK_S * uniform(0.5, 1.0), TICK_S, ref=False)
        self._timer.start(self.guarded("looking at timeouts", self.tick))
        self._expiry = loop.timer(EXPIRY_PAUSE_S, ref=False)

    def _watch(self, window_s: float) -> None:
        """Fetch events as they come (0), or every *window_s* seconds."""
        if window_s == self._window_s:
            return
        self._window_s = window_s
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
        loop = get_hub().loop
        if window_s:
            self._watcher = loop.timer(window_s, window_s)
        else:
            self._watcher = loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self.guarded("fetching events", self._on_events))

    def _on_events(self) -> None:
        self._handle(self._epoll.poll(0, EVENTS_A_POLL))

    def _handle(self, events: list[tuple[int, int]]) -> None:
        ready = []
        by_fd = self._by_fd
        self._events += len(events)
        for fd, event in events:
            try:
                connection = by_fd[fd]
            except IndexError:
                connection = None
            if connection is None:
                self._shed(fd)
                continue
            if event & _HUNG_UP:
                connection.reported = EDGE | HUNG_UP
            if connection.busy:
                connection.reported |= EDGE
                if connection.busy is not True:
                    self._tell_holder(connection, connection.busy, event)
            else:
                connection.busy = True
                ready.append(connection)
        if ready:
            self._on_ready(ready)

    def _tell_holder(self, connection: Connection, holder: Holder, event: int) -> None:
        try:
            holder.on_events(event)
        except Exception as error:
            self._give_up(connection, error)

    def _shed(self, fd: int) -> None:
        """Not one of ours (any more): a copy of a descriptor that we closed lives on, perhaps in a child."""
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # only its owner could

    def _give_up(self, connection: Connection, error: BaseException) -> None:
        """Something of ours has failed: it costs this connection and no other."""
        self._fault("serving a connection", error)
        self.close(connection)

    def tick(self) -> None:
        """Look at the timeouts; called every `TICK_S`."""
        now = self._clock()
        self._now = int(now)
        if self._lingering.deadlines or self._half_requests:
            self._expire()
        if self.idle_timeout:
            self._move_hand(now)
        if self._epoll is not None:  # the last connection of a draining server may just have been closed
            deferred, pending = self.later()
            # For a new connection to be taken hardly anybody waits either: the kernel has opened it.
            unasked = deferred - self._deferred + self._added
            events = self._events + self._added
            self._watch(self._moderation.look(events, self.count, unasked, pending))
            ended = self._held + self._added - self.count
            self.on_intervals(self._moderation.look_at_new(self._added, ended))
            self._deferred = deferred
        self._held = self.count
        self._events = self._added = 0

    def _expire(self) -> None:
        """Close some of what is overdue, and the rest in a moment."""
        now = self._clock()
        lingerers = _overdue(self._lingering.deadlines, now)
        half_requests = _overdue(self._half_requests, now)
        for connection in lingerers:
            self.close(connection)
        for connection in half_requests:
            if connection.busy:
                continue  # more has come and waits its turn
            connection.busy = True
            try:
                self._on_header_timeout(connection)
            except Exception as error:
                self._give_up(connection, error)
        if max(len(lingerers), len(half_requests)) == EXPIRIES_A_TURN and self._epoll is not None:
            self._expiry.start(self.guarded("ending what is overdue", self._expire))

    def _move_hand(self, now: float) -> None:
        by_fd = self._by_fd
        start = self._hand if self._hand < len(by_fd) else 0
        self._hand = start + len(by_fd) // TICKS_A_ROUND + 1
        # `since` is of the tick before, in whole seconds. Never early: a proxy whose own timeout is a little
        # shorter would see an error.
        oldest = now - self.idle_timeout - TICK_S - 1
        for connection in by_fd[start : self._hand]:
            if connection is None or connection.since >= oldest:
                continue
            if not connection.busy and not connection.buffer:
                self.idle_timed_out += 1
                self.close(connection)


def _none_later() -> tuple[int, int]:
    return 0, 0


def _tell_nobody(_: float) -> None: ...


def _overdue(deadlines: dict[Connection, float], now: float) -> list[Connection]:
    """Remove and return the first connections whose deadline has passed, `EXPIRIES_A_TURN` at most."""
    overdue = []
    for connection, deadline in islice(deadlines.items(), EXPIRIES_A_TURN):
        if deadline > now:
            break
        overdue.append(connection)
    for connection in overdue:
        del deadlines[connection]
    return overdue
