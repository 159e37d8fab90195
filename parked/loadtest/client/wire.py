"""Reading one response off a connection: status, header bytes, body.

Most responses of a keep-alive test look alike: HTTP/1.1, a Content-Length, no coding. For these a few
searches in the header bytes are enough (2.2 us, a parser object with its callbacks 6.2: docs/figures.md).
Whatever is not plainly of that kind goes to llhttp (httptools) from its first byte on.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httptools

from parked.loadtest.client.coding import decoded
from parked.loadtest.client.errors import BadResponse, ClosedByPeer, CutOff, TimedOut, TooLarge

if TYPE_CHECKING:
    from parked.loadtest.client.connection import Connection

#: For a time or a size without a bound.
FAR = float("inf")
#: A header section beyond this is not a server's mistake in size any more. nginx and Apache send at most a
#: few KB.
MAX_HEAD_BYTES = 262_144
#: Interim (1xx) responses before a final one. Servers send one or two (100, 103).
MAX_INTERIM = 20
#: Beginnings of responses whose status says nothing of their length. Not 204 and 304, which have no body,
#: whatever their header fields say (RFC 9112, 6.3).
PLAIN = {
    b"HTTP/1.1 %d%b" % (status, after): int(status)
    for status in HTTPStatus
    if status >= 200 and status not in (204, 304)
    for after in (b" ", b"\r")
}
#: Digits of the largest Content-Length that is taken for one; llhttp refuses what 64 bits can't hold.
MAX_LENGTH_DIGITS = 18
KEEP_ALIVE = b"\r\nconnection: keep-alive\r\n"


class RawResponse:
    """Status, header bytes and body (its transfer coding undone; by :meth:`decode`, its content coding).

    :ivar lower_head: the header bytes in lower case, for searches.
    :ivar received_bytes: all that came for it, interim responses and framing included.
    """

    __slots__ = ("body", "head", "keep_alive", "lower_head", "received_bytes", "status")

    def __init__(
        self, status: int, head: bytes, lower_head: bytes, body: bytes, keep_alive: bool, received_bytes: int
    ) -> None:
        self.status = status
        self.head = head
        self.lower_head = lower_head
        self.body = body
        self.keep_alive = keep_alive
        self.received_bytes = received_bytes

    def field(self, name: bytes) -> str:
        """Value of the first field of that (lower-case) name, "" if there is none."""
        start = self.lower_head.find(b"\r\n%b:" % name)
        if start < 0:
            return ""
        start += len(name) + 3
        return self.head[start : self.head.find(b"\r\n", start)].strip().decode("latin-1")

    @property
    def announced_bytes(self) -> int:
        """Length of the body as the head says it; 0 if it does not."""
        said = self.field(b"content-length")
        return int(said) if said.isdigit() else 0

    def decode(self, most_bytes: int) -> None:
        """Undo the content coding. Raises :class:`BadResponse` for one that was not offered."""
        if self.body:
            self.body = decoded(self.body, self.field(b"content-encoding"), most_bytes)


def read_response(
    connection: Connection,
    timeout_s: float,
    to_head: bool = False,
    deadline: float = FAR,
    most_bytes: int = FAR,  # type: ignore[assignment]
    begun: bytes = b"",
) -> RawResponse:
    """Read one whole response.

    :param timeout_s: seconds between two pieces of it.
    :param to_head: it answers a HEAD request and so has no body.
    :param deadline: when all of it has to be there, on the `time.perf_counter` scale.
    :param most_bytes: of its body.
    :param begun: what has been received of it already.
    :raises RequestFailure: :class:`BadResponse`, :class:`ClosedByPeer`, :class:`ReceiveFailed`,
        :class:`TimedOut` or :class:`TooLarge`.
    """
    data = begun or connection.receive(timeout_s, deadline)
    head_end = data.find(b"\r\n\r\n")
    status = PLAIN.get(data[:13])
    if status is None or head_end < 0 or to_head:
        return _read_any(connection, timeout_s, data, to_head, deadline, most_bytes)
    head = data[: head_end + 2]
    lower_head = head.lower()
    start = lower_head.find(b"\r\ncontent-length:") + 17
    digits = head[start : head.find(b"\r\n", start)].strip()
    persistence = lower_head.find(b"\r\nconnection:")
    # Names are searched for without what surrounds them: an odd spelling is for llhttp to judge.
    if (
        start < 17
        or not digits.isdigit()
        or len(digits) > MAX_LENGTH_DIGITS
        or lower_head.find(b"content-length", start) >= 0
        or b"transfer-encoding" in lower_head
        or (
            persistence >= 0
            and (
                not lower_head.startswith(KEEP_ALIVE, persistence)
                or lower_head.find(b"\r\nconnection", persistence + 12) >= 0
            )
        )
    ):
        return _read_any(connection, timeout_s, data, to_head, deadline, most_bytes)
    length = int(digits)
    if length > most_bytes:
        raise too_large()
    total = head_end + 4 + length
    if len(data) < total:
        parts = [data]
        received = len(data)
        while received < total:
            more = connection.receive(timeout_s, deadline)
            if time.perf_counter() > deadline:
                raise too_late()
            parts.append(more)
            received += len(more)
        data = b"".join(parts)
    if len(data) > total:
        raise BadResponse("more bytes than the response's Content-Length")
    return RawResponse(status, head, lower_head, data[head_end + 4 :], True, total)


class _Collector:
    """llhttp's callbacks: gathers one response."""

    def __init__(self) -> None:
        self.body: list[bytes] = []
        self.framed = self.headed = self.complete = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self.framed = True

    def on_headers_complete(self) -> None:
        self.headed = True

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_begin(self) -> None:
        if self.complete:
            raise BadResponse("more bytes than the response has")

    def on_message_complete(self) -> None:
        self.complete = True


