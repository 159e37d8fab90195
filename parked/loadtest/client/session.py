"""KeepAliveSession: `self.client` of a KeepAliveUser.

The calls are those of Locust's `FastHttpSession`. Beneath is one connection, and nothing that a user does not
use: no pool, cookie jar or header dictionary exists before something needs it.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

from gevent import Timeout
from requests.structures import CaseInsensitiveDict

from parked.loadtest.client import cookies
from parked.loadtest.client.errors import (
    RequestFailure,
    TimedOut,
    TooLarge,
)
from parked.loadtest.client.line import Line
from parked.loadtest.client.message import NONE, Body, encoded, merged, message, query
from parked.loadtest.client.origin import Place, basic_authorization, credentials_of
from parked.loadtest.client.process import Owner
from parked.loadtest.client.redirects import REDIRECTS, SAFE, Trail
from parked.loadtest.client.response import KeepAliveResponse, StatusFailure, failure_of
from parked.loadtest.client.verbs import Verbs
from parked.loadtest.client.wire import RawResponse

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from parked.loadtest.client.counters import Counters

    Fields = Mapping[str, Any] | Iterable[tuple[str, Any]]
    Auth = tuple[str | bytes, str | bytes]

is_absolute = re.compile(r"https?://", re.IGNORECASE).match
#: Finds what must not stand in a request line as it is (RFC 3986, 2), and the fragment, which is not sent.
find_unsafe = re.compile(r"[^!$-~]").search
#: Connections of a user to other servers: redirections may lead to a new one each time.
MOST_OTHERS = 32


class KeepAliveSession(Verbs, Line):
    """Requests over one connection.

    A test may give it attributes of its own; they cost memory in each user.

    :ivar due: when the next request should leave, on the `time.perf_counter` scale: the end of the think
        time. Its response time counts from there, however late it really leaves. None between the requests of
        one task.
    :ivar request_name: name under which all requests are counted (see :meth:`rename_request`).
    """

    __slots__ = ("due",)

    # What few users have: in `__dict__` where they do, which is made then.
    request_name: str | None = None
    #: What the host's own path puts before each path, as in FastHttpSession: http://server/api.
    _prefix = ""
    _others: dict[Place, OtherSession] | None = None
    _cookies: CookieJar | None = None
    _headers: CaseInsensitiveDict[Any] | None = None

    def __init__(self, user: Owner) -> None:
        super().__init__(user)
        self.due: float | None = None
        self._talk_to(str(user.host))

    def _talk_to(self, url: str) -> None:
        base = urlsplit(url)
        if (prefix := base.path.rstrip("/")) != self._prefix:
            self._prefix = prefix
        self._origin = self._process.origin(f"{base.scheme}://{base.netloc}", self._user)

    @property
    def user(self) -> Owner:
        return self._user

    @property
    def base_url(self) -> str:
        """What paths are put behind. Setting it moves the user to another server."""
        return self._origin.url + self._prefix

    @base_url.setter
    def base_url(self, url: str) -> None:
        self.close()
        self._talk_to(url)

    @property
    def headers(self) -> CaseInsensitiveDict[Any]:
        """Fields sent with each request from now on, beside the user's `default_headers`."""
        if self._headers is None:
            self._headers = CaseInsensitiveDict()
        return self._headers

    @headers.setter
    def headers(self, fields: Fields) -> None:
        self._headers = CaseInsensitiveDict(fields)

    @property
    def auth_header(self) -> str | None:
        """The Authorization field that requests have unless they are given one."""
        own = self._headers.get("Authorization") if self._headers is not None else None
        return own or self._origin.authorization

    @auth_header.setter
    def auth_header(self, value: str | None) -> None:
        self.headers["Authorization"] = value

    @property
    def cookiejar(self) -> CookieJar:
        """The user's cookies; made when the first one comes or when asked for."""
        if self._cookies is None:
            self._cookies = CookieJar()
        return self._cookies

    @property
    def client(self) -> KeepAliveSession:
        """What FastHttpSession keeps its connections in, and a pool in that: the session itself."""
        return self

    clientpool = client

    def close(self) -> None:
        """Close the connection, and those to other servers. The next request opens one again."""
        super().close()
        for other in (self._others or {}).values():
            other.close()

    # Requests

    def request(
        self,
        method: str,
        url: str,
        name: str | None = None,
        data: Any = None,
        catch_response: bool = False,
        stream: bool = False,
        headers: Fields | None = None,
        auth: Auth | None = None,
        json: Any = None,
        allow_redirects: bool | None = None,
        context: Mapping[str, Any] | None = None,
        params: Any = None,
        files: Any = None,
        timeout: float | None = None,
        max_redirects: int | None = None,
    ) -> KeepAliveResponse:
        """Send a request and read its response.

        :param url: path on the user's host, or a whole URL; another host gets a connection of its own.
        :param name: name in the statistics, in place of the URL.
        :param catch_response: the result is used in a `with` block that decides whether the request failed.
        :param data: body: text, bytes, a file, an iterable; a mapping or list of pairs becomes a form.
        :param stream: read the head only; the response's `iter_lines`, `iter_content` or `content` read the
            rest. The response time ends with the head. A next request gives up what is not read by then.
        :param headers: mapping or pairs; None as a value leaves out the user's field of that name.
        :param json: body as JSON, if there is no `data`.
        :param allow_redirects: follow redirections, each counted within this request's response time; the
            class' `allow_redirects`, which is True, unless given.
        :param context: given to listeners of the request event, beside what `User.context()` returns.
        :param params: the query: a mapping, pairs or text.
        :param timeout: seconds that all of it may take, redirections too, instead of the class' timeouts.
        :param max_redirects: in place of the class'.
        :raises RuntimeError: if another greenlet is in the middle of a request of this user.
        """
        user, process = self._user, self._process
        start = began = time.perf_counter()
        if self.due is not None:
            process.counters.sent_late(start - self.due)
            start, self.due = self.due, None
        wall_start = time.time()
        session, path, whole_url = self, self._prefix + url, None
        raw: RawResponse | None = None
        failure: Exception | None = None
        interrupt: Timeout | None = None
        sent, history = b"", None
        deadline = began + (user.total_timeout if timeout is None else timeout)
        under_way = process.open_requests
        under_way[self] = start
        try:
            if url[:1] != "/":
                session, path, auth = self._session_of(url, auth)
                whole_url = url if is_absolute(url) else f"{self.base_url}/{url}"
            if params:
                path += ("&" if "?" in path else "?") + query(params)
            if find_unsafe(path):
                path = quote(path.partition("#")[0], SAFE)
            body = NONE if data is json is files is None else encoded(data, json, files)
            sent = session._message(method, path, body, headers, auth)
            raw = session._exchange(method, path, sent, deadline, timeout, stream)
            if raw.status >= 300:
                if raw.status in REDIRECTS and (
                    user.allow_redirects if allow_redirects is None else allow_redirects
                ):
                    trail = Trail(self, session, path, method, body, headers, auth)
                    most = user.max_redirects if max_redirects is None else max_redirects
                    try:
                        raw = trail.follow(raw, most, deadline, timeout, stream)
                    finally:
                        session = cast(KeepAliveSession, trail.session)
                        path, sent, history = trail.path, trail.message, trail.passed
                failure = failure_of(raw)
        except RequestFailure as error:
            failure = error
        except MemoryError:
            failure = TooLarge("no memory for the response")
        except Timeout as timeout_of_task:
            # The task's own, around this call: the request has failed, and the task goes on where it says.
            failure, interrupt = TimedOut("the task's own gevent.Timeout"), timeout_of_task
        finally:
            under_way.pop(self, None)
        now = time.perf_counter()
        meta = {
            "request_type": method,
            "name": name or self.request_name or url,
            "response_time": (now - start) * 1000,
            "response_length": 0 if raw is None else raw.announced_bytes if stream else len(raw.body),
            "start_time": wall_start,
            "context": context,
        }
        response = KeepAliveResponse(session, raw, failure, path, meta, catch_response, sent, now - began)
        if whole_url is not None:
            response._asked = whole_url
        if stream:
            response._stream = session._stream
        if history:
            response.history = [
                KeepAliveResponse(one, passed, None, at, {}, False, asked_for)
                for one, passed, at, asked_for in history
            ]
        if failure is not None and isinstance(failure, StatusFailure):
            failure.url = response.url
        if not catch_response or interrupt is not None:
            self.report(response, failure)
            if interrupt is not None:
                raise interrupt
        return response

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
        raw = response._raw
        received = 0 if raw is None else raw.received_bytes
        self._process.request_done(self._user, response._meta, received, failure, response)

    def absolute(self, path: str) -> str:
        """The URL of a path on this session's server."""
        return path if is_absolute(path) else self._origin.url + path

    def record_failure(self, method: str, failure: RequestFailure) -> None:
        """Count a failure that belongs to no request, such as a connection that could not be opened."""
        meta = {
            "request_type": method,
            "name": "",
            "response_time": 0.0,
            "response_length": 0,
            "start_time": time.time(),
            "context": None,
            "url": self.base_url,
        }
        self._process.request_done(self._user, meta, 0, failure)

    # The parts of a request

    def _session_of(self, url: str, auth: Auth | None) -> tuple[KeepAliveSession, str, Auth | None]:
        """The session that talks to the URL's host, the path there, and credentials, which a URL may have.

        Raises ValueError for what is no http:// or https:// URL.
        """
        if not is_absolute(url):
            return self, f"{self._prefix}/{url}", auth
        parts = urlsplit(url)
        place = Place.of(parts)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return self._session_at(place, parts.netloc), path, auth or credentials_of(parts)

    def _session_at(self, place: Place, authority: str) -> KeepAliveSession:
        if place == self._origin.place:
            return self
        if self._others is None:
            self._others = {}
        session = self._others.get(place)
        if session is None:
            if len(self._others) >= MOST_OTHERS:
                self._others.pop(next(iter(self._others))).close()
            url = f"{place.scheme}://{authority.rpartition('@')[2]}"
            session = self._others[place] = OtherSession(self, url)
        return session

    def _message(
        self, method: str, path: str, body: Body, headers: Any, auth: Auth | None, bare: bool = False
    ) -> bytes:
        origin, own, jar = self._origin, self._headers, self._cookies
        is_plain = body is NONE and headers is None and auth is None and own is None and jar is None
        if is_plain and method == "GET" and not bare:
            return b"GET %b%b\r\n" % (path.encode(), origin.tail)
        given: dict[str, Any] = {} if jar is None else cookies.fields(jar, origin.url + path)
        if own is not None and not bare:
            given = merged(given, own)
        if auth:
            given = merged(given, {"Authorization": basic_authorization(*auth)})
        if headers:
            given = merged(given, dict(headers)) if given else dict(headers)
        return message(origin, method, path, body, given, bare)

    def _take_cookies(self, raw: RawResponse, path: str) -> None:
        cookies.take(self.cookiejar, self._origin.url + path, raw.head)


class OtherSession(KeepAliveSession):
    """A user's session with a server that is not its host: the cookies and fields are the user's.

    Its connection is not one of those that the run is to hold.
    """

    def __init__(self, parent: KeepAliveSession, url: str) -> None:
        super().__init__(parent._user)
        self._parent = parent
        self._talk_to(url)

    @property
    def _cookies(self) -> CookieJar | None:  # type: ignore[override]
        return self._parent._cookies

    @property
    def _headers(self) -> CaseInsensitiveDict[Any] | None:  # type: ignore[override]
        return self._parent._headers

    @property
    def cookiejar(self) -> CookieJar:
        return self._parent.cookiejar

    @property
    def _tally(self) -> Counters:
        return self._process.elsewhere
