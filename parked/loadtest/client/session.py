"""KeepAliveSession: `self.client` of a KeepAliveUser.

The calls are those of Locust's `FastHttpSession`. Beneath is one connection, and nothing that a user does not
use: no pool, cookie jar or header dictionary exists before something needs it.
"""

from __future__ import annotations

import json as jsonlib
import re
import time
from contextlib import contextmanager
from email import message_from_bytes
from http.client import HTTPMessage
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import quote, urlencode, urljoin, urlsplit
from urllib.request import Request

import requests
from gevent import Timeout

from parked.loadtest.client.connection import Connection
from parked.loadtest.client.errors import BadResponse, ClosedByPeer, ConnectFailed, RequestFailure, TimedOut
from parked.loadtest.client.origin import basic_authorization
from parked.loadtest.client.process import Member
from parked.loadtest.client.response import KeepAliveResponse
from parked.loadtest.client.wire import RawResponse, failure_of, read_response

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from parked.loadtest.client.counters import Counters
    from parked.loadtest.client.origin import Origin
    from parked.loadtest.client.process import Process

#: Statuses that send a client elsewhere, and those of them after which a GET follows (RFC 9110, 15.4).
REDIRECTS = frozenset((301, 302, 303, 307, 308))
BECOMES_GET = frozenset((301, 302, 303))

is_absolute = re.compile(r"https?://", re.IGNORECASE).match
#: Finds what must not stand in a request line as it is (RFC 3986, 2), and the fragment, which is not sent.
find_unsafe = re.compile(r"[^!$-~]").search
#: What is left alone when the rest is percent-encoded: delimiters, and escapes that are there already.
SAFE = "%/?:@!$&'()*+,;=[]~"
#: Header fields that are for one server only, and so don't follow a redirection to another.
CONFIDENTIAL = frozenset(("authorization", "cookie", "proxy-authorization"))


class Owner(Member, Protocol):
    """What a session reads of its user."""

    host: str | None
    client: KeepAliveSession
    process: Process
    connection_timeout: float
    network_timeout: float
    max_redirects: int


