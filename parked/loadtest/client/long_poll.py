"""LongPollUser: asks, waits for the answer without a greenlet, and asks again."""

from __future__ import annotations

import random
import re
import time
from typing import ClassVar

from parked.loadtest.client import event_stream
from parked.loadtest.client.connection import Connection
from parked.loadtest.client.errors import ClosedByPeer, RequestFailure
from parked.loadtest.client.response import failure_of
from parked.loadtest.client.user import KeepAliveUser, Waits
from parked.loadtest.client.waiting import WaitingUser, failed
from parked.loadtest.terms import options
from parked.loadtest.terms.options import SECONDS

LONGEST_TIME = 32
_TIME = re.compile(rb"\s*\d{1,12}(\.\d*)?\s*")


class Poll:
    """A request whose answer is still to come.

    :ivar due: when it is, on the `time.perf_counter` scale.
    :ivar begun: its first bytes, once they have come.
    """

    __slots__ = ("_timeout_s", "_user", "began_unix_s", "begun", "connection", "due", "failure")

    def __init__(
        self, user: LongPollUser, connection: Connection, began_unix_s: float, due: float, timeout_s: float
    ) -> None:
        self._user = user
        self.connection = connection
        self.began_unix_s = began_unix_s
        self.due = due
        self.begun = b""
        self.failure: RequestFailure | None = None
        self._timeout_s = timeout_s
        user._process.readiness.listen(connection, self, timeout_s)
        user._process.heard.stream_began()

    def switch(self) -> None:
        try:
            self.begun = self.connection.receive_now()
        except RequestFailure as failure:
            self.failure = failure
        if self.begun or self.failure:
            self._over()

    def throw(self, error: RequestFailure) -> None:
        self.failure = error
        self._over()

    def _over(self) -> None:
        self.close()
        if self.failure is not None:  # statistics keep it for a while, and with its frames the poll
            self.failure.__traceback__ = self.failure.__context__ = None
        user = self._user
        user._process.turns.run(user._resume, self.due)

    def close(self) -> None:
        """Listen no more."""
        process = self._user._process
        process.readiness.leave(self.connection, self._timeout_s)
        process.heard.stream_ended()


class LongPollUser(WaitingUser):
    """One user, one connection, and on it a request that is always waiting for its answer.

    Response time is what an answer took beyond the seconds that were asked for.

    A class of a locustfile sets what it needs of these. For a server that says in another way when an answer
    was sent it has its own static method `sent_at(data: bytes) -> float | None`; *data* is the answer's body.

    :cvar path: what is asked for, with `{seconds}` where it says after how many seconds the server is to
        answer (default: /poll?seconds={seconds}, or --path).
    :cvar name: of these requests in the statistics; None: the path without its query.
    :cvar fields: header fields of each request, beside `default_headers`.
    :cvar think_time: fewest and most of these seconds, drawn evenly: --think, unless a class has its own.
    """

    abstract = True
    workload: ClassVar[str] = "longpoll"
    path: ClassVar[str] = options.PATHS["longpoll"]
    _poll: Poll | None = None
    _has_asked = False

    @staticmethod
    def sent_at(data: bytes) -> float | None:
        """As for an event; or the answer is nothing else, as the demo application's."""
        if len(data) <= LONGEST_TIME and _TIME.fullmatch(data):
            return float(data)
        return event_stream.sent_at(data)

    @classmethod
    def draws_think_time(cls) -> bool:
        return SECONDS in cls.path and super().draws_think_time()

    def _seconds(self) -> float:
        """What the next answer is to take: first what is left of one at which one looks at random, so that
        the rate is steady from the first second on."""
        if SECONDS not in self.path:
            return 0.0
        if self._has_asked:
            return random.uniform(*self.think_time)
        self._has_asked = True
        return max(KeepAliveUser.first_wait_time(self), 0.1)

    def _go_on(self) -> None:
        poll, self._poll = self._poll, None
        if poll is not None:
            self._take(poll)
        process = self._process
        if process.timer.paused:  # the test ends
            self._wait_from_now_on()
            raise Waits
        seconds = round(self._seconds(), 2)
        began_unix_s, due = time.time(), time.perf_counter() + seconds
        try:
            connection = self._ask(self.path.replace(SECONDS, f"{seconds:.2f}"), self.fields)
        except RequestFailure as failure:
            self._count(began_unix_s, 0.0, None, failure)
            raise self._try_again() from None
        if seconds:
            process.counters.thinks_s.append(seconds)
        longest_s = self.think_time[1] if SECONDS in self.path else 0.0
        self._wait_from_now_on()
        process.open_requests[self.client] = due
        self._poll = Poll(self, connection, began_unix_s, due, longest_s + self.network_timeout)
        raise Waits

    def _take(self, poll: Poll) -> None:
        """An answer has begun, or will not come."""
        session, raw = self.client, None
        failure: Exception | None = None
        now_unix_s, now = time.time(), time.perf_counter()
        self._process.open_requests.pop(session, None)
        try:
            if poll.failure is not None:
                session._drop(by_peer=isinstance(poll.failure, ClosedByPeer))
                raise poll.failure
            deadline = now + self.total_timeout
            raw = session._receive(
                poll.connection, self.network_timeout, False, deadline, self.path, begun=poll.begun
            )
            failure = failure_of(raw)
            if failure is None and (sent := self.sent_at(raw.body)) is not None:
                self._process.heard.delivered(sent, now_unix_s)
        except RequestFailure as error:
            failure = error
        except Exception as error:
            failure = failed(self._process.hub, error, self)
        response_ms = max(0.0, time.perf_counter() - poll.due) * 1000
        self._count(poll.began_unix_s, response_ms, raw, failure)
        if failure is not None:
            raise self._try_again()
        self._retry_failed_s = type(self)._retry_failed_s

    def _finish(self) -> None:
        if self._poll is not None:
            self._poll.close()
            self._process.open_requests.pop(self.client, None)
            self._poll = None
        super()._finish()
