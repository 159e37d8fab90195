"""Responses that come later: a long poll, and a stream of events to everybody who listens.

Both need a server with pending responses (docs/pending.md); others answer 501.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import falcon
import gevent

#: Bounds of ?seconds= and ?every=.
MIN_SECONDS: Final = 0.1
MAX_SECONDS: Final = 3600.0
#: Seconds after which a silent stream says that it is alive; proxies close one that is silent for a minute.
#: One pair for all of them.
HEARTBEAT: Final = (15.0, b":\n\n")
#: Events that are repeated at most for a client that comes back.
MAX_MISSED: Final = 100
#: Of an event's number; a client may say anything, and Python makes no number of thousands of digits.
MAX_DIGITS: Final = 18
#: An event to many comes in turns that are spread over so many seconds: streams in a turn, some 15 us each,
#: and seconds between two at most. Requests beside it, and clients that hear it, have the cores in between.
SPREAD_S: Final = 1.0
STREAMS_A_TURN: Final = 16
PAUSE_S: Final = 0.005
#: Seconds of the longest pause.
MAX_PAUSE_S: Final = 0.1
#: The same when that second was too short. The pause is not 0: gevent comes back from that up to fifty times
#: before it looks at a socket, and all requests would wait for most of a broadcast.
STREAMS_WHEN_LATE: Final = 128
PAUSE_WHEN_LATE_S: Final = 0.001

_TEXT: Final = [("Content-Type", "text/plain; charset=utf-8")]
_EVENT_STREAM: Final = [
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),
]


class Poll:
    """`GET /poll?seconds=S`: answered after S seconds, by the server's own clock for what is pending.

    When the server stops or reloads, earlier: that is not the client's fault.
    """

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        seconds = _seconds(request, "seconds")
        _defer(request)(timeout=seconds, on_timeout=_answer, on_shutdown=_answer)


def _answer(pending: Any) -> tuple[str, list[tuple[str, str]], bytes]:
    return "200 OK", _TEXT, b"%.6f\n" % time.time()


class Events:
    """`GET /events?every=S`: an event every S seconds, the same to everybody, in all workers.

    An event's number is the time divided by S, so that it means the same after a restart, and a client that
    comes back with `Last-Event-ID` gets what it has missed. Its data are its number and its time of sending.
    """

    def __init__(self) -> None:
        self._broadcasts: dict[float, Broadcast] = {}

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        every = round(_seconds(request, "every"), 1)
        last = request.get_header("Last-Event-ID") or ""
        broadcast = self._broadcasts.get(every)
        if broadcast is None:
            broadcast = self._broadcasts[every] = Broadcast(every)
        known = int(last) if last.isascii() and last.isdigit() and len(last) <= MAX_DIGITS else None
        broadcast.add(_defer(request)(on_close=broadcast.on_close, heartbeat=HEARTBEAT), known)


class Broadcast:
    """All streams with an event every *every* seconds, and a greenlet for them while there are any."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._streams: set[Any] = set()
        self._runs = False
        #: Bound once: each stream keeps it.
        self.on_close = self.forget

    def add(self, pending: Any, last: int | None) -> None:
        """Begin a stream behind the event *last*, or with the next one."""
        now = self._number()
        pending.start("200 OK", _EVENT_STREAM)
        if last is not None:
            missed = range(max(last + 1, now - MAX_MISSED + 1), now + 1)
            pending.write(b"".join(_event(number, number * self._every) for number in missed))
        pending.context = now
        self._streams.add(pending)
        if not self._runs:
            self._runs = True
            gevent.spawn(self._run, now + 1)

    def forget(self, pending: Any) -> None:
        self._streams.discard(pending)

    def _number(self) -> int:
        """Of the last event that is over."""
        return int(time.time() / self._every)

    def _run(self, number: int) -> None:
        while self._streams:
            while (left := number * self._every - time.time()) > 0:
                gevent.sleep(min(left, 1.0))  # in parts, since this clock may be set
            self._tell(number)
            number += 1  # also when it is late: nobody shall miss one
        self._runs = False

    def _tell(self, number: int) -> None:
        event = _event(number, time.time())
        for pending in _in_turns(list(self._streams)):
            if pending.context < number:  # it has not begun behind this event
                pending.context = number
                pending.write(event)


def _in_turns(streams: list[Any]) -> Iterator[Any]:
    """All of them, with pauses, each as long as the turn before it took at least while there is time."""
    began = turn_began = time.monotonic()
    spread_s = SPREAD_S * STREAMS_A_TURN / max(len(streams), 1)
    done = 0
    while done < len(streams):
        late = turn_began - began > SPREAD_S
        portion = STREAMS_WHEN_LATE if late else STREAMS_A_TURN
        yield from streams[done : done + portion]
        done += portion
        if done < len(streams):
            took_s = min(time.monotonic() - turn_began, MAX_PAUSE_S)  # more is a process that was stopped
            pause_s = PAUSE_WHEN_LATE_S if late else max(min(PAUSE_S, spread_s), took_s)
            gevent.sleep(took_s + pause_s)  # from the turn's beginning: the loop's clock has stood still
            turn_began = time.monotonic()


def _event(number: int, sent: float) -> bytes:
    data = json.dumps({"number": number, "sent": round(sent, 6)})
    return f"id: {number}\ndata: {data}\n\n".encode("ascii")


def _defer(request: falcon.Request) -> Any:
    defer = request.env.get("parked.defer")
    if defer is None:
        raise falcon.HTTPNotImplemented(description="This server has no pending responses (docs/pending.md).")
    return defer


def _seconds(request: falcon.Request, name: str) -> float:
    value = request.get_param_as_float(name, required=True)
    if not MIN_SECONDS <= value <= MAX_SECONDS:
        raise falcon.HTTPBadRequest(
            title=f"{name} is not usable",
            description=f"{name} must be a number of seconds from {MIN_SECONDS:g} to {MAX_SECONDS:g}.",
        )
    return value
