"""Users that wait for what their server will send: no tasks, and no greenlet while they wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from locust.exception import StopTest, StopUser
from locust.user.task import LOCUST_STATE_STOPPING, LOCUST_STATE_WAITING

from parked.loadtest.client.errors import CutOff, RequestFailure
from parked.loadtest.client.event_stream import sent_at
from parked.loadtest.client.message import NONE, find_unsafe, fit
from parked.loadtest.client.user import (
    RETRY_CONNECT_FIRST_S,
    RETRY_CONNECT_LAST_S,
    KeepAliveUser,
    Rest,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

    from parked.loadtest.client.connection import Connection
    from parked.loadtest.client.session import KeepAliveSession
    from parked.loadtest.client.wire import RawResponse


class WaitingUser(KeepAliveUser):
    """What long polls and event streams have in common.

    :cvar path: what is asked for, again and again.
    :cvar name: name of these requests in the statistics; the path without its query, if there is none.
    :cvar fields: header fields of each request, beside `default_headers`.
    """

    abstract = True
    path: ClassVar[str]
    name: ClassVar[str | None] = None
    fields: ClassVar[dict[str, str]] = {}
    #: Seconds before the next attempt after one that failed; doubled each time, up to a bound.
    _retry_failed_s = RETRY_CONNECT_FIRST_S

    def __init__(self, environment: Environment) -> None:
        if self.tasks:
            raise StopTest(
                f"{type(self).__name__} has tasks: such a user asks for its `path`, and nothing else"
            )
        super().__init__(environment)

    @staticmethod
    def sent_at(data: bytes) -> float | None:
        """When an event or answer was sent, by what it says: Unix time in seconds, None if it does not.

        A class whose server says it in another way has its own; called once for what many get alike.
        """
        return sent_at(data)

    def first_wait_time(self) -> float:
        return 0.0

    def _ask(self, path: str, fields: dict[str, str]) -> Connection:
        """Send the request; its response will come on this connection. Raises a :class:`RequestFailure`."""
        session = self.client
        if find_unsafe(path):
            path = fit(path)
        message = session._message("GET", session._prefix + path, NONE, fields or None, None)
        deadline = time.perf_counter() + self.total_timeout
        connection, early = session._send(message, self.connection_timeout, self.network_timeout, deadline)
        if early:
            session._drop(by_peer=True)
            raise CutOff("reset by the server")
        return connection

    def _count(
        self,
        began_unix_s: float,
        response_ms: float,
        raw: RawResponse | None,
        failure: Exception | None,
    ) -> None:
        """Count a request that has ended."""
        process, path = self._process, self.path
        if process.server_software is None and raw is not None:
            process.server_software = raw.field(b"server")
        meta: dict[str, Any] = {
            "request_type": "GET",
            "name": self.name or path.partition("?")[0],
            "response_time": response_ms,
            "response_length": 0 if raw is None else len(raw.body),
            "start_time": began_unix_s,
            "context": None,
            "url": self.client.base_url + path,
        }
        process.request_done(self, meta, 0 if raw is None else raw.received_bytes, failure)

    def _work(self, _session: KeepAliveSession) -> Callable[[], None]:
        return self._go_on

    def _go_on(self) -> None:
        """Do what there is to do until the user rests, or waits; both raise."""
        raise NotImplementedError

    def _resume(self, due: float) -> None:
        """What was waited for has come: run a turn, unless the user has ended or is about to."""
        if self._state == LOCUST_STATE_WAITING and not self._greenlet.dead:
            self._turn(due)

    def _wait_from_now_on(self) -> None:
        """The turn is about to end."""
        if self._state == LOCUST_STATE_STOPPING:  # asked to stop while it ran
            raise StopUser
        self._state = LOCUST_STATE_WAITING

    def _rest(self, seconds: float) -> Rest:
        """To be raised: rest for so long, and go on."""
        self._wait_from_now_on()
        return Rest(seconds)

    def _try_again(self) -> Rest:
        """The same, after a failure."""
        wait_s = self._retry_failed_s
        self._retry_failed_s = min(2 * wait_s, RETRY_CONNECT_LAST_S)
        return self._rest(wait_s)


def failed(process_hub: Any, error: BaseException, where: object) -> RequestFailure:
    """An error in what a user's class has overridden: told as those of greenlets are, and a failure."""
    process_hub.handle_error(where, type(error), error, error.__traceback__)
    return RequestFailure(f"{type(error).__name__} in the user's own class")
