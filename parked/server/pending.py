"""One pending response: a parked connection that the application may write to (docs/pending.md).

It is in one of these states, and this is what moves it:

    WAITING     not begun. start -> STREAMING; send, its time is up or the server stops -> FINISHING
    STREAMING   begun by start. write and heartbeats stay; close or the server's stop -> FINISHING
    FINISHING   over, but bytes of it wait for the client, or the application has not returned -> ENDED
    ENDED       `on_close` is called, the connection belongs to the parking again, or is closed

The loss of the client leads to ENDED from each. The socket is the pending response's until then; before the
application has returned, its request greenlet holds the connection too, and lets go of it with `begin`.

Nothing here waits; what the socket does not take goes later (`parked.server.outgoing`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, Literal, NoReturn, Protocol, TypeAlias, get_args

from gevent import monkey

from parked.server.connection import Connection
from parked.server.head import Head, encode_head
from parked.server.outgoing import Outgoing, Roads
from parked.server.stream import reset_on_close

#: Seconds that a pending response waits by default: less than the minute after which proxies give up.
TIMEOUT_S: Final = 55.0
#: Bytes of a chunk that is kept for the next who gets it, and of content that is copied behind its head.
LARGEST_KEPT: Final = 65536
#: As epoll(7) reports them: the client has shut its side, both are shut, the connection is broken.
EPOLLRDHUP: Final = 0x2000
BROKEN: Final = 0x010 | 0x008

WAITING, STREAMING, FINISHING, ENDED = range(4)
# Bits of PendingResponse._flags: what kind of response it is, and what has happened to it.
HEAD_ONLY, HTTP_1_0, CLOSES, CHUNKED, RETURNED, LOST, STOPPED = (1 << place for place in range(7))

#: How a pending response has ended: `answered` by send, `closed` by close, with its `head` if that was all of
#: it, the `client` has left, is too `slow` to read, there was an `error` of the application, and so on.
Reason: TypeAlias = Literal[
    "answered", "closed", "head", "client", "timeout", "slow", "shutdown", "limit", "error"
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
#: Status, header fields, content.
Response: TypeAlias = tuple[str, Iterable[tuple[str, str]], bytes]
Callback: TypeAlias = Callable[["PendingResponse"], Any]
Heartbeat: TypeAlias = tuple[float, bytes]

_DEFAULTS: Final[dict[Reason, HTTPStatus]] = {
    "timeout": HTTPStatus.GATEWAY_TIMEOUT,
    "shutdown": HTTPStatus.SERVICE_UNAVAILABLE,
    "limit": HTTPStatus.SERVICE_UNAVAILABLE,
}
_get_ident: Callable[[], int] = monkey.get_original(
    "_thread", "get_ident"
)  # of the thread, not of the greenlet


class Host(Roads, Protocol):
    """What a pending response asks of those who keep it."""

    #: The thread of the event loop.
    thread: int
    #: No response may keep its connection any more.
    stopping: bool
    messages: int
    heartbeats: int
    #: The last chunk of a stream, and it in the chunked coding: in a broadcast all get the same one.
    chunk: bytes
    framed: bytes

    def call(self, function: Callback, pending: PendingResponse) -> None:
        """Call it soon, in a greenlet that may block."""

    def call_from_thread(self, function: Callable[..., Any], *arguments: Any) -> None:
        """The same from another thread."""

    def complain(self, callback: Any, error: BaseException) -> None:
        """Log a line about the application's callback."""

    def retry_after(self) -> str:
        """Seconds, for the clients of a server that stops or is full."""

    def give_up(self, pending: PendingResponse, error: BaseException) -> None:
        """Tell of an error of the server's own, and abandon the response."""

    def ended(self, pending: PendingResponse, connection: Connection, keep: bool, lost: bool) -> None:
        """Count and log the response, and take the connection."""

    def withdrawn(self, pending: PendingResponse) -> None:
        """Count it; its request goes on in the ordinary way."""


