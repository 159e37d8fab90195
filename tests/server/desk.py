"""An application whose every response is pending, and who waits there: for the tests of pending responses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from parked.server.pending import PendingResponse
from parked.server.server import KeepAliveWSGIServer
from parked.server.waiting import PendingResponses
from tests.support import Client, eventually, serving

POLL = b"GET /poll HTTP/1.1\r\nHost: x\r\n\r\n"
OLD_POLL = b"GET /poll HTTP/1.0\r\n\r\n"


class Desk:
    """Defers each request with *options*, but answers /now at once."""

    def __init__(self, **options: Any) -> None:
        self.options = {"on_close": self.note, **options}
        self.waiting: list[PendingResponse] = []
        #: Reasons of those that have ended.
        self.ended: list[str | None] = []
        self.server: KeepAliveWSGIServer

    def note(self, pending: PendingResponse) -> None:
        self.ended.append(pending.reason)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] != "/now":
            self.waiting.append(environ["parked.defer"](**self.options))
        start_response("200 OK", [("X-From", "return")])
        return [b"now"]

    def wait_for(self, count: int = 1) -> PendingResponse:
        """When so many have come, the last of them, whose request greenlet has returned."""
        eventually(lambda: len(self.waiting) >= count and not self.server.active, "a pending response")
        return self.waiting[-1]

    def wait_for_end(self, *reasons: str) -> None:
        eventually(lambda: len(self.ended) >= len(reasons), f"the end: {reasons}")
        assert tuple(self.ended) == reasons


def ended(pending: PendingResponses) -> dict[str, int]:
    """How many have ended, by reason."""
    return {reason: count for reason, count in pending.endings.items() if count}


@contextlib.contextmanager
def attended(desk: Desk, **options: Any) -> Iterator[Desk]:
    with serving(desk, **options) as desk.server:
        yield desk


@contextlib.contextmanager
def pending_at(desk: Desk, request: bytes = POLL, **options: Any) -> Iterator[tuple[Client, PendingResponse]]:
    """A client and its pending response."""
    with attended(desk, **options), Client(desk.server) as client:
        client.send(request)
        yield client, desk.wait_for()


def chunks(client: Client, count: int) -> bytes:
    """The next *count* chunks as they come."""
    parts = []
    for _ in range(count):
        size = int(client.file.readline(), 16)
        parts.append(client.file.read(size))
        assert client.file.read(2) == b"\r\n"
    return b"".join(parts)


def head(client: Client) -> bytes:
    """The lines of a response's head."""
    lines = []
    while (line := client.file.readline()) != b"\r\n":
        assert line
        lines.append(line)
    return b"".join(lines)