class KeepAliveSession:
    """Requests over one connection.

    :ivar due: when the next request should leave, on the `time.perf_counter` scale: the end of the think
    time. Its
        response time counts from there, however late it really leaves. None between the requests of one task.
    :ivar request_name: name under which all requests are counted (see :meth:`rename_request`).
    """

    __slots__ = (
        "_connection",
        "_cookies",
        "_opened",
        "_origin",
        "_others",
        "_prefix",
        "_process",
        "_user",
        "due",
        "request_name",
    )

    def __init__(self, user: Owner) -> None:
        self._user = user
        self._process: Process = user.process
        base = urlsplit(str(user.host))
        #: What the host's own path puts before each path, as in FastHttpSession: http://server/api.
        self._prefix = base.path.rstrip("/")
        self._origin: Origin = self._process.origin(f"{base.scheme}://{base.netloc}", user)
        self._connection: Connection | None = None
        self._opened = False
        self._others: dict[Origin, KeepAliveSession] | None = None
        self._cookies: CookieJar | None = None
        self.due: float | None = None
        self.request_name: str | None = None

    # The connection

    @property
    def _tally(self) -> Counters:
        """Where its connections count: only those to the user's own host are what a run holds."""
        process = self._process
        return process.counters if self._user.client is self else process.elsewhere

    def connect(self) -> None:
        """Open the connection if it is not open. Raises a :class:`RequestFailure`."""
        if self._connection is None:
            self._connect()

    def _connect(self) -> Connection:
        origin = self._origin
        connection = Connection.open(
            origin.family,
            origin.address,
            readiness=self._process.readiness,
            sources=origin.sources,
            timeout_s=self._user.connection_timeout,
            on_lost=self._lost,
            tls_context=origin.tls_context,
            server_hostname=origin.hostname,
        )
        if self._connection is not None:
            connection.close()
            raise in_use()
        self._connection = connection
        self._tally.connection_opened(again=self._opened)
        self._opened = True
        return connection

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        """Close the connection. The next request opens one again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._tally.connection_closed()
        for other in (self._others or {}).values():
            other.close()

    def _lost(self, _connection: Connection) -> None:
        self._connection = None
        self._tally.connection_closed(by_peer=True)

    # Requests

    def request(
        self,
        method: str,
        url: str,
        name: str | None = None,
        data: str | bytes | Mapping[str, Any] | None = None,
        catch_response: bool = False,
        stream: bool = False,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str | bytes, str | bytes] | None = None,
        json: Any = None,
        allow_redirects: bool = False,
        context: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> KeepAliveResponse:
        """Send a request and read its whole response.

        :param url: path on the user's host, or a whole URL; another host gets a connection of its own.
        :param name: name in the statistics, in place of the URL.
        :param catch_response: the result is used in a `with` block that decides whether the request has
        failed.
        :param data: body: bytes, text, or a mapping that becomes a form.
        :param json: body as JSON, if there is no `data`.
        :param allow_redirects: follow redirections, each counted within this request's response time. Off
        unless
            asked for: a load test wants to see them.
        :param context: given to listeners of the request event, beside what `User.context()` returns.
        :raises ValueError: for `stream=True`: every response is read whole.
        :raises RuntimeError: if another greenlet is in the middle of a request of this user.
        """
        if stream:
            raise ValueError("KeepAliveUser reads every response whole; use Locust's FastHttpUser to stream")
        start = time.perf_counter()
        if self.due is not None:
            self._process.counters.sent_late(start - self.due)
            start, self.due = self.due, None
        wall_start = time.time()
        session, path = self, self._prefix + url
        raw: RawResponse | None = None
        failure: Exception | None = None
        interrupt: Timeout | None = None
        try:
            if url[:1] != "/":
                session, path = self._session_of(url)
            if params:
                path += ("&" if "?" in path else "?") + urlencode(params, doseq=True)
            if find_unsafe(path):
                path = quote(path.partition("#")[0], SAFE)
            raw = session._exchange(
                method, path, session._message(method, path, data, headers, auth, json, files)
            )
            if allow_redirects and raw.status in REDIRECTS:
                raw = self._follow(raw, session, path, method, data, headers, auth, json, files)
            failure = failure_of(raw)
        except RequestFailure as error:
            failure = error
        except Timeout as timeout:
            # The task's own, around this call: the request has failed, and the task goes on where it says.
            failure, interrupt = TimedOut("the task's own gevent.Timeout"), timeout
        meta = {
            "request_type": method,
            "name": name or self.request_name or url,
            "response_time": (time.perf_counter() - start) * 1000,
            "response_length": 0 if raw is None else len(raw.body),
            "start_time": wall_start,
            "context": context,
        }
        response = KeepAliveResponse(session, raw, failure, path, meta, catch_response)
        if not catch_response or interrupt is not None:
            session.report(response, failure)
            if interrupt is not None:
                raise interrupt
        return response

    def get(self, url: str, **kwargs: Any) -> KeepAliveResponse:
        return self.request("GET", url, **kwargs)

    def head(self, url: str, **kwargs: Any) -> KeepAliveResponse:
        return self.request("HEAD", url, **kwargs)

    def options(self, url: str, **kwargs: Any) -> KeepAliveResponse:
        return self.request("OPTIONS", url, **kwargs)

    def delete(self, url: str, **kwargs: Any) -> KeepAliveResponse:
        return self.request("DELETE", url, **kwargs)

    def post(self, url: str, data: Any = None, json: Any = None, **kwargs: Any) -> KeepAliveResponse:
        return self.request("POST", url, data=data, json=json, **kwargs)

    def put(self, url: str, data: Any = None, **kwargs: Any) -> KeepAliveResponse:
        return self.request("PUT", url, data=data, **kwargs)

    def patch(self, url: str, data: Any = None, **kwargs: Any) -> KeepAliveResponse:
        return self.request("PATCH", url, data=data, **kwargs)

    @contextmanager
    def rename_request(self, name: str) -> Generator[None]:
        """Count the requests of a `with` block under one name."""
        self.request_name = name
        try:
            yield
        finally:
            self.request_name = None

    # What a response reports to

    def report(self, response: KeepAliveResponse, failure: Exception | None) -> None:
        """Count a finished request."""
        meta, raw = response.request_meta, response._raw
        self._process.request_done(
            self._user,
            meta["request_type"],
            meta["name"],
            meta["response_time"],
            meta["response_length"],
            0 if raw is None else raw.received_bytes,
            failure,
            response,
            meta["start_time"],
            meta["context"],
        )

    def absolute(self, path: str) -> str:
        """The URL of a path on this session's server."""
        return path if is_absolute(path) else self._origin.url + path

    def record_failure(self, method: str, failure: RequestFailure) -> None:
        """Count a failure that belongs to no request, such as a connection that could not be opened."""
        self._process.request_done(self._user, method, "", 0.0, 0, 0, failure, None, time.time(), None)

    # The parts of a request

    def _session_of(self, url: str) -> tuple[KeepAliveSession, str]:
        """The session that talks to the URL's host, and the path there."""
        if not is_absolute(url):
            return self, f"{self._prefix}/{url}"
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            origin = self._process.origin(f"{parts.scheme}://{parts.netloc}", self._user)
        except OSError as error:
            raise ConnectFailed(f"{parts.hostname}: {error.strerror or error}") from None
        if origin is self._origin:
            return self, path
        if self._others is None:
            self._others = {}
        session = self._others.get(origin)
        if session is None:
            session = self._others[origin] = KeepAliveSession(self._user)
            session._origin = origin
            session._cookies = self.cookiejar  # one jar a user; its rules say which server gets which
        return session, path

    def _follow(
        self,
        raw: RawResponse,
        session: KeepAliveSession,
        path: str,
        method: str,
        data: Any,
        headers: Mapping[str, str] | None,
        auth: Any,
        json: Any,
        files: Any,
    ) -> RawResponse:
        """The response at the end of a chain of redirections."""
        for _ in range(self._user.max_redirects):
            location = raw.field(b"location")
            if not location:
                return raw
            previous = session
            try:
                session, path = self._session_of(urljoin(session.absolute(path), location))
            except ValueError as error:
                raise BadResponse(f"redirection to no http:// or https:// URL: {error}") from None
            path = quote(path, SAFE)
            if raw.status in BECOMES_GET and method != "HEAD":
                method, data, json, files = "GET", None, None, None
            if session is not previous:
                auth = None
                headers = {
                    name: value for name, value in (headers or {}).items() if name.lower() not in CONFIDENTIAL
                }
            raw = session._exchange(
                method, path, session._message(method, path, data, headers, auth, json, files)
            )
            if raw.status not in REDIRECTS:
                return raw
        raise BadResponse("too many redirections")

    def _message(
        self,
        method: str,
        path: str,
        data: str | bytes | Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        auth: tuple[str | bytes, str | bytes] | None,
        json: Any,
        files: Mapping[str, Any] | None,
    ) -> bytes:
        """The request's bytes."""
        plain = data is None and json is None and headers is None and auth is None and files is None
        if plain and self._cookies is None and method == "GET":
            return b"GET %b%b\r\n" % (path.encode(), self._origin.tail)
        fields: dict[str, str] = {}
        if files:
            form = requests.Request("POST", self._origin.url, data=data, files=files).prepare()
            body = cast(bytes, form.body)
            fields["Content-Type"] = str(form.headers["Content-Type"])
        elif data:
            if hasattr(data, "read"):
                data = data.read()
            if isinstance(data, str | bytes | bytearray | memoryview):
                body = data.encode() if isinstance(data, str) else bytes(data)
            else:
                body, fields["Content-Type"] = (
                    urlencode(data, doseq=True).encode(),
                    "application/x-www-form-urlencoded",
                )
        elif json is not None:
            body = jsonlib.dumps(json).encode()
            fields["Content-Type"] = fields["Accept"] = "application/json"
        else:
            body = b""
        if body or method in ("POST", "PUT", "PATCH"):
            fields["Content-Length"] = str(len(body))
        if auth:
            fields["Authorization"] = basic_authorization(*auth)
        if self._cookies is not None:
            request = Request(self._origin.url + path)
            self._cookies.add_cookie_header(request)
            fields.update(request.unredirected_hdrs)
        if headers:
            for name, given in headers.items():
                value = given if isinstance(given, str) else str(given)
                if "\r" in value or "\n" in value or "\r" in name or "\n" in name:
                    raise ValueError(f"line break in header {name!r}")
                fields = {known: kept for known, kept in fields.items() if known.lower() != name.lower()}
                fields[name] = value
        extra = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        tail = self._origin.tail_beside(fields)
        return b"%b %b%b%b\r\n%b" % (method.encode(), path.encode(), tail, extra.encode("latin-1"), body)

    def _exchange(self, method: str, path: str, message: bytes) -> RawResponse:
        """Send a request, read its response; open the connection before and drop it after where need be."""
        connection = self._connection
        if connection is None:
            connection = self._connect()
        elif connection.waiter is not None:
            raise in_use()
        elif connection.ready or connection.tls is not None:
            connection = self._checked(connection)
        timeout_s = self._user.network_timeout
        self._tally.request_sent(len(message))
        try:
            connection.send(message, timeout_s)
            raw = read_response(connection, timeout_s, method == "HEAD")
        except BaseException as error:
            # Whatever it was, the next response here could not be told from the rest of this one.
            self._drop(by_peer=isinstance(error, ClosedByPeer))
            raise
        if not raw.keep_alive or connection.hung_up:
            self._drop(by_peer=True)
        if b"\r\ncontent-encoding:" in raw.lower_head:
            raw.decode()
        if b"\r\nset-cookie:" in raw.lower_head:
            self._take_cookies(raw, path)
        return raw

    def _checked(self, connection: Connection) -> Connection:
        """A connection on which nothing came since the last response: this one, or a new one if it ended."""
        try:
            connection.check_quiet()
        except ClosedByPeer:
            self._drop(by_peer=True)
            return self._connect()
        except BaseException:
            self._drop()
            raise
        return connection

    def _drop(self, by_peer: bool = False) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._tally.connection_closed(by_peer)

    @property
    def cookiejar(self) -> CookieJar:
        """The user's cookies; made when the first one comes or when asked for."""
        if self._cookies is None:
            self._cookies = CookieJar()
        return self._cookies

    def _take_cookies(self, raw: RawResponse, path: str) -> None:
        # Without a Path of its own a cookie is for the request's folder (RFC 6265, 5.1.4).
        request = Request(self._origin.url + path)
        self.cookiejar.extract_cookies(_HeadersOnly(raw), request)  # type: ignore[arg-type]


def in_use() -> RuntimeError:
    return RuntimeError(
        "another greenlet is in the middle of a request of this user: a KeepAliveUser is one connection, "
        "and HTTP/1.1 answers one request at a time"
    )


class _HeadersOnly:
    """What CookieJar.extract_cookies reads of a response."""

    def __init__(self, raw: RawResponse) -> None:
        self._raw = raw

    def info(self) -> HTTPMessage:
        return message_from_bytes(self._raw.head.partition(b"\r\n")[2], _class=HTTPMessage)
