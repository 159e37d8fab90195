"""The states of a pending response against a model of a few lines, in sequences that hypothesis makes up.

In the suite they are few and always the same. For a longer search:

    PARKED_MODEL_EXAMPLES=100000 python -m pytest tests/server/test_pending_model.py
"""

from __future__ import annotations

import http.client
import io
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from parked.server import deadlines
from parked.server import pending as pending_module
from parked.server.connection import HUNG_UP, Connection
from parked.server.deadlines import Deadlines
from parked.server.parking import EPOLLIN, EPOLLOUT, EPOLLRDHUP
from parked.server.pending import (
    CLOSES,
    HEAD_ONLY,
    HTTP_1_0,
    PendingResponse,
    Reason,
)

LONG = int(os.environ.get("PARKED_MODEL_EXAMPLES", "0"))
TIMEOUT_S = 10.0
HEARTBEAT = (4.0, b"beat")
WRITE_TIMEOUT_S = 6.0
MAX_OUTGOING_BYTES = 64

bodies = st.sampled_from([b"", b"x", b"0123456789", b"y" * 50, b"z" * 200])
#: What ends most sequences early if it happens often.
rarely = st.sampled_from([False] * 7 + [True])  # integers would prefer their bounds
STATUSES = ["200 OK", "204 No Content", "304 Not Modified", "500 Oops"]


