"""One request: environ in, response out.

`KeepAliveWSGIHandler` is `pywsgi.WSGIHandler` with the steps that every request takes made short, in the same
methods, so that subclasses find their hooks where they were. A handler is made for each request, when its
head has been read; it does not outlive the response.

Where a response would desynchronise the connection, this class departs from pywsgi: content for HEAD is not
sent, content beyond Content-Length is cut off and too little of it ends the connection, a response of unknown
length to HTTP/1.0 ends the connection and says so, and an application that never calls start_response() or
sets Transfer-Encoding gets a 500.
"""

from __future__ import annotations

import _socket
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar, Final

import gevent
from gevent import pywsgi
from gevent.socket import socket as gevent_socket

from parked.server.body import NO_BODY, RequestBody
from parked.server.connection import Connection
from parked.server.files import FileWrapper
from parked.server.request import RequestHead
from parked.server.stream import (
    BYTES_A_TURN,
    ClientTimeoutError,
    ConnectionReader,
    WriteTimeoutError,
    send_all,
    send_file,
)
from parked.server.tls import TLSSocket

if TYPE_CHECKING:
    from parked.server.server import KeepAliveWSGIServer

#: Response header fields remembered in encoded form: how many, and the longest value worth it, in characters.
#: 0.1 us instead of 0.7 us a field. Beyond the count all are forgotten at once.
MAX_REMEMBERED_FIELDS: Final = 4096
MAX_REMEMBERED_CHARACTERS: Final = 64
#: Bytes up to which content is copied behind the header to leave in the same send. A copy of 64 KB takes
#: about as long as the second system call that it saves.
MAX_JOINED_BYTES: Final = 65536

_CONNECTION, _DATE, _CONTENT_LENGTH, _TRANSFER_ENCODING = range(1, 5)
_FRAMING_FIELDS: Final = {
    "connection": _CONNECTION,
    "date": _DATE,
    "content-length": _CONTENT_LENGTH,
    "transfer-encoding": _TRANSFER_ENCODING,
}
# RFC 9110, 5.6.2 and 5.5; RFC 9112, 4.
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(r"[\0-\x08\n-\x1f\x7f]")
_STATUS: Final = re.compile(r"[1-9][0-9]{2}(?: |$)", re.ASCII)
_encoded_fields: dict[tuple[str, str], tuple[tuple[bytes, bytes], int]] = {}
_encoded_statuses: dict[str, tuple[bytes, int]] = {}
_date: tuple[int, tuple[bytes, bytes]] = (0, (b"Date", b""))


def date_field() -> tuple[bytes, bytes]:
    """The Date field, formatted once a second."""
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = (now, (b"Date", pywsgi.format_date_time(now)))
    return _date[1]


def error_response(status: HTTPStatus) -> bytes:
    """A complete response that ends the connection."""
    text = f"{status.phrase}\n".encode("ascii")
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    ).encode("ascii") + text


def _encode_field(name: Any, value: Any) -> tuple[tuple[bytes, bytes], int]:
    """Check one response header field; the errors are pywsgi's."""
    if not isinstance(name, str):
        raise UnicodeError("The header must be a native string", name, value)
    if not isinstance(value, str):
        raise UnicodeError("The value must be a native string", name, value)
    _refuse_control_characters(name, "header name")
    _refuse_control_characters(value, "header value")
    if not _TOKEN.fullmatch(name):
        raise ValueError("header name is not a token", name)
    try:
        encoded = ((name.encode("latin-1"), value.encode("latin-1")), _FRAMING_FIELDS.get(name.lower(), 0))
    except UnicodeEncodeError:
        raise UnicodeError("Non-latin1 header", repr(name), repr(value)) from None
    if len(value) <= MAX_REMEMBERED_CHARACTERS and name.lower() != "set-cookie":
        if len(_encoded_fields) >= MAX_REMEMBERED_FIELDS:
            _encoded_fields.clear()
        _encoded_fields[name, value] = encoded
    return encoded


def _refuse_control_characters(text: str, where: str) -> None:
    found = _CONTROL.search(text)
    if found:
        kind = "carriage return or newline" if found[0] in "\r\n" else "control character"
        raise ValueError(f"{kind} in {where}", text)


def _encode_status(status: Any) -> tuple[bytes, int]:
    if not isinstance(status, str):
        raise UnicodeError("The status string must be a native string")
    _refuse_control_characters(status, "status")
    if not _STATUS.match(status):
        raise ValueError("the status must be three digits and a reason", status)
    encoded = (status.encode("latin-1"), int(status[:3]))
    if len(_encoded_statuses) < MAX_REMEMBERED_FIELDS:
        _encoded_statuses[status] = encoded
    return encoded


