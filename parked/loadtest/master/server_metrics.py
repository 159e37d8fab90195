"""What the server counts itself, if it is this project's: read from its `--metrics` once a second.

A witness of its own: it sees connections and responses from the other side. Nothing here knows how the server
works; it is asked over HTTP, as Prometheus does, and whatever it does not tell is None.
"""

from __future__ import annotations

import dataclasses
import http.client
import io
import logging
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import gevent
from prometheus_client.parser import text_string_to_metric_families

from parked.loadtest.terms import checkout
from parked.loadtest.terms.clock import unix_time_s
from parked.loadtest.terms.harmless import for_line
from parked.shared import addresses

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

#: Seconds between two readings, and that one may take on a machine without idle cores.
READ_S = 1.0
PATIENCE_S = 3.0
#: Seconds after which a reading is too old to speak of now.
STALE_S = 5.0
#: Seconds between two looks at whether it has counted all.
LOOK_S = 0.1
#: Seconds without any change after which the server has counted all: its workers tell once a second.
SETTLED_S = 2.5
#: Seconds to wait for that, at most: 400,000 connections are closed meanwhile.
SETTLE_MOST_S = 15.0

#: Bytes of a page, characters of it that are parsed, which takes a second for each million, and of a line:
#: run_server's has some hundred lines of less than a hundred, and two more for each of its workers.
LARGEST, MOST_PARSED, LONGEST_LINE = 4 << 20, 1 << 18, 4_096
#: What counts are below: the bytes of years.
MOST = 1e18


class NoMetrics(Exception):
    """They can't be read: why."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the server said at a moment; its counts are up to a second older."""

    unix_time_s: float
    connections: int | None
    accepted: int | None
    requests: int | None
    sent_bytes: int | None
    loop_lag_max_s: float | None  #: of any worker in the last 1-2 s, as the next one
    gc_pause_max_s: float | None
    gc_pause_s: float | None  #: of all workers since they started, as the counts
    pending: int | None = None  #: responses that are still to come or to end
    messages: int | None = None  #: written into those

    def since(self, base: Reading) -> Reading:
        """With counts from an earlier reading on."""
        return dataclasses.replace(
            self,
            accepted=_less(self.accepted, base.accepted),
            requests=_less(self.requests, base.requests),
            sent_bytes=_less(self.sent_bytes, base.sent_bytes),
            messages=_less(self.messages, base.messages),
            gc_pause_s=_less(self.gc_pause_s, base.gc_pause_s),
        )

    @property
    def columns(self) -> dict[str, float | int | None]:
        """Cells of samples.csv."""
        lag_s, pause_s = self.loop_lag_max_s, self.gc_pause_max_s
        return {
            "server_counted_unix_s": round(self.unix_time_s, 3),
            "server_connections": self.connections,
            "server_accepted_total": self.accepted,
            "server_requests_total": self.requests,
            "server_sent_bytes_total": self.sent_bytes,
            "server_loop_lag_max_ms": None if lag_s is None else round(lag_s * 1000, 1),
            "server_gc_pause_max_ms": None if pause_s is None else round(pause_s * 1000, 1),
            "server_pending": self.pending,
            "server_messages_total": self.messages,
        }


def _less(now: float | None, before: float | None) -> Any:
    return None if now is None or before is None else now - before


#: The cells' columns.
COLUMNS = tuple(Reading(0.0, *[None] * 7).columns)


def parse(text: str, unix_time_s: float) -> Reading:
    """A page in Prometheus' text format. Raises :class:`NoMetrics` for another's."""
    lines = [line for line in text.splitlines() if line.startswith("parked_") and len(line) <= LONGEST_LINE]
    if not lines:
        raise NoMetrics(f"no metrics of {checkout.SERVER} there")
    page = "\n".join(lines) + "\n"
    if len(page) > MOST_PARSED:
        raise NoMetrics(f"metrics of more than {MOST_PARSED >> 10} KiB")
    samples: dict[str, float] = {}
    answered = 0.0
    try:
        # Without the lines of types, samples keep their names.
        for family in text_string_to_metric_families(page):
            for name, labels, value, *_ in family.samples:
                if not 0 <= value < MOST:
                    raise ValueError(f"{name} has the value {value!r}")
                if name == "parked_requests_total":
                    answered += value
                if not labels or labels == {"state": "open"}:
                    samples[name] = value
                elif labels == {"state": "pending"}:
                    samples["pending"] = value
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise NoMetrics(for_line(f"no metrics as Prometheus reads them: {error}")[:200]) from None
    return Reading(
        unix_time_s,
        _count(samples, "parked_connections"),
        _count(samples, "parked_accepted_total"),
        round(answered),
        _count(samples, "parked_sent_bytes_total"),
        samples.get("parked_loop_lag_longest_seconds"),
        samples.get("parked_gc_pause_longest_seconds"),
        samples.get("parked_gc_pause_seconds_sum"),
        _count(samples, "pending"),
        _count(samples, "parked_pending_messages_total"),
    )