class PendingResponse(Outgoing):
    """What `environ["parked.defer"]` returns: a response that is still to come, or under way.

    For the application are `send`, or `start`, `write` and `close`; `call_soon_threadsafe` for other threads;
    `open`, `reason` and `context`. All else is the server's. It ends when its last byte is with the kernel
    and the application has returned, when the client has left, or when a bound is exceeded; then `on_close`
    is called.

    :ivar context: the application's own, None at first, so that callbacks need no closures.
    :ivar reason: None while it is open, then how it has ended: answered, closed, head (the head was all),
        client, timeout, slow, shutdown, limit or error.
    """

    # Slots, because there are many.

    __slots__ = (
        "__weakref__",
        "_flags",
        "_heartbeat",
        "_on_close",
        "_on_shutdown",
        "_on_timeout",
        "_state",
        "code",
        "context",
        "reason",
        "request",
        "started",
    )
    _host: Host

    def __init__(
        self,
        host: Host,
        connection: Connection,
        flags: int,
        timeout: float = TIMEOUT_S,
        on_timeout: Callback | Response | None = None,
        on_close: Callback | None = None,
        on_shutdown: Callback | Response | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        if not 0 <= timeout < math.inf:
            raise ValueError(f"timeout is a number of seconds, 0 or more: {timeout!r}")
        if on_close is not None and not callable(on_close):
            raise TypeError("on_close is a function of the pending response")
        _check_heartbeat(heartbeat)
        super().__init__(host, connection)
        self._flags = flags
        self._on_timeout = on_timeout
        self._on_close = on_close
        self._on_shutdown = on_shutdown
        self._heartbeat = heartbeat
        self._state = WAITING
        self.code = 0
        #: For the access log, if there is one: the request's line, its client's address, its id, and bytes of
        #: the response's head.
        self.request: tuple[str, Any, str | None, int] | None = None
        self.started = 0.0
        #: How it has ended; None while it is open.
        self.reason: Reason | None = None
        #: The application's own.
        self.context: Any = None
        if timeout:
            host.deadlines.set(self, timeout)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pending response cannot be copied: the client gets one answer")

    # -- for the application

    @property
    def open(self) -> bool:
        """Whether what is sent may still reach the client."""
        return self.reason is None

    def send(self, status: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bool:
        """Answer with a whole response. False if it comes too late.

        :raises RuntimeError: it is answered or begun already, or this is another thread.
        :raises TypeError: *body* is no bytes.
        :raises ValueError: *status* or *headers* could not go out as what they are.
        """
        self._check_thread()
        if self._state != WAITING:
            return self._too_late("send")
        sent = self._answer("answered", status, headers, body)
        self._host.messages += 1
        return sent

    def start(
        self, status: str, headers: Iterable[tuple[str, str]], heartbeat: Heartbeat | None = None
    ) -> bool:
        """Begin a response whose content comes by `write`. False if it comes too late.

        Errors are those of `send`, and a Content-Length is one.
        """
        self._check_thread()
        if self._state != WAITING:
            return self._too_late("start")
        head = encode_head(status, headers)
        if head.length is not None:
            raise ValueError("a stream has no Content-Length; send() is for what is known")
        if heartbeat is not None:
            _check_heartbeat(heartbeat)
            self._heartbeat = heartbeat
        framing = b""
        if head.has_content and not self._flags & HTTP_1_0:
            self._flags |= CHUNKED
            framing = b"Transfer-Encoding: chunked\r\n"
        elif head.has_content and not self._flags & HEAD_ONLY:
            self._flags |= CLOSES  # RFC 9112, 6.3: then the end of the connection is the end
        self.code = head.code
        self._host.messages += 1
        self._host.deadlines.cancel(self)
        if self._flags & HEAD_ONLY or not head.has_content:
            return self._finish("head", self._message(head, framing))
        self._state = STREAMING
        if not self._put(self._message(head, framing)):
            return False
        if self._heartbeat is not None and not self._outgoing:
            self._host.deadlines.set(self, self._heartbeat[0])
        return True

    def write(self, chunk: bytes) -> bool:
        """Send some bytes of the stream. False if it comes too late, or makes the client too slow.

        :raises RuntimeError: the stream has not begun or was closed, or this is another thread.
        :raises TypeError: *chunk* is no bytes.
        """
        host = self._host
        if _get_ident() != host.thread:
            self._check_thread()
        if self._state != STREAMING:
            return self._too_late("write")
        if chunk and chunk is host.chunk and self._flags & CHUNKED:
            data = host.framed
        else:
            data = chunk if type(chunk) is bytes else _as_bytes(chunk)
            if not data:
                return True  # in the chunked coding it would be the end
            data = self._frame(data)
        host.messages += 1
        return self._put(data)

    def close(self) -> bool:
        """End the stream. False if it has ended already.

        :raises RuntimeError: the stream has not begun, or this is another thread.
        """
        self._check_thread()
        if self._state == STREAMING:
            return self._finish("closed", self._last_chunk())
        return False if self.reason is not None else self._too_late("close")

    def call_soon_threadsafe(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call *function* in a greenlet of the event loop's thread; to be called in any other."""
        self._host.call_from_thread(function, *arguments)

    def _check_thread(self) -> None:
        if _get_ident() != self._host.thread:
            raise RuntimeError("this is another thread: see PendingResponse.call_soon_threadsafe")

    def _too_late(self, what: str) -> bool:
        """False if others have ended it; what only the application can have done wrong is an error."""
        if self.reason is None:
            because = "start() comes first" if self._state == WAITING else "the stream has begun"
            raise RuntimeError(f"{what}(): {because}")
        if self.reason in ("answered", "closed"):
            raise RuntimeError(f"{what}(): the response is {self.reason} already")
        return False

    # -- for the server

    def begin(self) -> None:
        """The application has returned: nobody else holds the connection any more."""
        assert self._connection is not None
        self._flags |= RETURNED
        if self._state == FINISHING:
            if not self._outgoing:
                self._end()
            elif self._connection.hung_up:
                self._send_outgoing()  # if the client is gone, no event will say so again
        elif self._connection.hung_up:
            self._lose("client")
        elif self._host.stopping:
            self.stop()

    def withdraw(self) -> bool:
        """The application has failed; whether its error can be answered, for nothing has been sent."""
        if self._state != WAITING:
            if self._state == STREAMING:
                self._lose("error")
            return False
        self._state, self.reason = ENDED, "error"
        assert self._connection is not None
        self._connection.busy = True
        self._let_go()
        self._host.withdrawn(self)
        return True

    def stop(self) -> None:
        """The server stops: end it in order."""
        if self.reason is not None or self._flags & STOPPED:
            return
        self._flags |= STOPPED
        self._end_by_server("shutdown", self._on_shutdown)

    def disown(self) -> None:
        """In a forked child: the client is the parent's."""
        assert self._connection is not None
        self._connection.busy = True
        self._state, self.reason = ENDED, "client"
        self._connection = self._on_close = self._on_timeout = self._on_shutdown = self._heartbeat = None

    def refuse(self) -> None:
        """There are too many of its kind."""
        self._give("limit", None)

    def abandon(self) -> None:
        """Something of the server's has failed: the client sees the end of its connection."""
        if self._connection is not None:
            self._lose("error")

    def on_events(self, events: int) -> None:
        """In the hub: what epoll reports of the connection."""
        try:
            self._on_events(events)
        except Exception as error:
            self._host.give_up(self, error)

    def _on_events(self, events: int) -> None:
        if events & BROKEN or (events & EPOLLRDHUP and self._state != FINISHING):
            if self._flags & RETURNED:
                self._lose("client")
        elif self._outgoing:
            self._send_outgoing()

    def on_due(self) -> None:
        """In the hub: the deadline has passed."""
        deadlines = self._host.deadlines
        if self._outgoing:
            self._check_progress()
        elif self._state == WAITING:
            self._end_by_server("timeout", self._on_timeout)
        elif self._state == STREAMING and self._heartbeat is not None:
            seconds, data = self._heartbeat
            due = self._touched + deadlines.slots(seconds)
            if due >= deadlines.now:
                deadlines.set_slot(self, due)
                return
            self._host.heartbeats += 1
            if self._put(self._frame(data)) and not self._outgoing:
                deadlines.set(self, seconds)

    # -- the server's own answers

    def _end_by_server(self, reason: Reason, response: Callback | Response | None) -> None:
        if callable(response):
            self._host.call(_ask_on_timeout if reason == "timeout" else _ask_on_shutdown, self)
        else:
            self._give(reason, response)

    def _ask(self, reason: Reason, function: Any) -> None:
        """In a greenlet that may block."""
        if self.reason is not None:
            return
        response = None
        try:
            response = function(self)
        except BaseException as error:
            self._host.complain(function, error)
            if self._state == STREAMING and reason == "timeout":
                self._lose("error")  # begun there, and nobody may be left to end it
        self._give(reason, response)

    def _give(self, reason: Reason, response: Response | None) -> None:
        """Answer with *response*, or with what is usual for that *reason*, if it is still needed."""
        if self._state == STREAMING and reason == "shutdown":
            self._finish(reason, self._last_chunk())
        if self._state != WAITING:
            return
        if response is not None:
            try:
                self._answer(reason, *response)
                return
            except Exception as error:
                self._host.complain(response, error)
        status = _DEFAULTS[reason]
        fields = [("Content-Type", "text/plain")]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            fields.append(("Retry-After", self._host.retry_after()))
        self._answer(reason, f"{status.value} {status.phrase}", fields, f"{status.phrase}\n".encode("ascii"))

    # -- out

    def _answer(self, reason: Reason, status: str, headers: Iterable[tuple[str, str]], body: bytes) -> bool:
        data = body if type(body) is bytes else _as_bytes(body)
        head = encode_head(status, headers)
        framing = b""
        if head.length is None and head.has_content:
            framing = b"Content-Length: %d\r\n" % len(data)
        has_content = head.has_content and not self._flags & HEAD_ONLY
        if has_content and head.length is not None and head.length != len(data):
            raise ValueError(f"Content-Length is {head.length}, the body has {len(data)} bytes")
        self.code = head.code
        self._host.deadlines.cancel(self)
        if not has_content:
            return self._finish(reason, self._message(head, framing))
        if len(data) <= LARGEST_KEPT:
            return self._finish(reason, self._message(head, framing, data))
        return self._finish(reason, self._message(head, framing), data)

    def _message(self, head: Head, framing: bytes, content: bytes = b"") -> bytes:
        flags = self._flags
        connection = b""
        if head.closes or flags & CLOSES or self._host.stopping:
            self._flags |= CLOSES
            connection = b"Connection: close\r\n"
        elif flags & HTTP_1_0:
            connection = b"Connection: keep-alive\r\n"
        if self.request is not None:
            size = len(head.lines) + len(framing) + len(connection) + 2
            self.request = (*self.request[:3], size)
        return b"%b%b%b\r\n%b" % (head.lines, framing, connection, content)

    def _frame(self, data: bytes) -> bytes:
        if not self._flags & CHUNKED:
            return data
        framed = b"%x\r\n%b\r\n" % (len(data), data)
        if len(data) <= LARGEST_KEPT:
            self._host.chunk, self._host.framed = data, framed
        return framed

    def _last_chunk(self) -> bytes:
        return b"0\r\n\r\n" if self._flags & CHUNKED else b""

    def _finish(self, reason: Reason, *parts: bytes) -> bool:
        """Send the last bytes; whether they may reach the client."""
        self._state = FINISHING
        self.reason = reason
        if not all(map(self._put, filter(None, parts))):
            return False
        if not self._outgoing:
            self._end()
        return True

    def _is_bounded(self) -> bool:
        return self._state == STREAMING

    def _on_drained(self) -> None:
        if self._state == FINISHING:
            self._end()
        elif self._heartbeat is not None:
            self._host.deadlines.set(self, self._heartbeat[0])

    # -- the end

    def _lose(self, reason: Reason) -> None:
        if self._flags & HTTP_1_0 and self.code and self._connection is not None:
            # The end of a stream is that of its connection, and this one is not whole.
            with contextlib.suppress(OSError):  # closed by somebody else
                reset_on_close(self._connection)
        self._state = FINISHING
        self.reason = reason
        self._flags |= LOST
        self._outgoing = b""
        self._end()

    def _end(self) -> None:
        """Give the connection away, unless the application has not returned: then `begin` will."""
        flags = self._flags
        if not flags & RETURNED:
            return
        connection = self._connection
        assert connection is not None
        self._state = ENDED
        self._let_go()
        self._host.ended(self, connection, keep=not flags & (CLOSES | LOST), lost=bool(flags & LOST))

    def _let_go(self) -> None:
        self._host.deadlines.cancel(self)
        self._connection = self._on_timeout = self._on_shutdown = self._heartbeat = None
        if self._on_close is not None:
            self._host.call(_tell_on_close, self)


def _ask_on_timeout(pending: PendingResponse) -> None:
    pending._ask("timeout", pending._on_timeout)


def _ask_on_shutdown(pending: PendingResponse) -> None:
    pending._ask("shutdown", pending._on_shutdown)


def _tell_on_close(pending: PendingResponse) -> None:
    function, pending._on_close = pending._on_close, None
    assert function is not None
    try:
        function(pending)
    except BaseException as error:
        pending._host.complain(function, error)


def _as_bytes(data: Any) -> bytes:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"bytes are needed, not {type(data).__name__}")
    return bytes(data)


def _check_heartbeat(heartbeat: Heartbeat | None) -> None:
    if heartbeat is not None:
        seconds, data = heartbeat
        if not 0 < seconds < math.inf:
            raise ValueError(f"a heartbeat comes every so many seconds, more than 0: {seconds!r}")
        if not isinstance(data, bytes) or not data:
            raise TypeError("a heartbeat is bytes, one at least")