def _says_close(connection: str) -> bool:
    """Whether a Connection field holds this option (RFC 9110, 7.6.1)."""
    return "close" in [option.strip(" \t") for option in connection.lower().split(",")]


class _Lazy:
    """An attribute made at first use, which then lives in the instance and may be set or popped there."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._make(instance)
        return value


class KeepAliveWSGIHandler(pywsgi.WSGIHandler):  # type: ignore[misc]
    """Serve one request of a parked connection.

    Made with a socket instead of a `Connection`, it works as its base class does, a greenlet a connection;
    the server does that for subclasses that read requests themselves.
    """

    #: Overriding one of these means to read requests oneself.
    reading_hooks: ClassVar[tuple[str, ...]] = (
        "handle",
        "handle_one_request",
        "read_request",
        "read_requestline",
        "MessageClass",
    )

    server: KeepAliveWSGIServer
    connection: Connection | None = None
    head: RequestHead | None = None
    provided_connection: str | None = None
    status: Any  # pywsgi: bytes, or str once sending has failed
    headers_sent = False
    time_finish = 0.0
    connection_upgraded = False
    # Bytes that the application's Content-Length still promises; None where it made no promise.
    _promised: int | None = None
    # Length of a file that is sent whole.
    _file_bytes: int | None = None
    _next_turn = BYTES_A_TURN  # of response_length
    _has_no_content = False

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        if type(sock) is Connection:
            self.connection = sock
            self.client_address = address
            self.server = server
        else:
            super().__init__(sock, address, server, rfile)

    # -- made at first use, since most requests need none of them

    @_Lazy
    def socket(self) -> Any:
        """A cooperative socket for those who take over the connection; closed when the request ends."""
        assert self.connection is not None
        sock = self.connection.sock
        if isinstance(sock, _socket.socket):
            # A descriptor of its own, so that it may be closed without the connection's knowledge.
            return gevent_socket(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno()))
        assert isinstance(sock, TLSSocket)
        return sock.cooperative()

    def _release_socket(self) -> None:
        assert self.connection is not None
        taken = self.__dict__.pop("socket")
        if isinstance(self.connection.sock, TLSSocket):
            self.connection.sock.uncooperative()
        else:
            taken.close()

    @_Lazy
    def rfile(self) -> ConnectionReader:
        assert self.connection is not None
        return ConnectionReader(self.connection, self.server.body_timeout)

    @_Lazy
    def headers(self) -> Any:
        """The request's header fields as pywsgi presents them."""
        block = self.head.fields.block if self.head is not None else b""
        return self.MessageClass(BytesIO(block + b"\r\n"), 0)

    @_Lazy
    def requestline(self) -> str | None:
        return self.head.line if self.head is not None else None

    @_Lazy
    def path(self) -> str | None:
        return self.head.target if self.head is not None else None

    @_Lazy
    def content_length(self) -> int | None:
        return self.head.fields.content_length if self.head is not None else None

    # -- in

    def handle_request(self, head: RequestHead) -> bool:
        """Serve the request whose *head* begins the connection's buffer; whether to keep the connection."""
        connection = self.connection
        assert connection is not None
        connection.buffer = connection.buffer[head.size :]
        self.head = head
        self.command = head.method
        self.request_version = head.version
        self.close_connection = self.server.draining or not head.keeps_connection
        self.environ = self.get_environ()
        self.application = self.server.application
        try:
            self.handle_one_response()
        finally:
            if "socket" in self.__dict__:
                self._release_socket()
        if self.server.statistics is not None:
            self.server.statistics.note(self.code, self.response_length, self.time_finish - self.time_start)
        if head.fields.upgrade and self.wsgi_input is NO_BODY and self.rfile.used:
            return False  # read for a protocol that we do not speak, so nobody knows what comes next
        return not (self.close_connection or self.connection_upgraded or self.wsgi_input.abandoned)

    def handle_one_response(self) -> None:
        """As in the base class, less what is done already because a handler is new for each request."""
        if self.connection is None:
            super().handle_one_response()
            return
        measures = self.server.logs_requests or self.server.statistics is not None
        if measures:
            self.time_start = time.time()
        try:
            self.run_application()
            if self.wsgi_input is not NO_BODY:
                self._discard_content()
        except pywsgi._InvalidClientInput as error:
            self._handle_client_error(error)
            self.close_connection = True
            self._send_error_response_if_possible(400)
        except OSError as error:
            if error.errno in self.ignored_socket_errors:
                self.close_connection = True
            else:
                self.handle_error(*sys.exc_info())
        except BaseException:  # GreenletExit and the like are an answer's end too; see _log_error
            self.handle_error(*sys.exc_info())
        if measures:
            self.time_finish = time.time()
        self.log_request()

    def _discard_content(self) -> None:
        """Read what the application has not read, so that the connection can be used again."""
        try:
            self.wsgi_input._discard()
        except pywsgi._InvalidClientInput:
            raise
        except OSError:
            pass  # gone, or too slow; the content counts as abandoned

    def get_environ(self) -> dict[str, Any]:
        head = self.head
        if head is None:
            environ: dict[str, Any] = super().get_environ()
            return environ
        environ = self.server.get_environ()
        environ["REQUEST_METHOD"] = head.method
        environ["SCRIPT_NAME"] = ""
        environ["PATH_INFO"] = head.path
        environ["QUERY_STRING"] = head.query
        environ["SERVER_PROTOCOL"] = head.version
        address = self.client_address
        if isinstance(address, tuple):
            environ["REMOTE_ADDR"] = address[0]
            environ["REMOTE_PORT"] = str(address[1])
        fields = head.fields
        environ.update(fields.environ)
        if fields.content_length or fields.chunked:
            self.wsgi_input = RequestBody(
                self.rfile,
                fields.content_length,
                self._send_continue if fields.expects_continue and head.version == "HTTP/1.1" else None,
                fields.chunked,
                self.server.limits.body_bytes,
            )
        else:
            self.wsgi_input = NO_BODY
            if fields.upgrade and fields.content_length is None:
                # What follows is in the other protocol and the application's to read.
                environ["wsgi.input"] = self.rfile
                environ["wsgi.input_terminated"] = False
                return environ
        environ["wsgi.input"] = self.wsgi_input
        environ["wsgi.input_terminated"] = True
        return environ

    def _connection_upgrade_requested(self) -> bool:
        if self.head is not None:
            return self.head.fields.upgrade
        requested: bool = super()._connection_upgrade_requested()
        return requested

    def _send_continue(self, data: bytes) -> None:
        if not self.headers_sent:  # RFC 9110, 10.1.1: no interim response behind the final one
            assert self.connection is not None
            send_all(self.connection, data, self.server.write_timeout)

    # -- out

    def start_response(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info:
            try:
                if self.headers_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        response_headers: list[tuple[bytes, bytes]] = []
        date = length = None
        connection = ""
        for name, value in headers:
            try:
                encoded, framing = _encoded_fields[name, value]
            except (KeyError, TypeError):
                encoded, framing = _encode_field(name, value)
            response_headers.append(encoded)
            if framing:
                if framing == _CONTENT_LENGTH:
                    if length is not None:
                        raise self.ApplicationError("repeated Content-Length")
                    length = value
                elif framing == _CONNECTION:
                    connection += "," + value
                elif framing == _DATE:
                    date = value
                else:
                    raise self.ApplicationError("Transfer-Encoding is the server's business (PEP 3333)")
        known = _encoded_statuses.get(status) or _encode_status(status)
        code = known[1]
        if length is not None and not (length.isascii() and length.isdigit()):
            raise self.ApplicationError(f"Invalid Content-Length: {length!r}")
        if code < 200 and code != 101:
            raise self.ApplicationError(f"{code} is not a final status")

        self.status, self.code = known
        self._orig_status = status
        self.response_headers = response_headers
        self.provided_connection = connection[1:] or None
        self.provided_date = date
        self.provided_content_length = length
        self.response_use_chunked = False
        if connection and _says_close(connection):
            self.close_connection = True
        # RFC 9110, 15.4.5: a 304 may repeat the length of what it does not send; pywsgi allows none.
        if code in (204, 304) and length is not None and length != "0":
            message = f"Invalid Content-Length for {code} response: {length!r} (must be absent or zero)"
            raise self.ApplicationError(message.encode("latin-1"))
        self._has_no_content = self.command == "HEAD" or code in (204, 304)
        self._promised = int(length) if length is not None and not self._has_no_content else None
        return self.write  # type: ignore[no-any-return]

    def finalize_headers(self) -> None:
        headers = self.response_headers
        if self.provided_date is None:
            headers.append(date_field())
        code = self.code
        self.connection_upgraded = code == 101
        if code >= 200 and code != 204 and code != 304 and self.provided_content_length is None:
            result = self.result
            if self._file_bytes is not None:
                headers.append((b"Content-Length", b"%d" % self._file_bytes))
            elif hasattr(result, "__len__"):
                headers.append((b"Content-Length", b"%d" % sum(map(len, result))))
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
            if provided is None or not (code == 101 or _says_close(provided)):
                headers.append((b"Connection", b"close"))
        elif provided is None and self.request_version == "HTTP/1.0":
            headers.append((b"Connection", b"keep-alive"))

    def _sendall(self, data: bytes | bytearray | memoryview) -> None:
        if self.connection is None:
            super()._sendall(data)
            return
        try:
            send_all(self.connection, data, self.server.write_timeout)
        except OSError as error:
            self._note_lost(self.connection, error)
            raise
        self.response_length += len(data)

    def _note_lost(self, connection: Connection, error: OSError) -> None:
        """The response cannot be sent, for the client has left or does not read."""
        self.status = f"socket error: {error}"
        if self.code > 0:
            self.code = -self.code
        self.close_connection = connection.hung_up = True
        if isinstance(error, WriteTimeoutError):
            self.server.timed_out_writes += 1
        connection.buffer = b""

    def _frame(self, data: bytes) -> bytes | memoryview:
        """*data* as it goes onto the wire, which may be not at all."""
        if self._has_no_content or not data:
            return b""
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
        framed = self._frame(data)
        if framed:
            self._sendall(framed)
            if self.response_length >= self._next_turn and self.connection is not None:
                self._next_turn = self.response_length + BYTES_A_TURN
                gevent.sleep(0)

    def _write_with_headers(self, data: bytes) -> None:
        self.finalize_headers()
        framed = self._frame(data)
        lines: list[bytes | memoryview] = [b"HTTP/1.1 %b\r\n" % self.status]
        lines += [b"%b: %b\r\n" % field for field in self.response_headers]
        lines.append(b"\r\n")
        if len(framed) <= MAX_JOINED_BYTES:
            lines.append(framed)
            message = b"".join(lines)
            self.headers_sent = True
            self._sendall(message)
        else:
            head = b"".join(lines)
            self.headers_sent = True
            self._sendall(head)
            self._sendall(framed)

    def process_result(self) -> None:
        result = self.result
        if (type(result) is list or type(result) is tuple) and not self.headers_sent and self.status:
            # It is all there, so it goes at once.
            self.write(result[0] if len(result) == 1 else b"".join(result))
        elif type(result) is FileWrapper and self._send_file(result):
            pass
        else:
            for data in result:
                if data or (self._has_no_content and self.status):
                    self.write(data)
                    if self._has_no_content:
                        break  # nobody will see the rest
            if not self.headers_sent:
                if not self.status:
                    self.log_error("The application did not call start_response()")
                    self._send_error_response_if_possible(500)
                    return
                self.write(b"")
        if self.response_use_chunked:
            if not self._has_no_content:
                self._sendall(b"0\r\n\r\n")
        elif self._promised:
            self.log_error("The application sent less than its Content-Length")
            self.close_connection = True

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
            self._file_bytes = size if separate or self._has_no_content else len(content)
            self._promised = None if self._has_no_content else self._file_bytes
        self.write(content)
        if separate and not self._has_no_content:
            try:
                sent = send_file(connection, fd, offset, count, self.server.write_timeout)
            except OSError as error:
                self._note_lost(connection, error)
                raise
            self.response_length += sent
            assert self._promised is not None
            self._promised -= sent
        return True

    # -- when things go wrong

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        if isinstance(v, ClientTimeoutError):
            self.server.timed_out_bodies += 1
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            super().handle_error(t, v, tb)

    def _send_error_response_if_possible(self, error_code: int) -> None:
        if self.wsgi_input is not None and getattr(self.wsgi_input, "too_long", False):
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            super()._send_error_response_if_possible(error_code)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer for the client's fault, if there is no answer yet, and close."""
        self.close_connection = True
        if self.headers_sent:
            return
        self.headers_sent = True
        self.code = status.value
        self._orig_status = f"{status.value} {status.phrase}"
        try:
            self._sendall(error_response(status))
        except OSError:
            pass  # it is gone, and with it the one who would have read this

    def log_error(self, msg: str, *args: Any) -> None:
        if self.connection is not None and "socket" not in self.__dict__:
            self.__dict__["socket"] = None  # the base class names the socket; making one for that is too much
            try:
                super().log_error(msg, *args)
            finally:
                del self.__dict__["socket"]
        else:
            super().log_error(msg, *args)

    def log_request(self) -> None:
        if self.server.logs_requests:
            super().log_request()

    def format_request(self) -> str:
        if not self.server.logs_json:
            line: str = super().format_request()
            return line
        address = self.client_address
        return json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "client": address[0] if isinstance(address, tuple) else "",
                "method": self.command,
                "target": self.path,
                "version": self.request_version,
                "status": abs(self.code or 0),
                "bytes": self.response_length,
                "seconds": round(self.time_finish - self.time_start, 6),
            }
        )
