"""KeepAliveSession: `self.client` of a KeepAliveUser.

The calls are those of Locust's `FastHttpSession`. Beneath is one connection, and nothing that a user does not
use: no pool, cookie jar or header dictionary exists before something needs it.
"""

from __future__ import annotations

import json as jsonlib
import time
from base64 import b64encode
from contextlib import contextmanager
from email import message_from_bytes
from http.client import HTTPMessage
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import Request

from urllib3.filepost import encode_multipart_formdata

from loadtest.connection import Connection
from loadtest.errors import BadResponse, RequestFailure
from loadtest.response import KeepAliveResponse, RawResponse, failure_of, read_response

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from loadtest.process import Origin, Process
    from loadtest.user import KeepAliveUser

#: Statuses that send a client elsewhere, and those of them after which a GET follows (RFC 9110, 15.4).
REDIRECTS = frozenset((301, 302, 303, 307, 308))
BECOMES_GET = frozenset((301, 302, 303))


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
        "_process",
        "_user",
        "due",
        "request_name",
    )

    def __init__(self, user: KeepAliveUser) -> None:
        self._user = user
        self._process: Process = user.process
        self._origin: Origin = self._process.origin(str(user.host), user)
        self._connection: Connection | None = None
        self._opened = False
        self._others: dict[Origin, KeepAliveSession] | None = None
        self._cookies: CookieJar | None = None
        self.due: float | None = None
        self.request_name: str | None = None

    # The connection

    def connect(self) -> None:
        """Open the connection if it is not open. Raises a :class:`RequestFailure`."""
        if self._connection is None:
            counters = self._process.counters
            origin = self._origin
            self._connection = Connection.open(
                origin.family,
                origin.address,
                readiness=self._process.readiness,
                sources=origin.sources,
                timeout_s=self._user.connection_timeout,
                on_lost=self._lost,
                tls_context=origin.tls_context,
                server_hostname=origin.hostname,
            )
            counters.connection_opened(again=self._opened)
            self._opened = True

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        """Close the connection. The next request opens one again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._process.counters.connection_closed()
        for other in (self._others or {}).values():
            other.close()

    def _lost(self, _connection: Connection) -> None:
        self._connection = None
        self._process.counters.connection_closed(by_peer=True)

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
        auth: tuple[str, str] | None = None,
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
        """
        if stream:
            raise ValueError("KeepAliveUser reads every response whole; use Locust's FastHttpUser to stream")
        start = time.perf_counter()
        if self.due is not None:
            self._process.counters.sent_late(start - self.due)
            start, self.due = self.due, None
        wall_start = time.time()
        if params:
            url += ("&" if "?" in url else "?") + urlencode(params, doseq=True)
        counted_name = name or self.request_name or url
        session, path = (self, url) if url[:1] == "/" else self._session_of(url)
        raw: RawResponse | None = None
        failure: Exception | None = None
        try:
            raw = session._exchange(method, session._message(method, path, data, headers, auth, json, files))
            if allow_redirects and raw.status in REDIRECTS:
                raw = self._follow(raw, session._origin.url + path, method, data, headers, auth, json, files)
            failure = failure_of(raw)
        except RequestFailure as error:
            failure = error
        elapsed_s = time.perf_counter() - start
        meta = (method, counted_name, elapsed_s * 1000, wall_start, context)
        response = KeepAliveResponse(self, raw, failure, url, meta, catch_response)
        if not catch_response:
            self.report(response, failure)
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
        method, name, response_time_ms, wall_start, context = response.request_meta
        raw = response._raw
        self._process.request_done(
            self._user,
            method,
            name,
            response_time_ms,
            0 if raw is None else len(raw.body),
            0 if raw is None else raw.received_bytes,
            failure,
            response,
            wall_start,
            context,
        )

    def record_failure(self, method: str, failure: RequestFailure) -> None:
        """Count a failure that belongs to no request, such as a connection that could not be opened."""
        self._process.request_done(self._user, method, "", 0.0, 0, 0, failure, None, time.time(), None)

    # ------------------------------------------------------------------------------------------------------------

    def _session_of(self, url: str) -> tuple[KeepAliveSession, str]:
        """The session that talks to the URL's host, and the path there."""
        if "://" not in url:
            return self, f"/{url}"
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        origin = self._process.origin(f"{parts.scheme}://{parts.netloc}", self._user)
        if origin is self._origin:
            return self, path
        if self._others is None:
            self._others = {}
        session = self._others.get(origin)
        if session is None:
            session = self._others[origin] = KeepAliveSession(self._user)
            session._origin = origin
        return session, path

    def _follow(
        self,
        raw: RawResponse,
        url: str,
        method: str,
        data: Any,
        headers: Any,
        auth: Any,
        json: Any,
        files: Any,
    ) -> RawResponse:
        """The response at the end of a chain of redirections."""
        for _ in range(self._user.max_redirects):
            location = raw.field(b"location")
            if raw.status not in REDIRECTS or not location:
                return raw
            url = urljoin(url, location)
            if raw.status in BECOMES_GET and method != "HEAD":
                method, data, json, files = "GET", None, None, None
            session, path = self._session_of(url)
            raw = session._exchange(method, session._message(method, path, data, headers, auth, json, files))
        raise BadResponse("too many redirections")

    def _message(
        self,
        method: str,
        path: str,
        data: str | bytes | Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        auth: tuple[str, str] | None,
        json: Any,
        files: Mapping[str, Any] | None,
    ) -> bytes:
        """The request's bytes."""
        if data is None and json is None and headers is None and auth is None and files is None:
            if self._cookies is None and method == "GET":
                return b"GET %b%b\r\n" % (path.encode(), self._origin.tail)
        fields: dict[str, str] = {}
        if files:
            body, fields["Content-Type"] = encode_multipart_formdata({**dict(data or {}), **files})  # type: ignore[dict-item]
        elif data:
            if isinstance(data, str | bytes):
                body = data.encode() if isinstance(data, str) else data
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
            for name, value in headers.items():
                if "\r" in value or "\n" in value or "\r" in name or "\n" in name:
                    raise ValueError(f"line break in header {name!r}")
                fields = {known: kept for known, kept in fields.items() if known.lower() != name.lower()}
                fields[name] = value
        extra = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        tail = self._origin.tail_beside(fields)
        return b"%b %b%b%b\r\n%b" % (method.encode(), path.encode(), tail, extra.encode("latin-1"), body)

    def _exchange(self, method: str, message: bytes) -> RawResponse:
        """Send a request, read its response; the connection is opened before and dropped after where it must
        be."""
        if self._connection is None:
            self.connect()
        connection = self._connection
        assert connection is not None
        timeout_s = self._user.network_timeout
        self._process.counters.request_sent(len(message))
        try:
            connection.send(message, timeout_s)
            raw = read_response(connection, timeout_s, method == "HEAD")
        except BaseException:
            # Whatever it was, the next response on this connection could not be told from the rest of this
            # one.
            self._drop()
            raise
        if not raw.keep_alive or connection.hung_up:
            self._drop(by_peer=True)
        if b"\r\nset-cookie:" in raw.lower_head:
            self._take_cookies(raw)
        return raw

    def _drop(self, by_peer: bool = False) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._process.counters.connection_closed(by_peer)

    @property
    def cookiejar(self) -> CookieJar:
        """The user's cookies; made when the first one comes or when asked for."""
        if self._cookies is None:
            self._cookies = CookieJar()
        return self._cookies

    def _take_cookies(self, raw: RawResponse) -> None:
        request = Request(self._origin.url)
        self.cookiejar.extract_cookies(_HeadersOnly(raw), request)  # type: ignore[arg-type]


class _HeadersOnly:
    """What CookieJar.extract_cookies reads of a response."""

    def __init__(self, raw: RawResponse) -> None:
        self._raw = raw

    def info(self) -> HTTPMessage:
        return message_from_bytes(self._raw.head.partition(b"\r\n")[2], _class=HTTPMessage)  # type: ignore[return-value]


def basic_authorization(user: str, password: str) -> str:
    """The Authorization field's value (RFC 7617)."""
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