class Wire:
    """A socket that takes as many bytes as there is room for; None for one that is broken."""

    def __init__(self) -> None:
        self.room: int | None = 1 << 30
        self.sent = b""

    def fileno(self) -> int:
        return 0

    def send(self, data: Any) -> int:
        if self.room is None:
            raise BrokenPipeError
        count = min(len(data), self.room)
        if not count:
            raise BlockingIOError
        self.sent += bytes(data[:count])
        self.room -= count
        return count


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """Who keeps the pending response, without server or event loop: callbacks wait until they are run."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.deadlines: Deadlines[PendingResponse] = Deadlines(
            PendingResponse.on_due, self.complain, self.clock
        )
        self.thread = pending_module._get_ident()
        self.stopping = False
        self.write_timeout = WRITE_TIMEOUT_S
        self.max_outgoing_bytes = MAX_OUTGOING_BYTES
        self.messages = self.heartbeats = 0
        self.chunk = self.framed = b""
        self.totals: dict[int, int] = {}
        self.calls: list[tuple[Any, PendingResponse]] = []
        self.wants_room = False
        self.fate: str | None = None

    def call(self, function: Any, pending: PendingResponse) -> None:
        self.calls.append((function, pending))

    def call_from_thread(self, function: Any, *arguments: Any) -> None:
        raise AssertionError

    def complain(self, callback: Any, error: BaseException) -> None:
        raise error

    def retry_after(self) -> str:
        return "1"

    def watch_room(self, connection: Connection, wanted: bool) -> None:
        self.wants_room = wanted

    def ended(self, pending: PendingResponse, connection: Connection, keep: bool, lost: bool) -> None:
        assert self.fate is None, "the connection is given away twice"
        self.fate = "lost" if lost else "kept" if keep else "closed"

    def withdrawn(self, pending: PendingResponse) -> None:
        assert self.fate is None
        self.fate = "withdrawn"


class Model(RuleBasedStateMachine):
    """What the application and the client may rely on, whatever the order of things."""

    @initialize(
        head=rarely,
        old=rarely,
        closes=rarely,
        beats=st.booleans(),
        returned=rarely.map(lambda never: not never),
    )
    def begin(self, head: bool, old: bool, closes: bool, beats: bool, returned: bool) -> None:
        self.wire = Wire()
        self.host = Host()
        self.connection = Connection(self.wire, ("client", 1))  # type: ignore[arg-type]
        self.head, self.old = head, old
        self.flags = HEAD_ONLY * head | HTTP_1_0 * old | CLOSES * closes
        self.ends: list[Reason | None] = []
        self.pending = PendingResponse(
            self.host,
            self.connection,
            self.flags,
            timeout=TIMEOUT_S,
            on_close=lambda pending: self.ends.append(pending.reason),
            heartbeat=HEARTBEAT if beats else None,
        )
        self.returned = False
        self.left = False
        # The model: what the application has made of it, and the content that a client shall see.
        self.state = "waiting"
        self.content = b""
        self.whole = False
        self.code = 0
        if returned:
            self.application_returns()

    def open(self) -> bool:
        return self.pending.reason is None

    # -- what the application does

    @rule(status=st.sampled_from(STATUSES), body=bodies)
    def send(self, status: str, body: bytes) -> None:
        if not self.open():
            self.too_late(lambda: self.pending.send(status, [], body), ("answered", "closed"))
        elif self.state == "streaming":
            with pytest.raises(RuntimeError):
                self.pending.send(status, [], body)
        elif self.pending.send(status, [], body):
            self.state, self.code, self.whole = "answered", int(status[:3]), True
            self.content = body

    @rule(status=st.sampled_from(STATUSES))
    def start(self, status: str) -> None:
        if not self.open():
            self.too_late(lambda: self.pending.start(status, []), ("answered", "closed"))
        elif self.state == "streaming":
            with pytest.raises(RuntimeError):
                self.pending.start(status, [])
        elif self.pending.start(status, []):
            self.state, self.code = "streaming", int(status[:3])
            self.whole = self.pending.reason == "head"
            assert self.whole == (self.head or self.code in (204, 304))

    @rule(chunk=bodies)
    def write(self, chunk: bytes) -> None:
        if not self.open():
            self.too_late(lambda: self.pending.write(chunk), ("answered", "closed"))
        elif self.state == "waiting":
            with pytest.raises(RuntimeError):
                self.pending.write(chunk)
        elif self.pending.write(chunk):
            self.content += chunk
        else:
            assert self.pending.reason in ("client", "slow")

    @rule()
    def close(self) -> None:
        if not self.open():
            assert not self.pending.close()
        elif self.state == "waiting":
            with pytest.raises(RuntimeError):
                self.pending.close()
        elif self.pending.close():
            self.whole = True

    @precondition(lambda self: not self.returned)
    @rule()
    def application_returns(self) -> None:
        self.returned = True
        self.pending.begin()

    @precondition(lambda self: not self.returned)
    @rule(happens=rarely)
    def application_fails(self, happens: bool) -> None:
        if not happens:
            return
        was_waiting = self.state == "waiting" and self.open()
        assert self.pending.withdraw() == was_waiting
        if was_waiting:
            self.returned = True  # its handler answers, and holds the connection alone
        else:
            self.application_returns()

    # -- what the client and the server do

    @rule(room=st.sampled_from([0, 1, 30, 1000, 1 << 30]))
    def client_reads(self, room: int) -> None:
        if self.wire.room is not None:
            self.wire.room = room
            if self.host.wants_room and room and not self.host.fate:
                self.pending.on_events(EPOLLOUT)

    @rule()
    def client_sends_more(self) -> None:
        if not self.host.fate:
            self.pending.on_events(EPOLLIN)

    @rule(happens=rarely, resets=st.booleans())
    def client_leaves(self, happens: bool, resets: bool) -> None:
        if happens and not self.host.fate:
            self.left = True
            self.connection.reported |= HUNG_UP
            if resets:
                self.wire.room = None
            self.pending.on_events(EPOLLRDHUP | (0x18 if resets else 0))

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        before = self.host.heartbeats
        self.host.clock.now += seconds
        self.host.deadlines.tick()
        if self.host.heartbeats > before and self.pending.reason is None:
            self.content += HEARTBEAT[1] * (self.host.heartbeats - before)
        elif self.host.heartbeats > before:
            self.whole = False
        self.note_servers_answer()

    @rule(happens=rarely)
    def server_stops(self, happens: bool) -> None:
        if not happens:
            return
        self.host.stopping = True
        self.pending.stop()
        self.note_servers_answer()

    @rule()
    def callbacks_run(self) -> None:
        calls, self.host.calls = self.host.calls, []
        for function, pending in calls:
            function(pending)

    def note_servers_answer(self) -> None:
        if self.pending.reason in ("timeout", "shutdown") and self.state == "waiting":
            self.state, self.whole = "answered", True
            self.code = 504 if self.pending.reason == "timeout" else 503
            self.content = b"Gateway Timeout\n" if self.code == 504 else b"Service Unavailable\n"
        elif self.pending.reason == "shutdown" and self.state == "streaming":
            self.whole = True

    def too_late(self, call: Any, own: tuple[str, ...]) -> None:
        """An error if the application itself has ended it, False if others have."""
        if self.pending.reason in own:
            with pytest.raises(RuntimeError):
                call()
        else:
            assert call() is False

    # -- what holds always

    @invariant()
    def it_is_open_until_it_has_a_reason(self) -> None:
        assert self.pending.open == (self.pending.reason is None)
        if self.host.fate:
            assert not self.pending.open
            assert self.returned, "the connection is given away under the request greenlet"

    @invariant()
    def on_close_is_called_once_after_the_end(self) -> None:
        promised = sum(function.__name__ == "_tell_on_close" for function, _ in self.host.calls)
        assert len(self.ends) + promised == bool(self.host.fate)

    @invariant()
    def nothing_has_a_deadline_after_its_end(self) -> None:
        if self.host.fate:
            assert not self.pending.due
            assert not self.host.deadlines._slots

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert len(self.pending._outgoing) <= MAX_OUTGOING_BYTES + 500
        if self.pending._outgoing:
            assert self.host.wants_room

    @invariant()
    def it_does_not_linger_when_all_is_sent(self) -> None:
        if self.returned and self.pending.reason is not None and not self.pending._outgoing:
            assert self.host.fate
        if self.returned and self.left and self.pending.reason is None:
            raise AssertionError("a client that has left is still waited for")

    @invariant()
    def the_client_sees_one_response_and_no_more(self) -> None:
        if self.host.fate in ("kept", "closed") and self.whole:
            response, rest = parsed(self.wire.sent, "HEAD" if self.head else "GET")
            assert rest == b"", "bytes of another response"
            no_content = self.head or self.code in (204, 304)
            assert (response.status, response.read_content) == (  # type: ignore[attr-defined]
                self.code,
                b"" if no_content else self.content,
            )
            assert (response.getheader("Connection") == "close") <= (self.host.fate == "closed")

    def teardown(self) -> None:
        """Whatever has happened, the application comes to an end and the client reads all."""
        if not hasattr(self, "host"):
            return
        if not self.returned:
            self.application_returns()
        for _ in range(3):
            if self.open():
                self.close() if self.state == "streaming" else self.send("200 OK", b"at last")
            self.client_reads(1 << 30)
            self.note_servers_answer()
        assert self.host.fate
        self.callbacks_run()
        self.on_close_is_called_once_after_the_end()
        self.nothing_has_a_deadline_after_its_end()
        self.the_client_sees_one_response_and_no_more()


class _Source:
    """A socket for HTTPResponse that gives bytes and says what was not used."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def makefile(self, *_: Any) -> Any:
        file = self.file

        class Kept(io.BufferedReader):
            def close(self) -> None:
                pass

        return Kept(file)  # type: ignore[arg-type]


