"""The way out of one request: from start_response() to the last byte on the wire.

Where a response would desynchronise the connection, this departs from pywsgi: content for HEAD is not sent,
content beyond Content-Length is cut off and too little of it ends the connection, a response of unknown
length to HTTP/1.0 ends the connection and says so, and an application that never calls start_response() or
sets Transfer-Encoding gets a 500.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from gevent import pywsgi

from parked.server.access_format import LineFormat
from parked.server.body import RequestBody
from parked.server.connection import HUNG_UP, Connection
from parked.server.fields import (
    CONNECTION,
    CONTENT_LENGTH,
    DATE,
    date_field,
    encode_field,
    encode_status,
    encoded_statuses,
    field_line,
    known_field,
    says_close,
)
from parked.server.files import FileWrapper
from parked.server.forwarded import Forwarded
from parked.server.limits import Limits
from parked.server.request import Fields
from parked.server.request_id import RequestIds
from parked.server.stream import MAX_SENT_BYTES, WriteTimeoutError, reset_on_close, send_all, send_file
from parked.server.turns import Turns
from parked.shared.log import GuardedLog

#: Bytes up to which content is copied behind the header to leave in the same send. A copy of 64 KB takes
#: about as long as the second system call that it saves.
MAX_JOINED_BYTES: Final = 65536


class Counts(Protocol):
    """Where responses are counted, if anybody wants to know."""

    def note(self, status: int | None, sent_bytes: int, seconds: float) -> None:
        """One response of the application; a negative status is pywsgi's mark for one that was not sent."""

    def note_refusal(self, status: int) -> None:
        """One answer of the server's own to what was no request."""


class Server(Protocol):
    """What a handler asks of its server."""

    application: Any
    draining: bool
    limits: Limits
    turns: Turns
    body_timeout: float
    write_timeout: float
    statistics: Counts | None
    error_log: GuardedLog
    forwarded: Forwarded | RequestIds | None
    gives_ids: bool
    names_clients: bool
    logs_requests: bool
    access_format: LineFormat | None
    timed_out_bodies: int
    timed_out_writes: int

    def begin_environ(self, fields: Fields) -> dict[str, Any]: ...

    def tell_of_client(self, kind: str, address: Any, reason: str) -> None: ...


