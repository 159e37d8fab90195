"""Redirections: where a response sends its client, and what goes along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin, urlsplit

from parked.loadtest.client.errors import BadResponse, ConnectFailed
from parked.loadtest.client.message import NONE, Body, fit, merged
from parked.loadtest.client.origin import Place
from parked.loadtest.client.response import Reporter
from parked.shared.private import is_private

if TYPE_CHECKING:
    from collections.abc import Container

    from parked.loadtest.client.origin import Origin
    from parked.loadtest.client.streaming import Stream
    from parked.loadtest.client.wire import RawResponse

#: Statuses that send a client elsewhere and after which a GET follows (RFC 9110, 15.4).
BECOMES_GET = frozenset((301, 302, 303))
#: Fields that say what a request's content is: they go where it goes. A cookie goes where its jar says.
ABOUT_CONTENT = frozenset(("content-length", "content-type", "content-encoding"))
COOKIE = frozenset(("cookie",))


class Session(Reporter, Protocol):
    """What a chain of redirections asks of each session on its way."""

    redirect_response_codes: Container[int]
    _origin: Origin
    _stream: Stream | None

    def _session_at(self, place: Place, authority: str) -> Any: ...

    def _message(
        self, method: str, path: str, body: Body, headers: Any, auth: Any, bare: bool = False
    ) -> bytes: ...

    def _exchange(
        self, path: str, message: bytes, deadline: float, timeout: float | None, stream: bool
    ) -> RawResponse: ...


class Trail:
    """A chain of redirections, and what the next request of it is."""

    def __init__(
        self,
        home: Session,
        session: Session,
        path: str,
        method: str,
        body: Body,
        headers: Any,
        auth: Any,
        message: bytes,
    ) -> None:
        self._home = home
        self.session = session
        self.path = path
        self._method = method
        self._body = body
        self._headers = headers
        self._auth = auth
        #: Left with everything of the user's, once another server was on the way.
        self._bare = False
        self.message = message
        #: Of each response that redirected: the session, it, its path, and its request.
        self.passed: list[tuple[Session, RawResponse, str, bytes]] = []

    def follow(
        self, raw: RawResponse, most: int, deadline: float, timeout: float | None, stream: bool
    ) -> RawResponse:
        """The response at the end."""
        for _ in range(most):
            location = raw.field(b"location")
            if not location:
                return raw
            if self.session._stream is not None:
                self.session._stream.close()
            self.passed.append((self.session, raw, self.path, self.message))
            self._turn(raw.status, location)
            self.message = self.session._message(
                self._method, self.path, self._body, self._headers, self._auth, self._bare
            )
            try:
                raw = self.session._exchange(self.path, self.message, deadline, timeout, stream)
            except ConnectFailed:
                if not self._bare:
                    raise
                # As above: no name of a host that the server has chosen.
                raise ConnectFailed("the server that a redirection leads to can't be reached") from None
            if raw.status not in self._home.redirect_response_codes:
                return raw
        raise BadResponse("too many redirections")

    def _turn(self, status: int, location: str) -> None:
        try:
            parts = urlsplit(urljoin(self.session.absolute(self.path), location))
            place = Place.of(parts)
            session = self._home._session_at(place, parts.netloc)
        except ValueError:  # its words are the server's, and may be others each time
            raise BadResponse("redirection to no http:// or https:// URL") from None
        self.path = fit((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        fields, left = dict(self._headers or ()), COOKIE
        if status in BECOMES_GET and self._method.upper() != "HEAD":
            left |= ABOUT_CONTENT
            # What it accepts is about the answer.
            fields = merged(dict(self._body.fields), fields)
            self._method, self._body = "GET", NONE
        fields = {name: value for name, value in fields.items() if name.lower() not in left}
        if place != self.session._origin.place:
            # Who sends a client elsewhere is not to hand its secrets on (CWE-522).
            self._bare, self._auth = True, None
            fields = {name: value for name, value in fields.items() if not is_private(name)}
        self._headers = fields
        self.session = session
