"""One request: environ in, response out.

`KeepAliveWSGIHandler` is `pywsgi.WSGIHandler` with the steps that every request takes made short, in the same
methods, so that subclasses find their hooks where they were. A handler is made for each request, when its
head has been read; it does not outlive the response.
"""

from __future__ import annotations

import _socket
import os
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from io import BytesIO
from time import monotonic
from typing import Any, ClassVar, Final

from gevent import pywsgi

from parked.server import client_certificate, disconnected, unix
from parked.server.access_format import ESCAPES
from parked.server.body import NO_BODY, RequestBody, UpgradeInput
from parked.server.connection import Connection
from parked.server.defer import KEY, Deferring
from parked.server.dispatch import end_with_request
from parked.server.fields import error_response, error_text
from parked.server.request import RequestHead
from parked.server.stream import ClientTimeoutError, ConnectionReader, SharingSocket, send_all
from parked.server.tls import TLSSocket

#: Bytes of a refused request line that the access log shows.
MAX_LOGGED_BYTES: Final = 200


class _Lazy:
    """An attribute made at first use, which then lives in the instance and may be set or popped there.

    The instance's `_has_made` says that there is one.
    PERF: looking into `__dict__` makes that, 0.3 us per request.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = self._make(instance)
        setattr(instance, self._name, value)
        instance._has_made = True
        return value


class KeepAliveWSGIHandler(Deferring):
    """Serve one request of a parked connection.

    Made with a socket instead of a `Connection`, it works as its base class does, a greenlet per connection;
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

    # PERF: instances of a class share a table of 30 names at most, and one with more attributes has a
    # dictionary of its own, for 5 % of the time of a request. With pywsgi's there were 31.
    __slots__ = ("_content", "_has_made", "_is_over", "_is_taken", "connection", "head", "head_bytes")

    time_finish = 0.0
    #: The time of a request is taken, be it logged or not: whose subclass this is may look at it.
    _is_timed = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._is_timed = True

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        if type(sock) is Connection:
            self.connection = sock
            self.client_address = address
            self.server = server
            # PERF: read before they are set, and found sooner here than in the class.
            self.headers_sent = self.connection_upgraded = False
            self._is_over = self._is_taken = self._has_made = False
            self.response_length = 0
            self.result = self.head = self._content = None
        else:
            self.connection = self.head = self._content = None
            self._is_over = self._is_taken = self._has_made = False
            super().__init__(sock, address, server, rfile)

    # -- made at first use, since most requests need none of them

    @_Lazy
    def socket(self) -> Any:
        """A cooperative socket for those who take over the connection; closed when the request ends."""
        assert self.connection is not None
        sock = self.connection.sock
        if isinstance(sock, _socket.socket):
            # A descriptor of its own, so that it may be closed without the connection's knowledge.
            return SharingSocket(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno()))
        assert isinstance(sock, TLSSocket)
        return sock.cooperative()

    def _give_back(self) -> None:
        """Leave the connection as the next request has to find it."""
        if "rfile" in self.__dict__:
            self.rfile.settle()
        if "socket" in self.__dict__:
            self._release_socket()

    def _release_socket(self) -> None:
        assert self.connection is not None
        taken = self.__dict__.pop("socket")
        if isinstance(self.connection.sock, TLSSocket):
            self.connection.sock.uncooperative()
        elif taken is not None:  # libraries for WebSockets set it to None, as pywsgi may be told
            taken.close()

    @_Lazy
    def rfile(self) -> ConnectionReader:
        assert self.connection is not None
        return ConnectionReader(self.connection, self.server.turns, self.server.body_timeout)

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
        server = self.server
        connection.buffer = connection.buffer[head.size :]
        self.head = head
        self.command = head.method
        self.request_version = head.version
        self.close_connection = server.draining or not head.keeps_connection
        self.environ = self.get_environ()
        self.application = server.application
        try:
            self.handle_one_response()
        finally:
            self._is_over = True  # whoever still has write() must not write into the next response
            self.environ = None  # it holds `defer`, and that holds this handler
            if self._has_made:
                self._give_back()
        if server.statistics is not None and self.deferred is None:
            server.statistics.note(self.code, self.response_length, self.time_finish - self.time_start)
        if head.fields.upgrade and self.wsgi_input is NO_BODY and self.rfile.used:
            return False  # read for a protocol that we do not speak, so nobody knows what comes next
        return not (self.close_connection or self.connection_upgraded or self.wsgi_input.abandoned)

    def handle_one_response(self) -> None:
        """As in the base class, less what is done already because a handler is new for each request."""
        if self.connection is None:  # then one handler serves all requests of a connection
            self._is_over = self._is_taken = False
            super().handle_one_response()
            self._is_over = True
            return
        measures = self.server.logs_requests or self.server.statistics is not None or self._is_timed
        began = 0.0
        if measures:
            self.time_start = time.time()
            began = monotonic()
        try:
            self.run_application()
            if self.wsgi_input is not NO_BODY:
                self._discard_content()
        except pywsgi._InvalidClientInput as error:
            self._handle_client_error(error)
            self.close_connection = True
            self._send_error_response_if_possible(400)
        except OSError as error:
            if self._comes_of_the_client(error):
                self.close_connection = True  # nobody is left to answer, and nobody to tell
            else:
                end_with_request()
                self.handle_error(*sys.exc_info())
        except BaseException:  # GreenletExit and the like are an answer's end too; see _log_error
            end_with_request()
            self.handle_error(*sys.exc_info())
        if measures:
            self.time_finish = self.time_start + monotonic() - began  # whatever the wall clock did meanwhile
        self.log_request()

    def _comes_of_the_client(self, error: OSError) -> bool:
        """Whether this is what our own sending or receiving raised; an application may lose peers too."""
        if error is self._send_error:
            return True
        if "rfile" in self.__dict__ and error is self.rfile.failure:
            return True
        return self.connection_upgraded and error.errno in self.ignored_socket_errors

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
        fields, server = head.fields, self.server
        environ = server.begin_environ(fields)
        environ["REQUEST_METHOD"] = head.method
        environ["PATH_INFO"] = head.path
        environ["QUERY_STRING"] = head.query
        environ["SERVER_PROTOCOL"] = head.version
        environ[KEY] = self.defer
        environ[disconnected.KEY] = self.client_disconnected
        address = self.client_address
        if type(address) is tuple:
            environ["REMOTE_ADDR"] = address[0]
            environ["REMOTE_PORT"] = str(address[1])
        else:
            environ.update(unix.ends(environ.get("HTTP_HOST", ""), environ["wsgi.url_scheme"]))
        if server.forwarded is not None:
            self.client_address = server.forwarded.apply(environ, address)
        if server.names_clients:
            environ.update(client_certificate.variables(self._certificate()))
        if fields.content_length or fields.chunked:
            self.wsgi_input = self._content = RequestBody(
                self.rfile,
                fields.content_length,
                self._send_continue if fields.expects_continue and head.version == "HTTP/1.1" else None,
                fields.chunked,
                server.limits.body_bytes,
            )
            environ["wsgi.input"] = self.wsgi_input
        else:
            self.wsgi_input = NO_BODY
            if fields.upgrade and self._connection_upgrade_requested() and fields.content_length is None:
                # What follows is in the other protocol and the application's to read.
                environ["wsgi.input"] = UpgradeInput(self._upgraded_reader, self.take_socket)
                environ["wsgi.input_terminated"] = False
        return environ

    def client_disconnected(self) -> bool:
        """`environ["parked.client_disconnected"]()`: whether nobody is left to read the response."""
        assert self.connection is not None
        return disconnected.has_left(self.connection.sock.fileno())

    def _certificate(self) -> dict[str, Any] | None:
        assert self.connection is not None
        sock = self.connection.sock
        return sock.peer_certificate() if isinstance(sock, TLSSocket) else None

    def _upgraded_reader(self) -> ConnectionReader | None:
        return self.rfile if self.connection_upgraded else None

    def _connection_upgrade_requested(self) -> bool:
        if self.head is not None:
            return self.head.fields.upgrade and self.head.version == "HTTP/1.1"  # RFC 9110, 7.8
        requested: bool = super()._connection_upgrade_requested()
        return requested

    def _send_continue(self, data: bytes) -> None:
        if not self.headers_sent:  # RFC 9110, 10.1.1: no interim response behind the final one
            assert self.connection is not None
            send_all(self.connection, data, self.server.write_timeout)

    # -- when things go wrong

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        if isinstance(v, ClientTimeoutError):
            self.server.timed_out_bodies += 1
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            super().handle_error(t, v, tb)

    def _log_error(self, t: Any, v: Any, tb: Any) -> None:
        try:
            super()._log_error(t, v, tb)
        except Exception:  # where tracebacks go, a full disk say
            self.server.error_log.note_lost()

    def _handle_client_error(self, ex: Any) -> Any:
        """As in the base class, without a line for each of those who send such content by the thousand."""
        if self.connection is None:
            return super()._handle_client_error(ex)
        return self.server.tell_of_client("invalid content", self.client_address, str(ex))

    def _send_error_response_if_possible(self, error_code: int) -> None:
        if self.headers_sent or self._is_taken or self._is_over:
            self._cut()
            return
        if self.wsgi_input is not None and getattr(self.wsgi_input, "too_long", False):
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            super()._send_error_response_if_possible(error_code)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer for the client's fault, if there is no answer yet, and close."""
        if self.headers_sent or self._is_taken:
            self._cut()
            return
        self.close_connection = True
        self.headers_sent = True
        self.code = status.value
        self._orig_status = f"{status.value} {status.phrase}"
        response = error_response(status)
        self.head_bytes = len(response) - len(error_text(status))
        try:
            self._sendall(response)
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

    def log_refusal(self, status: HTTPStatus, size: int) -> None:
        """Write the access log's line for what was no request, or came to none.

        :param size: bytes of the answer.
        """
        assert self.connection is not None
        line = self.connection.buffer.lstrip(b"\r\n").partition(b"\r\n")[0][:MAX_LOGGED_BYTES]
        self.requestline = line.decode("latin-1")
        self.command, self.path, self.request_version = (*self.requestline.split(" ", 2), "", "", "")[:3]
        self.code = status.value
        self._orig_status = f"{status.value} {status.phrase}"
        self.response_length = size
        self.head_bytes = size - len(error_text(status))
        self.time_start = self.time_finish = time.time()
        self.log_request()

    def log_request(self) -> None:
        if self.server.logs_requests:
            try:
                super().log_request()
            except Exception:  # a log or a format of somebody's own; the response is out already
                self.server.error_log.note_lost()

    def format_request(self) -> str:
        if self.server.access_format is not None:
            return self.server.access_format.line(self)
        address = self.client_address
        as_received = self.requestline
        self.requestline = (as_received or "").translate(ESCAPES)
        if not isinstance(address, tuple):  # of a unix socket: what the client has bound its own to
            self.client_address = str(address or "").translate(ESCAPES)
        line: str = super().format_request()
        self.requestline, self.client_address = as_received, address
        return line