def _feed(parser: Any, collector: _Collector, data: bytes) -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        raise BadResponse("the server switched protocols") from None
    except httptools.HttpParserError as error:
        raise BadResponse(
            "bytes after the response" if collector.complete else "not an HTTP/1 response"
        ) from error


def _read_any(
    connection: Connection, timeout_s: float, data: bytes, to_head: bool, deadline: float, most_bytes: float
) -> RawResponse:
    incoming = Incoming(connection, timeout_s, to_head, deadline, most_bytes, data)
    parts = []
    while part := incoming.piece():
        parts.append(part)
    incoming.raw.body = b"".join(parts)
    return incoming.raw


class Incoming:
    """A response whose head has been read, and whose body comes piece by piece.

    :ivar raw: what is known of it so far; its body is left out.
    :ivar behind_head: what came of the body with the head, its transfer coding not undone.
    :ivar complete: the end of the body has come.
    """

    def __init__(
        self,
        connection: Connection,
        timeout_s: float,
        to_head: bool,
        deadline: float,
        most_bytes: float,
        data: bytes = b"",
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._deadline = deadline
        self._left = most_bytes
        #: Bytes since those of the body.
        self._barren = 0
        self.complete = False
        received = len(data)
        for _ in range(MAX_INTERIM + 1):
            while (head_end := data.find(b"\r\n\r\n")) < 0:
                # With bare line feeds the end of the head would be waited for, and never come.
                if not b"HTTP/".startswith(data[:5]) or data.count(b"\n") > data.count(b"\r\n"):
                    raise BadResponse("not an HTTP/1 response")
                if len(data) > MAX_HEAD_BYTES:
                    raise BadResponse("header section too large")
                more = self._receive()
                data += more
                received += len(more)
            head, data = data[: head_end + 2], data[head_end + 4 :]
            self._collector = collector = _Collector()
            # Not an attribute of the collector, whose methods it holds: it would take the garbage collector.
            self._parser = parser = httptools.HttpResponseParser(collector)
            _feed(parser, collector, head + b"\r\n")
            status = parser.get_status_code()
            if not collector.headed or status < 100:  # RFC 9110, 15: 100 is the least; llhttp takes 000
                raise BadResponse("not an HTTP/1 response")
            if not 100 <= status < 200:
                break
            # An interim response: the one that is waited for is still to come (RFC 9110, 15.2). Not 101, at
            # which llhttp stops.
        else:
            raise BadResponse("too many interim responses")
        lower_head = head.lower()
        self.raw = RawResponse(status, head, lower_head, b"", _stays(lower_head), received)
        self.behind_head = data
        if to_head:
            # Its header fields describe a body that is not sent (RFC 9110, 9.3.2).
            if data:
                raise BadResponse("a body after the response to HEAD")
            self.complete = True
        elif data:
            _feed(parser, collector, data)

    def piece(self) -> bytes:
        """Some bytes of the body; none at its end."""
        while not self.complete:
            collector = self._collector
            body, collector.body = b"".join(collector.body), []
            self.complete = collector.complete
            if body:
                self._left -= len(body)
                if self._left < 0:
                    raise too_large()
                return body
            if self.complete:
                break
            try:
                data = self._receive()
            except ClosedByPeer as end:
                # Without Content-Length or chunks the end of the connection ends the body (RFC 9112, 6.3).
                if collector.framed or isinstance(end, CutOff):
                    raise
                self.complete, self.raw.keep_alive = True, False
                break
            self.raw.received_bytes += len(data)
            _feed(self._parser, collector, data)
            self._barren = 0 if collector.body or collector.complete else self._barren + len(data)
            if self._barren > MAX_HEAD_BYTES:
                raise BadResponse("chunk extensions or trailers too large")
        return b""

    def _receive(self) -> bytes:
        data = self._connection.receive(self._timeout_s, self._deadline)
        if time.perf_counter() > self._deadline:
            raise too_late()
        return data


def too_large() -> TooLarge:
    return TooLarge("the body is larger than max_body_bytes")


def too_late() -> TimedOut:
    return TimedOut("the whole response took too long")


def _stays(lower_head: bytes) -> bool:
    """Whether the connection stays after a response that is complete (RFC 9112, 9.3)."""
    options = {
        option.strip()
        for field in lower_head.split(b"\r\n")
        if field.startswith(b"connection:")
        for option in field[11:].split(b",")
    }
    return b"close" not in options and (lower_head.startswith(b"http/1.1") or b"keep-alive" in options)
