"""Who listens, and what they are told: the heart of the notification services in this folder.

A `Hub` keeps the pending responses of one worker, and the last messages. Messages are numbered, so that a
client which comes back says with `Last-Event-ID` what it has. For many workers there is `shared`.
"""

from __future__ import annotations

import json
import os
from collections import deque
from typing import Any

import gevent
from gevent.lock import Semaphore

#: Messages that are kept for clients that come back.
KEPT = 1000
#: Seconds after which a stream in which nothing happens says that it is alive.
HEARTBEAT = (15.0, b":\n\n")
#: Of a message's number; a client may say anything, and Python makes no number of thousands of digits.
MAX_DIGITS = 18
#: Seconds that a long poll waits.
POLL_S = 55.0
#: Clients that are told in one go, and seconds for other requests before the next go. Not 0: from that,
#: gevent comes back before it has looked at a socket.
CLIENTS_A_TURN = 128
PAUSE_S = 0.001

EVENT_STREAM = [
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),
]
JSON = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
NOTHING_NEW = ("200 OK", JSON, b"[]")


class Hub:
    """The listeners of one worker."""

    def __init__(self) -> None:
        self._listeners: set[Any] = set()
        self._messages: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._last = 0
        self._turn = Semaphore()  # one message after the other, though telling them takes several turns
        self._forget = self._listeners.discard

    def stream(self, defer: Any, last: str | None) -> None:
        """An event stream, for an `EventSource`.

        :param defer: `environ["parked.defer"]`.
        :param last: the request's Last-Event-ID.
        """
        missed = b"".join(map(_event, self._since(last)))
        pending = defer(on_close=self._forget, heartbeat=HEARTBEAT)  # behind all that may fail
        pending.context = "stream"
        pending.start("200 OK", EVENT_STREAM)
        pending.write(b"retry: 1000\n\n" + missed)
        self._listeners.add(pending)

    def poll(self, defer: Any, last: str | None) -> None:
        """A long poll: the messages since *last* as soon as there are any, as JSON; none after `POLL_S`."""
        messages = self._since(last)
        pending = defer(
            timeout=POLL_S, on_timeout=NOTHING_NEW, on_shutdown=NOTHING_NEW, on_close=self._forget
        )
        pending.context = "poll"
        if messages:
            pending.send("200 OK", JSON, _json(messages))
        else:
            self._listeners.add(pending)

    def publish(self, text: str) -> None:
        """A new message for everybody."""
        with self._turn:
            self._tell(self._last + 1, text)

    def _tell(self, number: int, text: str) -> None:
        self._last = number
        self._messages.append((number, text))
        event, answer = _event((number, text)), _json([(number, text)])
        for count, pending in enumerate(list(self._listeners), 1):
            if pending.context == "stream":
                pending.write(event)
            elif pending.open:
                pending.send("200 OK", JSON, answer)
            if count % CLIENTS_A_TURN == 0:
                gevent.sleep(PAUSE_S)

    def _since(self, last: str | None) -> list[tuple[int, str]]:
        if last is None or not (last.isascii() and last.isdigit() and len(last) <= MAX_DIGITS):
            return []
        seen = int(last)
        return [message for message in self._messages if message[0] > seen]


def open_hub() -> Hub:
    """One for a single worker, or with REDIS_URL set one of many."""
    url = os.environ.get("REDIS_URL")
    if not url:
        return Hub()
    from .shared import SharedHub  # here, since a single worker needs no package redis

    return SharedHub(url)


def _event(message: tuple[int, str]) -> bytes:
    number, text = message
    return f"id: {number}\ndata: {json.dumps(text)}\n\n".encode()


def _json(messages: list[tuple[int, str]]) -> bytes:
    return json.dumps([{"id": number, "text": text} for number, text in messages]).encode()
