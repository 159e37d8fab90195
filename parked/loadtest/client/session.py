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
from urllib.parse import urlsplit

from gevent import Timeout
from locust.contrib.fasthttp import LocustUserAgent
from requests.structures import CaseInsensitiveDict

from parked.loadtest.client import cookies
from parked.loadtest.client.connection import InUse
from parked.loadtest.client.errors import (
    RequestFailure,
    TimedOut,
    TooLarge,
)
from parked.loadtest.client.line import Line
from parked.loadtest.client.message import (
    NONE,
    Body,
    encoded,
    find_unsafe,
    fit,
    merged,
    message,
    query,
    taken_in,
    with_query,
)
from parked.loadtest.client.origin import (
    BadField,
    Nowhere,
    Origin,
    Place,
    basic_authorization,
    credentials_of,
)
from parked.loadtest.client.process import Owner
from parked.loadtest.client.redirects import Trail
from parked.loadtest.client.response import KeepAliveResponse, StatusFailure
from parked.loadtest.client.verbs import Verbs
from parked.loadtest.client.wire import RawResponse

if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterable, Mapping

    from locust.event import EventHook

    Fields = Mapping[str, Any] | Iterable[tuple[str, Any]]
    Auth = tuple[str | bytes, str | bytes]

is_absolute = re.compile(r"https?://", re.IGNORECASE).match
#: Connections of a user to other servers: redirections may lead to a new one each time.
MOST_OTHERS = 32


