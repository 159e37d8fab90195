"""How a request's response becomes a pending one: `environ["parked.defer"]`, and what is left undone."""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from parked.server import request_id
from parked.server.body import NO_BODY
from parked.server.connection import Connection
from parked.server.pending import (
    CLOSES,
    HEAD_ONLY,
    HTTP_1_0,
    TIMEOUT_S,
    Callback,
    Heartbeat,
    PendingResponse,
    Response,
)
from parked.server.request import RequestHead
from parked.server.response import ResponseWriter, Server

#: Where applications find it.
KEY: Final = "parked.defer"


def _ignored(*_: object) -> None:
    """What the application says on a way that does not count any more."""


#: The steps of a response that are not taken once it is pending.
_UNDONE: Final = ("process_result", "write", "_write", "_write_with_headers", "log_request")


def defer(environ: dict[str, Any], **options: Any) -> PendingResponse:
    """`environ["parked.defer"](**options)`, or a clear word under a server that has none. The options:

    :param timeout: seconds until a response that has not begun times out, 0: never (default: 55.0).
    :param on_timeout: what answers then: `(status, headers, body)`, or a function of the pending response
        that returns such a tuple or answers by itself (default: None, a 504).
    :param on_close: a function of the pending response, called once when it has ended (default: None).
    :param on_shutdown: as `on_timeout`, when the server stops or reloads (default: None: a stream ends in
        order, what has not begun gets a 503 with Retry-After).
    :param heartbeat: `(seconds, bytes)`, written into a stream that was silent for so long (default: None).
    :raises RuntimeError: this server has none, or says no.
    :raises TypeError, ValueError: an option is of another kind than it should be.
    """
    call = environ.get(KEY)
    if call is None:
        raise RuntimeError(
            'this server has no environ["parked.defer"]: serve the application with parked-server '
            "(or parked.server.KeepAliveWSGIServer), or answer at once"
        )
    pending: PendingResponse = call(**options)
    return pending


class Keeper(Protocol):
    """Who keeps pending responses; see `parked.server.waiting`."""

    def add(self, connection: Connection, flags: int, **options: Any) -> PendingResponse: ...


class DeferringServer(Server, Protocol):
    """What a handler of such requests asks of its server."""

    pending: Keeper


class Deferring(ResponseWriter):
    """A handler whose response may be left for later.

    The steps not taken are shadowed in the instance, so that other requests are not asked about it.
    """

    server: DeferringServer
    environ: Any  # None when the request is over
    head: RequestHead | None = None
    deferred: PendingResponse | None = None
    #: Of a response whose fields are not known: a pending one that is logged, or one of the server's own.
    head_bytes: int | None = None

    def defer(
        self,
        timeout: float = TIMEOUT_S,
        on_timeout: Callback | Response | None = None,
        on_close: Callback | None = None,
        on_shutdown: Callback | Response | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> PendingResponse:
        """Leave the response for later; what the arguments mean is in docs/pending.md.

        :raises RuntimeError: it is too late, or too early, for that.
        """
        connection, head = self.connection, self.head
        assert connection is not None
        assert head is not None
        if self.deferred is not None:
            raise RuntimeError("parked.defer: called twice in one request")
        if self.environ is None:
            raise RuntimeError("parked.defer: the request is over")
        if self.headers_sent:
            raise RuntimeError("parked.defer: the response has begun already")
        if self.wsgi_input is not NO_BODY and self.wsgi_input.unread:
            raise RuntimeError("parked.defer: read the request's content first")
        if "socket" in self.__dict__ or (head.fields.upgrade and self.rfile.used):
            raise RuntimeError("parked.defer: the application has taken the connection")
        flags = (
            (HEAD_ONLY if head.method == "HEAD" else 0)
            | (HTTP_1_0 if head.version == "HTTP/1.0" else 0)
            | (CLOSES if self.close_connection else 0)
        )
        pending = self.server.pending.add(
            connection,
            flags,
            timeout=timeout,
            on_timeout=on_timeout,
            on_close=on_close,
            on_shutdown=on_shutdown,
            heartbeat=heartbeat,
        )
        if self.server.logs_requests:
            known = self.environ.get(request_id.KEY) if self.server.gives_ids else None
            pending.request = head.line, self.client_address, known, 0
        self.deferred = pending
        self.close_connection = (
            True  # the server lets go of it as of one that is closed, and the response takes it
        )
        self.__dict__.update(dict.fromkeys(_UNDONE, _ignored))
        return pending

    def _send_error_response_if_possible(self, error_code: int) -> None:
        if self.deferred is None or self._take_back(self.deferred):
            super()._send_error_response_if_possible(error_code)

    def _take_back(self, pending: PendingResponse) -> bool:
        if not pending.withdraw():
            return False
        self.deferred = None
        for name in _UNDONE:
            del self.__dict__[name]
        return True

    def note_pending(self, pending: PendingResponse) -> None:
        """Log and count a pending response that has ended, in a handler made for that."""
        line = ""
        if pending.request is not None:
            line, self.client_address, known, self.head_bytes = pending.request
            if known:
                self.environ = {request_id.KEY: known}
        self.requestline = line
        self.command, self.path, self.request_version = (line.split(" ") + ["", ""])[:3]
        self.code = pending.code
        self._orig_status = f"{pending.code:03}"
        self.response_length = pending.sent_bytes
        self.time_finish = time.time()
        self.time_start = self.time_finish - (time.monotonic() - pending.started)
        if self.server.statistics is not None:
            self.server.statistics.note(self.code, self.response_length, self.time_finish - self.time_start)
        self.log_request()