def parsed(data: bytes, method: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One response, and the bytes behind it."""
    source = _Source(data)
    response = http.client.HTTPResponse(source, method=method)  # type: ignore[arg-type]
    response.begin()
    file = response.fp
    response.read_content = response.read()  # type: ignore[attr-defined]
    return response, file.read()


Model.TestCase.settings = settings(
    max_examples=LONG or 50,
    stateful_step_count=40 if LONG else 12,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestPendingResponse = Model.TestCase


class Bench:
    """One pending response that has begun, on a wire and with a clock that we move."""

    def __init__(self, heartbeat: tuple[float, bytes] | None = None) -> None:
        self.wire = Wire()
        self.host = Host()
        connection = Connection(self.wire, ("client", 1))  # type: ignore[arg-type]
        self.pending = PendingResponse(self.host, connection, 0, timeout=0, heartbeat=heartbeat)
        self.pending.begin()
        self.pending.start("200 OK", [])

    def pass_time(self, seconds: float) -> None:
        self.host.clock.now += seconds
        self.host.deadlines.tick()


def test_a_heartbeat_comes_only_after_silence() -> None:
    bench = Bench((4.0, b"beat"))
    for _ in range(5):
        bench.pass_time(3)
        bench.pending.write(b"x")
    assert bench.host.heartbeats == 0
    bench.pass_time(3)
    assert bench.host.heartbeats == 0
    bench.pass_time(1.5)
    assert bench.host.heartbeats == 1
    assert bench.wire.sent.endswith(b"4\r\nbeat\r\n")
    bench.pass_time(3)
    bench.pass_time(1.5)
    assert bench.host.heartbeats == 2


def test_a_heartbeat_is_not_early_after_a_write_between_two_looks_at_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadlines, "GRAIN_S", 0.25)
    bench = Bench((4.0, b"beat"))
    bench.pass_time(0.25)
    bench.host.clock.now += 0.1875
    bench.pending.write(b"x")
    written = bench.host.clock.now
    bench.pass_time(0.0625)
    while not bench.host.heartbeats:
        bench.pass_time(0.25)
    assert 4.0 <= bench.host.clock.now - written <= 4.5


def test_a_client_is_slow_only_if_it_takes_nothing_for_the_write_timeout() -> None:
    bench = Bench((4.0, b"beat"))
    bench.wire.room = 0
    bench.pending.write(b"0123456789")
    for _ in range(5):  # one byte at a time is little, but not nothing
        bench.pass_time(4)
        bench.wire.room = 1
        bench.pending.on_events(EPOLLOUT)
        assert bench.pending.open
    bench.pass_time(7)
    assert bench.pending.reason == "slow"
    assert bench.host.fate == "lost"
    assert bench.host.heartbeats == 0


def test_a_client_that_reads_too_little_for_the_kernel_to_tell_is_not_slow() -> None:
    bench = Bench()
    bench.wire.room = 0
    bench.pending.write(b"0123456789")
    for _ in range(5):
        bench.wire.room = 1  # and nothing is reported
        bench.pass_time(7)
        assert bench.pending.open
    bench.pass_time(14)
    assert bench.pending.reason == "slow"


def test_without_a_write_timeout_no_heartbeat_makes_a_client_slow() -> None:
    bench = Bench((4.0, b"beat"))
    bench.host.write_timeout = 0
    bench.pending.write(b"x")
    bench.wire.room = 0
    bench.pending.write(b"0123456789")
    for _ in range(5):
        bench.pass_time(5)
    assert bench.pending.open
    assert bench.host.heartbeats == 0
    bench.wire.room = 1000
    bench.pending.on_events(EPOLLOUT)
    bench.pass_time(5)
    assert bench.host.heartbeats == 1


def test_a_client_that_shuts_its_side_while_it_reads_the_rest_gets_all_of_it() -> None:
    bench = Bench()
    bench.wire.room = 5
    bench.pending.write(b"0123456789")
    bench.pending.close()
    bench.pending.on_events(EPOLLRDHUP)
    assert bench.host.fate is None
    bench.wire.room = 1 << 20
    bench.pending.on_events(EPOLLOUT)
    assert bench.host.fate == "kept"
    assert bench.wire.sent.endswith(b"a\r\n0123456789\r\n0\r\n\r\n")
