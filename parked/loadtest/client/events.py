"""EventsUser: holds an event stream (server-sent events) without a greenlet, and comes back when it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from locust.exception import StopUser

from parked.loadtest.client.errors import (
    BadResponse,
    ClosedByPeer,
    CutOff,
    NoEvents,
    RequestFailure,
    StreamEnded,
)
from parked.loadtest.client.event_stream import EventReader
from parked.loadtest.client.response import failure_of
from parked.loadtest.client.user import Waits
from parked.loadtest.client.waiting import WaitingUser, failed
from parked.loadtest.terms import options

if TYPE_CHECKING:
    from parked.loadtest.client.connection import Connection
    from parked.loadtest.client.event_stream import Event
    from parked.loadtest.client.wire import Incoming, RawResponse

#: What an EventSource says of itself (WHATWG HTML, 9.2.2 and 9.2.3); a coding would be a state per stream.
FIELDS = {"Accept": "text/event-stream", "Cache-Control": "no-store", "Accept-Encoding": "identity"}
#: Content types that a failure may name; others are the server's to invent, one each time.
KNOWN = ("application/json", "application/octet-stream", "text/html", "text/plain")


class EventStream:
    """A stream that is open. Its bytes are read in the hub, as they come."""

    __slots__ = ("_chunked", "_connection", "_left", "_pieces", "_reader", "_user")

    def __init__(self, user: EventsUser, connection: Connection, incoming: Incoming) -> None:
        self._user = user
        self._connection = connection
        raw = incoming.raw
        self._chunked = raw.field(b"transfer-encoding").lower() == "chunked"
        #: Bytes still to come; None if the head does not say.
        self._left = raw.announced_bytes if raw.field(b"content-length") and not self._chunked else None
        #: In the middle of an event only.
        self._reader: EventReader | None = None
        user._stream = self
        process = user._process
        self._pieces = process.heard.pieces_of(user.sent_at, self._chunked)
        process.heard.stream_began()
        process.readiness.listen(connection, self)
        if incoming.behind_head:
            self._begin(incoming.behind_head)
        process.readiness.prompt(connection, self)  # TLS may have more in its records

    def switch(self) -> None:
        try:
            self._read()
        except RequestFailure as failure:
            self._over(failure)
        except Exception as error:
            self._over(failed(self._user._process.hub, error, self))

    def throw(self, error: RequestFailure) -> None:
        self._over(error)

    def _begin(self, data: bytes) -> None:
        try:
            self._take(data)
        except RequestFailure as failure:
            self._over(failure)
        except Exception as error:  # a user's own sent_at
            self._over(failed(self._user._process.hub, error, self))

    def _read(self) -> None:
        connection = self._connection
        try:
            data = connection.receive_now()
        except ClosedByPeer as end:
            if self._chunked or self._left or isinstance(end, CutOff):
                raise
            raise StreamEnded("the server has ended the stream") from None
        if data:
            user = self._user
            process = user._process
            process.counters.received_bytes += len(data)
            piece = self._pieces.get(data) if self._reader is None and self._left is None else None
            if piece is not None and piece.retry_ms is None:  # nearly always
                heard = process.heard
                heard.comments += piece.comments
                for event in piece.events:
                    user._last = heard.take(user._last, event)
            else:
                self._take(data)
            if connection.ready:  # there is more: others have their turn before
                connection.ready = False
                self._user._process.readiness.prompt(connection, self)

    def _take(self, data: bytes) -> None:
        user, reader = self._user, self._reader
        heard, pieces = user._process.heard, self._pieces
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        piece = pieces.get(data) if reader is None else None
        if piece is None:
            whole = reader is None
            reader = reader or EventReader(self._chunked, user.max_event_bytes, user.sent_at)
            piece = reader.feed(data)
            self._reader = None if reader.between else reader
            if whole and self._reader is None:
                pieces.keep(data, piece)
        heard.comments += piece.comments
        if piece.retry_ms is not None:
            user._retry_s = piece.retry_ms / 1000
        for event in piece.events:
            user._last = heard.take(user._last, event)
        if piece.complete or self._left == 0:
            raise StreamEnded("the server has ended the stream")

    def _over(self, failure: RequestFailure) -> None:
        user = self._user
        self.close()
        # Statistics keep it for a while, and with its frames the stream.
        failure.__traceback__ = failure.__context__ = None
        user._failure = failure
        user._process.turns.run_soon(user._resume, time.perf_counter())

    def close(self) -> None:
        """Listen no more, and let go of the connection."""
        user = self._user
        if user._stream is not self:
            return
        user._stream = None
        user._process.readiness.leave(self._connection)
        user._process.heard.stream_ended()


class EventsUser(WaitingUser):
    """One user, one connection, and on it a stream of events.

    A stream that ends is a failure and is opened again, with the `Last-Event-ID` of its last event, after the
    time that the server has asked for (`retry:`) or `retry_s`. A 204 ends the user, as it ends an EventSource
    for good. Response time is what the head of a response took.

    A class of a locustfile sets what it needs of these. For a server that says in another way when an event
    was sent it has its own static method `sent_at(data: bytes) -> float | None`; *data* is the event's.

    :cvar path: what is asked for, with its query (default: /events?every=30, or --path).
    :cvar name: of these requests in the statistics; None: the path without its query.
    :cvar fields: header fields of each request, beside `default_headers`.
    :cvar retry_s: seconds before a stream that has ended is opened again.
    :cvar max_event_bytes: of one event, or one line of it; a larger one ends the stream.
    """

    abstract = True
    workload: ClassVar[str] = "events"
    path: ClassVar[str] = options.PATHS["events"]
    retry_s: ClassVar[float] = 3.0
    max_event_bytes: ClassVar[int] = 1 << 20
    _stream: EventStream | None = None
    _last: Event | None = None
    #: Why the stream that was open is not open any more.
    _failure: RequestFailure | None = None
    _retry_s: float | None = None

    @classmethod
    def draws_think_time(cls) -> bool:
        return False

    def _go_on(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            self.client._drop(by_peer=isinstance(failure, ClosedByPeer | StreamEnded))
            self._count(time.time(), 0.0, None, failure)
            raise self._rest(self.retry_s if self._retry_s is None else self._retry_s)
        began_unix_s, began = time.time(), time.perf_counter()
        raw: RawResponse | None = None
        under_way = self._process.open_requests
        under_way[self.client] = began
        try:
            connection = self._ask(self.path, self._fields())
            deadline = began + self.total_timeout
            incoming = self.client._begin(connection, self.network_timeout, False, deadline)
            raw = incoming.raw
            failure = _objection(raw)
        except RequestFailure as error:
            failure = error
        finally:
            under_way.pop(self.client, None)
        self._count(began_unix_s, (time.perf_counter() - began) * 1000, raw, failure)
        if failure is not None:
            self.client._drop()
            if raw is not None and raw.status == 204:
                raise StopUser
            raise self._try_again()
        self._retry_failed_s = type(self)._retry_failed_s
        self._wait_from_now_on()
        EventStream(self, connection, incoming)
        raise Waits

    def _fields(self) -> dict[str, str]:
        last = self._last
        if last is None or not last.id:
            return FIELDS | self.fields
        return FIELDS | {"Last-Event-ID": last.id.decode("latin-1")} | self.fields

    def _finish(self) -> None:
        if self._stream is not None:
            self._stream.close()
        super()._finish()


def _objection(raw: RawResponse) -> RequestFailure | None:
    """Why a response is no event stream (WHATWG HTML, 9.2.3); None if it is one."""
    kind = raw.field(b"content-type").partition(";")[0].strip().lower()
    if raw.status == 204:
        return NoEvents("status 204: the server asks its clients not to come back")
    if (failure := failure_of(raw)) is not None:
        return failure
    if raw.status != 200:
        return NoEvents(f"status {raw.status}, no event stream")
    if kind != "text/event-stream":
        named = kind if kind in KNOWN else "of another kind" if kind else "missing"
        return NoEvents(f"content type {named}, no event stream")
    if raw.field(b"content-encoding").lower() not in ("", "identity"):
        return BadResponse("a content coding that was not asked for")
    return None