def _count(samples: Mapping[str, float], name: str) -> int | None:
    value = samples.get(name)
    return None if value is None else round(value)


#: In the version that has neither chunks nor interim responses (RFC 9112, 6.1; RFC 9110, 15.2): to read very
#: many of them takes seconds.
_ASK = b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n"
_FINAL = re.compile(rb"HTTP/1\.[01] [2-5]")


class _Received:
    """A connection whose bytes are all there, as HTTPResponse reads one."""

    def __init__(self, page: bytes) -> None:
        self._page = page

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._page)


def _whole(connected: socket.socket, deadline: float) -> bytes:
    """All that comes until the other side closes. Raises :class:`NoMetrics` where that is too much, and
    TimeoutError where it takes too long: who drips is never quiet for so long."""
    page = bytearray()
    while True:
        if (left_s := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        connected.settimeout(left_s)
        if not (data := connected.recv(65536)):
            return bytes(page)
        page += data
        if len(page) > LARGEST:
            raise NoMetrics(f"more than {LARGEST >> 20} MiB")


def ask(address: str) -> Reading:
    """Ask now. The time limit is the sockets' own, so it holds without gevent's patches too; resolving a name
    has the resolver's. Raises :class:`NoMetrics`."""
    deadline = time.monotonic() + PATIENCE_S
    try:
        with _connected(address) as connected:
            connected.sendall(_ASK)
            page = _whole(connected, deadline)
        answer = http.client.HTTPResponse(_Received(page))  # type: ignore[arg-type]
        if not _FINAL.match(page):
            raise NoMetrics("no response")
        answer.begin()
        if answer.chunked:
            raise NoMetrics("chunks that were not asked for")
        text = answer.read().decode()
    except TimeoutError:
        raise NoMetrics(f"no answer within {PATIENCE_S:g} s") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoMetrics(for_line(str(error))[:200] or type(error).__name__) from None
    if answer.status != http.HTTPStatus.OK:
        raise NoMetrics(f"status {answer.status}")
    return parse(text, unix_time_s())


def _connected(address: str) -> socket.socket:
    host, port, path = addresses.parse(address)
    if path:
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(PATIENCE_S)
        try:
            connected.connect(path)
        except BaseException:
            connected.close()
            raise
        return connected
    return socket.create_connection((host, port), PATIENCE_S)


class ServerMetrics:
    """The server's metrics at an address as `parked-server --metrics` takes it: HOST:PORT or unix:PATH."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._base: Reading | None = None
        self._latest: Reading | None = None
        self._silent = False
        self._follower: gevent.Greenlet | None = None

    def read(self) -> Reading:
        """Ask now. Raises :class:`NoMetrics`."""
        patience = gevent.Timeout.start_new(PATIENCE_S)  # in all, the resolver too
        try:
            return ask(self.address)
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            raise NoMetrics(f"no answer within {PATIENCE_S:g} s") from None
        finally:
            patience.close()

    def begin(self) -> None:
        """The run begins: count from now on, and read once a second, in the background. Raises
        :class:`NoMetrics`."""
        self._base = self.read()
        self._follower = gevent.spawn(self._follow)

    def stop(self) -> None:
        if self._follower is not None:
            self._follower.kill()

    def _follow(self) -> None:
        while True:
            self._look()
            gevent.sleep(READ_S)

    def _look(self) -> None:
        try:
            self._latest = self.read()
            self._silent = False
        except NoMetrics as error:
            if not self._silent:  # told once each time that it begins
                logger.warning("server metrics at %s: %s", self.address, error)
            self._silent = True

    @property
    def latest(self) -> Reading | None:
        """The last reading, if it is not too old."""
        if self._latest is None or unix_time_s() - self._latest.unix_time_s > STALE_S:
            return None
        return self._latest

    @property
    def since_begin(self) -> Reading | None:
        """The last reading, with counts of this run."""
        latest = self.latest
        return None if latest is None or self._base is None else latest.since(self._base)

    @property
    def gc_pause_s(self) -> float | None:
        """Seconds of garbage collection in this run, of all workers."""
        return None if (told := self.since_begin) is None else told.gc_pause_s

    def settle(self, answered: int) -> None:
        """Wait until `latest` has all that it counts: no connection is left, and it tells of as many requests
        of this run as the clients have answers to; or nothing has changed for a while."""
        deadline = time.monotonic() + SETTLE_MOST_S
        counted, since = None, time.monotonic()
        while time.monotonic() < deadline:
            self._look()
            told = self.since_begin
            now = None if told is None else (told.requests, told.connections)
            if told is not None and told.connections == 0 and (told.requests or 0) >= answered:
                return
            if now != counted:
                counted, since = now, time.monotonic()
            elif time.monotonic() - since >= SETTLED_S or self._silent:
                return
            gevent.sleep(LOOK_S)
