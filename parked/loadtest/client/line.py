"""The line that a session has to its server: one connection, and one exchange after another on it.

It is opened when it is needed, may be lost at any time, and is dropped where the next response could not be
told from the rest of the last one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from parked.loadtest.client.connection import AnsweredEarly, Connection, in_use
from parked.loadtest.client.errors import ClosedByPeer, ConnectFailed, CutOff
from parked.loadtest.client.streaming import Stream
from parked.loadtest.client.wire import Incoming, RawResponse, read_response, too_late

if TYPE_CHECKING:
    from parked.loadtest.client.origin import Origin
    from parked.loadtest.client.process import Owner, Process


class Line:
    """What a session is beneath its requests."""

    __slots__ = ("__dict__", "_connection", "_opened", "_origin", "_tally", "_user")

    _origin: Origin
    #: In `__dict__` where there is one.
    _stream: Stream | None = None

    def __init__(self, user: Owner) -> None:
        self._user = user
        #: Where its connections count: only those to the user's own host are what a run holds.
        self._tally = user._process.counters
        self._connection: Connection | None = None
        #: It was open before, so that opening it is a reconnect.
        self._opened = False

    if TYPE_CHECKING:

        def _take_cookies(self, raw: RawResponse, path: str) -> None: ...

    @property
    def _process(self) -> Process:
        return self._user._process

    def connect(self) -> None:
        """Open the connection if it is not open, to be held. Raises a :class:`RequestFailure`."""
        if self._connection is None:
            self._connect(self._user.connection_timeout, to_hold=True)

    def _connect(self, timeout_s: float, to_hold: bool = False) -> Connection:
        origin = self._origin
        addresses = origin.server.addresses()
        for number, address in enumerate(addresses, 1):
            try:
                connection = Connection.open(
                    address.family,
                    address.socket_address,
                    readiness=self._process.readiness,
                    sources=address.sources,
                    timeout_s=timeout_s,
                    owner=self,
                    tls_context=origin.tls_context,
                    server_hostname=origin.server.hostname,
                )
                break
            except ConnectFailed:
                origin.server.refused(address)
                if number == len(addresses):
                    raise
        if self._connection is not None:
            connection.close()
            raise in_use()
        if to_hold and connection.hung_up:
            connection.close()  # no further event would say so
            raise ConnectFailed("closed by the server at once")
        self._connection = connection
        self._tally.connection_opened(again=self._opened)
        self._opened = True
        return connection

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        """Close the connection. The next request opens one again."""
        self._drop()

    def lost(self, _connection: Connection) -> None:
        """The server has closed it at rest."""
        self._connection = None
        self._tally.connection_closed(by_peer=True)

    def _drop(self, by_peer: bool = False) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._tally.connection_closed(by_peer)

    def _exchange(
        self, path: str, message: bytes, deadline: float, timeout: float | None, stream: bool
    ) -> RawResponse:
        """Send a request, read its response; open the connection before and drop it after where need be."""
        user = self._user
        connect_s, timeout_s = user.connection_timeout, user.network_timeout
        if timeout is not None:
            connect_s, timeout_s = min(connect_s, timeout), min(timeout_s, timeout)
            if time.perf_counter() >= deadline:
                raise too_late()
        connection, early = self._send(message, connect_s, timeout_s, deadline)
        to_head = message.startswith(b"HEAD ")
        if stream and not early:
            return self._begin_stream(self._begin(connection, timeout_s, to_head, deadline), path)
        return self._receive(connection, timeout_s, to_head, deadline, path, early)

    def _send(
        self, message: bytes, connect_s: float, timeout_s: float, deadline: float
    ) -> tuple[Connection, bool]:
        """Send a request. With the connection comes whether the answer was there before its end."""
        connection = self._connection
        if connection is not None:
            if connection.waiter is not None:
                raise in_use()
            if self._stream is not None:  # the rest of it would come before the next response
                self._stream.close()
                connection = None
            elif connection.ready or connection.chats:
                connection = self._checked(connection)
        if connection is None:
            connection = self._connect(connect_s)
        self._tally.request_sent(len(message))
        try:
            connection.send(message, timeout_s, deadline)
        except (AnsweredEarly, CutOff):
            # The server has answered without reading on, and perhaps reset the rest: its answer is there.
            return connection, True
        except BaseException as error:
            self._fail(error)
            raise
        return connection, False

    def _receive(
        self,
        connection: Connection,
        timeout_s: float,
        to_head: bool,
        deadline: float,
        path: str,
        early: bool = False,
        begun: bytes = b"",
    ) -> RawResponse:
        """Read the response; `begun` is what of it has come already."""
        most_bytes = self._user.max_body_bytes
        try:
            raw = read_response(connection, timeout_s, to_head, deadline, most_bytes, begun)
        except BaseException as error:
            self._fail(error)
            raise
        if early or not raw.keep_alive or connection.hung_up:
            self._drop(by_peer=True)
        head = raw.lower_head
        if b"\r\ncontent-encoding:" in head:
            raw.decode(most_bytes)
        if b"\r\nset-cookie:" in head:
            self._take_cookies(raw, path)
        return raw

    def _fail(self, error: BaseException) -> None:
        """Whatever it was, the next response here could not be told from the rest of this one."""
        self._drop(by_peer=isinstance(error, ClosedByPeer))

    def _begin(self, connection: Connection, timeout_s: float, to_head: bool, deadline: float) -> Incoming:
        """Read the head of a response, and leave its body on the connection."""
        try:
            return Incoming(connection, timeout_s, to_head, deadline, self._user.max_body_bytes)
        except BaseException as error:
            self._fail(error)
            raise

    def _begin_stream(self, incoming: Incoming, path: str) -> RawResponse:
        """Leave the body on the connection, for the response to read."""

        def over(keep: bool) -> None:
            self._stream = None
            if not keep or (self._connection is not None and self._connection.hung_up):
                self._drop(by_peer=keep)

        self._stream = Stream(incoming, self._user.max_body_bytes, over)
        if b"\r\nset-cookie:" in incoming.raw.lower_head:
            self._take_cookies(incoming.raw, path)
        return incoming.raw

    def _checked(self, connection: Connection) -> Connection | None:
        """A connection on which nothing came since the last response; None if it ended."""
        try:
            connection.check_quiet()
        except ClosedByPeer:
            self._drop(by_peer=True)
            return None
        except BaseException:
            self._drop()
            raise
        return connection