class KeepAliveSession(Verbs, Line):
    """Requests over one connection.

    A test may give it attributes of its own; they cost memory in each user.

    :ivar due: when the next request should leave, on the `time.perf_counter` scale: the end of the think
        time. Its response time counts from there, however late it really leaves. None between the requests of
        one task.
    :ivar request_name: name under which all requests are counted (see :meth:`rename_request`).
    :ivar valid_response_codes: statuses of success, if no task says otherwise.
    :ivar redirect_response_codes: those that are followed.
    :ivar max_redirects: in place of the class', as a script may set it at FastHttpSession's `client`.
    """

    __slots__ = ("due",)

    # What few users have: in `__dict__` where they do, which is made then.
    request_name: str | None = None
    valid_response_codes: Container[int] = LocustUserAgent.valid_response_codes
    redirect_response_codes: Container[int] = LocustUserAgent.redirect_response_codes
    max_redirects: int | None = None
    #: What the host's own path puts before each path, as in FastHttpSession: http://server/api.
    _prefix = ""
    #: What stands for no path, and before a query alone: the host's own.
    _root = "/"
    _others: dict[Place, OtherSession] | None = None
    _cookies: CookieJar | None = None
    _headers: CaseInsensitiveDict[Any] | None = None

    def __init__(self, user: Owner) -> None:
        super().__init__(user)
        self.due: float | None = None
        self._talk_to(str(user.host))

    def _talk_to(self, url: str) -> None:
        try:
            base = urlsplit(url)
            self._origin = self._process.origin(f"{base.scheme}://{base.netloc}", self._user)
        except BadField:
            raise
        except ValueError:  # no URL: a failure to connect, as in FastHttpUser
            self._origin = Origin("http://nowhere.invalid", Nowhere(url), {}, None)
            return
        if (prefix := base.path.rstrip("/")) != self._prefix:
            self._prefix = prefix
        if (root := base.path or "/") != self._root:
            self._root = root

    @property
    def user(self) -> Owner:
        return self._user

    @property
    def request_event(self) -> EventHook:
        return self._user.environment.events.request

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

    default_headers = headers

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

    @cookiejar.setter
    def cookiejar(self, jar: CookieJar) -> None:
        self._cookies = jar

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
        **more: Any,
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
        :param max_redirects: in place of the class'; with 0 none is followed.
        :param more: becomes parameters, or fields of a POST's form, as in FastHttpSession.
        :raises RuntimeError: if another greenlet is in the middle of a request of this user.
        """
        user = self._user
        process = user._process
        start = began = time.perf_counter()
        if self.due is not None:
            process.counters.sent_late(start - self.due)
            start, self.due = self.due, None
        wall_start = time.time()
        session, path, asked = self, self._prefix + url, None
        raw: RawResponse | None = None
        failure: Exception | None = None
        interrupt: Timeout | InUse | None = None
        sent, history = b"", None
        deadline = began + (user.total_timeout if timeout is None else timeout)
        under_way = process.open_requests
        under_way[self] = start
        try:
            if url[:1] != "/":
                session, path, auth = self._session_of(url, auth)
                asked = url if is_absolute(url) else self._origin.url + path
            if more:
                data, params = taken_in(method, data, json, params, more)
            if params and (added := query(params)):
                path = with_query(path, added)
                asked = asked or self.base_url + url
            if find_unsafe(path):
                path = fit(path)
                asked = asked or self.base_url + url
            body = NONE if data is json is files is None else encoded(data, json, files)
            sent = session._message(method, path, body, headers, auth)
            raw = session._exchange(path, sent, deadline, timeout, stream)
            if raw.status >= 300 and raw.status in self.redirect_response_codes:
                most = self._most_redirects(allow_redirects, max_redirects)
                if most > 0:
                    trail = Trail(self, session, path, method, body, headers, auth, sent)
                    first, raw = raw, None
                    try:
                        raw = trail.follow(first, most, deadline, timeout, stream)
                    finally:
                        session = cast(KeepAliveSession, trail.session)
                        path, sent, history = trail.path, trail.message, trail.passed
            if raw.status not in self.valid_response_codes:
                failure = StatusFailure(raw.status)
        except RequestFailure as error:
            failure = error
        except MemoryError:
            failure = TooLarge("no memory for the response")
        except Timeout as timeout_of_task:
            # The task's own, around this call: the request has failed, and the task goes on where it says.
            failure, interrupt = TimedOut("the task's own gevent.Timeout"), timeout_of_task
        except InUse as refused:  # in a greenlet of its own an error alone would be nobody's
            failure = interrupt = refused
        finally:
            under_way.pop(self, None)
        now = time.perf_counter()
        length = 0
        if raw is not None:  # what is only announced may be any number, and no message holds all of them
            length = min(raw.announced_bytes, user.max_body_bytes) if stream else len(raw.body)
        meta = {
            "request_type": method,
            "name": name or self.request_name or url,
            "response_time": (now - start) * 1000,
            "response_length": length,
            "start_time": wall_start,
            "context": context,
        }
        response = KeepAliveResponse(session, raw, failure, path, meta, catch_response, sent, now - began)
        if asked is not None:
            response._asked = asked
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
        user, raw = self._user, response._raw
        received = 0 if raw is None else raw.received_bytes
        user._process.request_done(user, response._meta, received, failure, response)

    def context(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """What listeners are given as context, beside what the request brought."""
        return {**self._user.context(), **(given or {})}

    def absolute(self, path: str) -> str:
        """The URL of a path on this session's server."""
        return path if is_absolute(path) else self._origin.url + path

    def record_failure(self, method: str, failure: RequestFailure) -> None:
        """Count a failure that belongs to no request, such as a connection that could not be opened.

        Listeners get a response without a status, as of a request that failed.
        """
        meta = {
            "request_type": method,
            "name": "",
            "response_time": 0.0,
            "response_length": 0,
            "start_time": time.time(),
            "context": None,
        }
        response = KeepAliveResponse(self, None, failure, "", meta, False)
        response._asked = self.base_url
        self.report(response, failure)

    # The parts of a request

    def _most_redirects(self, allow: bool | None, most: int | None) -> int:
        """How many redirections to follow, by what the request says of it."""
        user = self._user
        if not (user.allow_redirects if allow is None else allow):
            return 0
        return next(one for one in (most, self.max_redirects, user.max_redirects) if one is not None)

    def _session_of(self, url: str, auth: Auth | None) -> tuple[KeepAliveSession, str, Auth | None]:
        """The session that talks to the URL's host, the path there, and credentials, which a URL may have.

        Raises ValueError for what is no http:// or https:// URL.
        """
        if not is_absolute(url):
            return self, (self._root if url[:1] in "?#" else f"{self._prefix}/") + url, auth
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
        given: dict[str, Any] = {}
        if jar is not None and (bare or "cookie" not in origin.named):  # one that a class sets stays
            given = cookies.fields(jar, origin.url + path)
        if own is not None and not bare:
            given = merged(given, own)
        if headers:
            given = merged(given, dict(headers)) if given else dict(headers)
        if auth:
            given = merged(given, {"Authorization": basic_authorization(*auth)})
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
        self._tally = self._process.elsewhere
        self._talk_to(url)

    @property
    def _cookies(self) -> CookieJar | None:
        return self._parent._cookies

    @_cookies.setter
    def _cookies(self, jar: CookieJar | None) -> None:
        self._parent._cookies = jar

    @property
    def _headers(self) -> CaseInsensitiveDict[Any] | None:  # type: ignore[override]
        return self._parent._headers