class ResponseWriter(pywsgi.WSGIHandler):  # type: ignore[misc] # gevent has no type hints
    """The half of a handler that an application talks to; see `KeepAliveWSGIHandler` for the other."""

    server: Server
    connection: Connection | None = None
    status: Any  # pywsgi: bytes, or str once sending has failed
    headers_sent = False
    connection_upgraded = False
    provided_connection: str | None = None
    # Bytes that the application's Content-Length still promises; None where it made no promise.
    _promised: int | None = None
    # Length of content that is sent whole.
    _whole_bytes: int | None = None
    _has_no_content = False
    # Nothing may be sent any more: the response is complete, or cut off.
    _is_over = False
    # The socket is the application's, for another protocol.
    _is_taken = False
    # What is known of the request's content, where there is any.
    _content: RequestBody | None = None
    # The response is left for later (`parked.server.defer`).
    deferred: Any = None
    # The error by which sending noticed that the client has left.
    _send_error: OSError | None = None

    def start_response(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if self.headers_sent or self._is_over:
            # PEP 3333: an error of its own, or the one that the application wants to tell the client of.
            self._cut()
            try:
                if exc_info:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
            message = "start_response() was called again after a part of the response was sent: cut off"
            self.log_error(message)
            raise self.ApplicationError(message)
        response_headers: list[tuple[bytes, bytes]] = []
        date = length = None
        connection = ""
        for field in headers:
            try:
                encoded, framing = known_field(field) or encode_field(*field)
            except TypeError:  # a list, say
                encoded, framing = encode_field(*field)
            response_headers.append(encoded)
            if framing:
                value = field[1]
                if framing == CONTENT_LENGTH:
                    if length is not None:
                        raise self.ApplicationError("repeated Content-Length")
                    length = value
                elif framing == CONNECTION:
                    connection += "," + value
                elif framing == DATE:
                    date = value
                else:
                    raise self.ApplicationError("Transfer-Encoding is the server's business (PEP 3333)")
        known = encoded_statuses.get(status) or encode_status(status)
        code = known[1]
        if length is not None and not (length.isascii() and length.isdigit()):
            raise self.ApplicationError(f"Invalid Content-Length: {length!r}")
        if code < 200 and not (code == 101 and self._connection_upgrade_requested()):  # RFC 9110, 7.8
            raise self.ApplicationError(f"{code} is not a final status")

        self.status, self.code = known
        self._orig_status = status
        self.response_headers = response_headers
        self.provided_connection = connection[1:] or None
        self.provided_date = date
        self.provided_content_length = length
        self.response_use_chunked = False
        self._whole_bytes = None
        if connection and says_close(connection):
            self.close_connection = True
        if code == 204 and length is not None:
            # RFC 9110, 8.6: none at all. Frameworks say 0; a 304 may say what it does not send (15.4.5).
            if length != "0":
                message = f"Invalid Content-Length for 204 response: {length!r} (must be absent or zero)"
                raise self.ApplicationError(message.encode("latin-1"))
            self.response_headers = [f for f in response_headers if f[0].lower() != b"content-length"]
            self.provided_content_length = None
        self._has_no_content = self.command == "HEAD" or code in (204, 304)
        self._promised = int(length) if length is not None and not self._has_no_content else None
        return self.write  # type: ignore[no-any-return]

    def finalize_headers(self) -> None:
        headers = self.response_headers
        if self.provided_date is None:
            headers.append(date_field())
        code = self.code
        if code == 101:
            self._upgrade()
        content = self._content
        if content is not None and content.ends_connection:
            self.close_connection = True  # what can be foreseen is announced (RFC 9112, 9.6)
        if self.provided_content_length is None and code >= 200 and code != 204 and code != 304:
            result = self.result
            if self._whole_bytes is not None:
                headers.append((b"Content-Length", b"%d" % self._whole_bytes))
            elif hasattr(result, "__len__"):
                length = sum(map(len, result))
                headers.append((b"Content-Length", b"%d" % length))
                if not self._has_no_content:
                    self._promised = length  # it may be another thing when it is iterated again
            elif self.request_version != "HTTP/1.0":
                self.response_use_chunked = True
                headers.append((b"Transfer-Encoding", b"chunked"))
            elif not self._has_no_content:
                self.close_connection = True  # RFC 9112, 6.3: then the end of the connection is the end
        if self.server.draining:
            self.close_connection = True
        provided = self.provided_connection
        if self.close_connection:
            # Whatever the application says, and then as one more list element (RFC 9112, 9.6: close wins).
            if provided is None or not (code == 101 or says_close(provided)):
                headers.append((b"Connection", b"close"))
        elif provided is None and self.request_version == "HTTP/1.0":
            headers.append((b"Connection", b"keep-alive"))

    def _upgrade(self) -> None:
        """From now on the connection is the application's, and so is time."""
        self.connection_upgraded = True
        if self.connection is not None:
            self.rfile.timeout = 0

    def take_socket(self) -> Any:
        """The socket for one who answers the offer of another protocol there, without start_response()."""
        self._is_taken = True
        self._upgrade()
        return self.socket

    def _cut(self) -> None:
        """End here, such that the client sees that this is not all."""
        self.close_connection = True
        if self._is_over:
            return
        self._is_over = True
        ends_with_connection = (
            self.headers_sent
            and not self._has_no_content
            and not self.response_use_chunked
            and self._promised is None
        )
        if ends_with_connection and self.connection is not None and not self.connection_upgraded:
            reset_on_close(self.connection)

    def _sendall(self, data: bytes | bytearray | memoryview) -> None:
        connection = self.connection
        size = len(data)
        try:
            if connection is None:
                super()._sendall(data)
                return
            try:  # PERF: the first step of send_all, nearly always the only one; 0.3 us less
                sent = connection.sock.send(data) if size <= MAX_SENT_BYTES else 0
            except BlockingIOError:
                sent = 0
            if sent != size:
                send_all(connection, memoryview(data)[sent:], self.server.write_timeout)
        except OSError as error:
            if connection is not None:  # the base class has noted it
                self._note_lost(connection, error)
            raise
        except BaseException:  # a timeout of the application's own, say: nobody knows how much of it is out
            self._cut()
            raise
        self.response_length += size

    def _note_lost(self, connection: Connection, error: OSError) -> None:
        """The response cannot be sent, for the client has left or does not read."""
        self._send_error = error
        self.status = f"socket error: {error}"
        if self.code is not None and self.code > 0:  # none yet: an interim response
            self.code = -self.code
        self.close_connection = True
        connection.reported |= HUNG_UP
        if isinstance(error, WriteTimeoutError):
            self.server.timed_out_writes += 1
        connection.buffer = b""

    def _frame(self, data: Any) -> Any:
        """*data* as it goes onto the wire, which may be not at all."""
        if self._has_no_content or not data:
            return b""
        if type(data) is not bytes:
            data = memoryview(data).cast("B")  # the length of an array is not that of its bytes
        if self.response_use_chunked:
            return b"%x\r\n%b\r\n" % (len(data), data)
        if self._promised is None:
            return data
        if len(data) > self._promised:
            self.log_error("The application sent more than its Content-Length; cut off")
            self.close_connection = True
            cut = memoryview(data)[: self._promised]
            self._promised = 0
            return cut
        self._promised -= len(data)
        return data

    def _write(self, data: bytes) -> None:
        if self._is_over:
            raise self.ApplicationError("the response is over")
        framed = self._frame(data)
        if framed:
            self._sendall(framed)
            if self.connection is not None:
                self.server.turns.share()

    def _write_with_headers(self, data: bytes) -> None:
        if self._is_over:
            raise self.ApplicationError("the response is over")
        self.finalize_headers()
        size = len(data)
        if size == self._promised and type(data) is bytes:
            self._promised = 0
            framed = data
        else:
            framed = self._frame(data)
            size = len(framed)
        lines = map(field_line, self.response_headers)
        joined = framed if size <= MAX_JOINED_BYTES else b""
        message = b"".join((b"HTTP/1.1 ", self.status, b"\r\n", *lines, b"\r\n", joined))
        self.headers_sent = True
        self._sendall(message)
        if size > MAX_JOINED_BYTES:
            self._sendall(framed)

    def process_result(self) -> None:
        result = self.result
        if self._is_taken and not self.status:
            self._end_taken()
            return
        if (type(result) is list or type(result) is tuple) and not self.headers_sent and self.status:
            # It is all there, so it goes at once.
            data = b"".join(result)  # the only one as it is, if it is bytes
            self._whole_bytes = len(data)
            self.write(data)
        elif type(result) is FileWrapper and self._send_file(result):
            pass
        else:
            for data in result:
                if data or (self._has_no_content and self.status):
                    self.write(data)
                    if self._has_no_content:
                        break  # nobody will see the rest
            if self.deferred is not None:
                return  # by a generator, or within one
            if not self.headers_sent:
                if not self.status:
                    if self._is_taken:
                        self._end_taken()
                        return
                    self.log_error("The application did not call start_response()")
                    self._send_error_response_if_possible(500)
                    return
                self.write(b"")
        if self._is_over:
            return  # cut off
        if self.response_use_chunked:
            if not self._has_no_content:
                self._sendall(b"0\r\n\r\n")
        elif self._promised:
            self.log_error("The application sent less than its Content-Length")
            self.close_connection = True
        self._is_over = True

    def _end_taken(self) -> None:
        """All was said on the socket. For the access log it was a 101."""
        self._is_over = True
        self.code = 101
        self._orig_status = "101 Switching Protocols"

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Send a plain file from its position to its end, or as much of it as the application has promised.

        False if it is none, or if the response has begun: then it is read like any other result.
        """
        connection = self.connection
        if connection is None or self.headers_sent or not self.status or self.code in (204, 304):
            return False
        extent = wrapper.extent()
        if extent is None:
            return False
        fd, offset, size = extent
        count = size if self._promised is None else min(size, self._promised)
        separate = count > MAX_JOINED_BYTES
        content = b"" if separate or self._has_no_content else wrapper.file.read(count)
        if self.provided_content_length is None:
            self._whole_bytes = size if separate or self._has_no_content else len(content)
            self._promised = None if self._has_no_content else self._whole_bytes
        self.write(content)
        if separate and not self._has_no_content:
            try:
                sent = send_file(connection, self.server.turns, fd, offset, count, self.server.write_timeout)
            except OSError as error:
                self._note_lost(connection, error)
                raise
            except BaseException:
                self._cut()
                raise
            self.response_length += sent
            assert self._promised is not None
            self._promised -= sent
        return True
