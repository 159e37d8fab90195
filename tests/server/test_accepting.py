from __future__ import annotations

import _socket
import contextlib
import errno
import io
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.pool import Pool

from parked.server import accepting
from parked.server.handler import KeepAliveWSGIHandler
from parked.server.server import KeepAliveWSGIServer
from tests.support import GET, PATIENCE_S, Client, eventually, hello, serving

#: An interval that no test sees the end of.
FAR_S = 3600.0


def test_servers_and_jobs_that_share_a_full_pool_wait_for_each_other_and_go_on() -> None:
    pool = Pool(2)
    release = gevent.event.Event()

    def block(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/block":
            release.wait()
        return hello(environ, start_response)

    with serving(block, spawn=pool) as one, serving(block, spawn=pool) as other:
        with Client(one) as first, Client(other) as second, Client(one) as third:
            for client in (first, second):
                assert client.ask().status == 200
            jobs = [pool.spawn(gevent.sleep, 0.05) for _ in range(4)]  # more than there is room for
            first.send(GET.replace(b"/ ", b"/block "))
            second.send(GET)
            assert second.answer().status == 200
            gevent.joinall(jobs, timeout=5)
            assert all(job.ready() for job in jobs)
            release.set()
            assert first.answer().status == third.ask().status == 200
        assert one.faults == other.faults == 0


def test_an_event_for_a_descriptor_that_nobody_knows_changes_nothing() -> None:
    ours, theirs = gevent.socket.socketpair()
    with serving() as server, Client(server) as client:
        assert client.ask().status == 200
        server.parking._epoll.register(ours.fileno(), 1)
        theirs.send(b"x")
        gevent.sleep(0.02)
        assert client.ask().status == 200
        with Client(server) as other:
            assert other.ask().status == 200
    ours.close()
    theirs.close()


@pytest.mark.parametrize("method", ["_on_events", "tick", "_expire"])
def test_whatever_raises_in_the_hub_is_counted_and_said_and_ends_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = io.StringIO()
    with serving(error_log=log, header_timeout=0.1) as server, Client(server) as client:
        assert client.ask().status == 200
        usual = getattr(server.parking, method)
        failing = True

        def fail() -> None:
            if failing:
                raise KeyError("deliberate")
            usual()

        server.parking._watcher.stop()
        monkeypatch.setattr(server.parking, method, fail)
        server.parking._watcher.start(server.parking.guarded("test", server.parking._on_events))
        server.parking._timer.again(server.parking.guarded("test", server.parking.tick))
        if method == "_expire":
            client.send(GET[:5])
            server.parking._expiry.start(server.parking.guarded("test", server.parking._expire))
        else:
            client.send(GET)
        eventually(lambda: server.faults)
        failing = False
        eventually(lambda: "fault in test: KeyError: 'deliberate'" in log.getvalue())
        with Client(server) as other:
            assert other.ask().status == 200


def test_a_callback_that_fails_for_one_connection_costs_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    with serving(error_log=log, header_timeout=0.1) as server, Client(server) as good, Client(server) as bad:
        assert good.ask().status == 200
        monkeypatch.setattr(accepting, "error_response", lambda status: 1 / 0)
        monkeypatch.setattr(server.parking, "_on_header_timeout", lambda connection: 1 / 0)
        bad.send(GET[:9])
        assert bad.closed()
        assert good.ask().status == 200
        assert server.faults == 1
    assert "ZeroDivisionError" in log.getvalue()


def test_a_failure_of_one_connection_is_no_reason_to_close_the_listener(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(error_log=None) as server, Client(server) as first:
        assert first.ask().status == 200
        add = server.parking.add
        failures = [OSError(errno.EBADF, "gone"), MemoryError(), ValueError("odd")]

        def fail(connection: Any) -> None:
            if failures:
                raise failures.pop()
            add(connection)

        monkeypatch.setattr(server.parking, "add", fail)
        for _ in range(3):
            with Client(server) as lost:
                assert lost.closed()
        with Client(server) as second:
            assert second.ask().status == 200
        assert first.ask().status == 200


def test_whether_to_go_on_without_memory_is_left_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    with serving(error_log=None) as server:
        monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda _, kind, *__: told.append(kind))
        server._on_fault("fetching events", MemoryError())
        assert server.faults == 1
    assert told == [MemoryError]


def test_a_failure_of_accepting_itself_is_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    with serving(error_log=log) as server:
        usual = server._accept
        failures = [KeyError("deliberate")]

        def fail() -> None:
            if failures:
                raise failures.pop()
            usual()

        monkeypatch.setattr(server, "_accept", fail)
        with Client(server) as client:
            assert client.ask().status == 200
        assert server.faults == 1
    assert "fault in accepting: KeyError: 'deliberate'" in log.getvalue()


def test_a_client_for_whom_there_is_no_room_after_its_handshake_is_closed_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = io.StringIO()
    with serving(error_log=log, proxy_protocol="v1") as server:
        with monkeypatch.context() as patch, Client(server) as lost:
            patch.setattr(server.parking, "add", lambda connection: 1 / 0)
            lost.send(b"PROXY UNKNOWN\r\n")
            assert lost.closed()
        assert (server.rejected, server.faults) == (1, 0)
        with Client(server) as client:
            assert client.ask(b"PROXY UNKNOWN\r\n" + GET).status == 200
    assert "accepting paused at 0 connections: ZeroDivisionError" in log.getvalue()


def test_no_answer_waits_for_the_acknowledgement_of_another() -> None:
    with serving() as server, Client(server) as client:
        assert client.ask().status == 200
        (connection,) = server.parking.connections()
        sock = connection.sock
        assert isinstance(sock, _socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_who_is_in_the_queue_of_a_server_that_retires_is_served_once_more() -> None:
    with serving() as server:
        address = ("127.0.0.1", server.server_port)
        queued = [_socket.socket() for _ in range(3)]  # C's own: the hub has no turn meanwhile
        for sock in queued:
            sock.connect(address)
        assert server.accepted == 0
        server.max_accept = 1  # at a time, and there are more
        server.retire()
        assert server.accepted == 3
        for sock in queued:
            with gevent.socket.socket(fileno=sock.detach()) as client:
                client.settimeout(PATIENCE_S)
                client.sendall(GET)
                assert b"Connection: close" in client.recv(65536)
        assert server.drained.wait(PATIENCE_S)


@contextlib.contextmanager
def opened(server: KeepAliveWSGIServer, count: int) -> Iterator[None]:
    """Connections of which nobody but the kernel knows."""
    with contextlib.ExitStack() as sockets:
        for _ in range(count):
            sock = _socket.socket()
            sockets.callback(sock.close)
            sock.connect(("127.0.0.1", server.server_port))
        yield


@contextlib.contextmanager
def own_queue(places: int) -> Iterator[Any]:
    """A listening socket that is one worker's, as those at one address of several workers are."""
    with gevent.socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(places)
        yield listener


class Intervals:
    """Says at what intervals a server may look for new connections."""

    def __init__(self, server: KeepAliveWSGIServer) -> None:
        self._parking = server.parking
        self._window_s = 0.0
        server.parking._timer.stop()  # the only ticks are ours
        moderation = server.parking._moderation
        moderation.look = lambda *_: self._window_s  # type: ignore[method-assign]
        moderation.look_at_new = moderation.look  # type: ignore[method-assign]

    def set(self, window_s: float, looks: int = 2) -> None:
        self._window_s = window_s
        for _ in range(looks):  # at the second one, nothing has come since the first
            self._parking.tick()


def test_where_events_are_fetched_at_intervals_new_connections_are_taken_at_these_too() -> None:
    with own_queue(64) as listener, serving(listener=listener) as server, Client(server) as client:
        assert client.ask().status == 200
        server.max_accept = 2  # when they are taken as they come
        intervals = Intervals(server)
        intervals.set(FAR_S)
        with opened(server, 3):
            gevent.sleep(0.05)
            assert server.accepted == 1
            intervals.set(0.01)
            eventually(lambda: server.accepted > 1)
            assert server.accepted == 4, "all at once"
        server.stop_accepting()
        intervals.set(FAR_S)
        assert server._watcher is None, "who has stopped accepting has stopped"
        server.start_accepting()
        intervals.set(FAR_S)
        with opened(server, 3):
            gevent.sleep(0.05)
            assert server.accepted == 4
            intervals.set(0.0)
            eventually(lambda: server.accepted == 7)


def test_as_many_as_fill_a_part_of_the_queue_do_not_wait_in_it() -> None:
    with own_queue(16) as listener, serving(listener=listener) as server, Client(server) as client:
        assert client.ask().status == 200
        intervals = Intervals(server)
        intervals.set(0.0)
        with opened(server, 2):
            eventually(lambda: server.accepted == 3)
            intervals.set(FAR_S, looks=1)  # as if two more came in a second, which FAR_S has many of
            with opened(server, 1):
                eventually(lambda: server.accepted == 4)
        intervals.set(FAR_S)
        with opened(server, 1):
            gevent.sleep(0.05)
            assert server.accepted == 4


def test_nobody_waits_for_a_handshake() -> None:
    options = {"proxy_protocol": "v1", "proxy_allow_from": "127.0.0.1", "listener": None}
    with own_queue(64) as options["listener"], serving(**options) as server, Client(server) as client:
        client.send(b"PROXY UNKNOWN\r\n")
        assert client.ask().status == 200
        Intervals(server).set(FAR_S)
        with opened(server, 1):
            eventually(lambda: server.accepted == 2)


def test_who_is_in_the_queue_or_has_asked_is_answered_before_a_server_stops() -> None:
    with own_queue(64) as listener, serving(listener=listener) as server, Client(server) as known:
        assert known.ask().status == 200
        intervals = Intervals(server)
        intervals.set(FAR_S)
        known.send(GET)
        with Client(server) as queued:
            queued.send(GET)
            gevent.sleep(0.02)
            assert server.accepted == 1
            stop = gevent.spawn(server.drain, PATIENCE_S)
            assert known.answer().status == queued.answer().status == 200
            intervals.set(0.0)
        known.file.close()
        known.sock.close()
        assert stop.get()
        assert server.faults == 0


def test_who_are_more_than_an_interval_should_bring_are_taken_as_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "ACCEPTS_AN_INTERVAL", 2)
    with own_queue(64) as listener, serving(listener=listener) as server, Client(server) as client:
        assert client.ask().status == 200
        intervals = Intervals(server)
        intervals.set(0.05)
        with opened(server, 5):
            eventually(lambda: server.accepted == 6)
            assert server._interval_s == 0.0
            intervals.set(0.05)
            assert server._interval_s == 0.05


@pytest.mark.parametrize("own", [False, True])
def test_a_queue_that_others_accept_from_too_is_looked_at_as_connections_come(own: bool) -> None:
    """Whoever looks first would take all that came to all of them."""
    with contextlib.ExitStack() as stack:
        options = {"listener": stack.enter_context(own_queue(64))} if own else {}
        server = stack.enter_context(serving(**options))
        client = stack.enter_context(Client(server))
        assert client.ask().status == 200
        server.max_accept = 1  # as pywsgi does with several processes
        Intervals(server).set(FAR_S)
        with opened(server, 3):
            eventually(lambda: server.accepted == 4)


def test_no_client_gets_the_place_of_a_standard_error_that_was_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or it would read what is written there."""
    places: list[int] = []
    usual = accepting._moved

    def moved(fd: int) -> int:
        places.append(fd)
        return usual(fd)

    with serving() as server, Client(server) as client:
        assert client.ask().status == 200
        highest = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir()) + 2  # the next one is below
        monkeypatch.setattr(accepting, "_STDERR", highest)
        monkeypatch.setattr(accepting, "_moved", moved)
        with Client(server) as other:
            assert other.ask().status == 200
            assert max(c.sock.fileno() for c in server.parking.connections()) > highest
            (place,) = places
            os.write(place, b"a line\n")
            assert other.ask().status == 200
        os.close(place)


def test_a_server_that_overrides_handle_is_asked_and_announced() -> None:
    seen: list[Any] = []

    class Own(KeepAliveWSGIServer):
        def handle(self, sock: Any, address: Any) -> None:
            seen.append(address)
            super().handle(sock, address)

    log = io.StringIO()
    server = Own(("127.0.0.1", 0), hello, log=None, error_log=log, environ={"SERVER_NAME": "test"})
    server.start()
    try:
        with Client(server) as client:
            assert client.ask().status == client.ask().status == 200
            assert seen == [client.sock.getsockname()]
    finally:
        server.stop()
    assert "Own reads its connections itself: one greenlet per connection" in log.getvalue()


# -- what is said


def test_refusals_are_in_the_access_log_and_their_reasons_in_the_other() -> None:
    log, errors = io.StringIO(), io.StringIO()
    with serving(log=log, error_log=errors, header_timeout=0.3, max_connections=2) as server:
        for request, status in [
            (b"nonsense\r\n\r\n", 400),
            (GET.replace(b"Host: test", b"Host: a\r\nHost: b"), 400),
            (GET.replace(b"/ ", b"/" + b"x" * 9000 + b" "), 414),
            (GET[:9], 408),
        ]:
            with Client(server) as client:
                client.send(request)
                answer = client.answer()
                assert answer.status == status
                assert answer.headers["Date"]
        eventually(lambda: server.parking.count == 0)
        held = [Client(server), Client(server)]
        assert held[0].ask().status == held[1].ask().status == 200
        with Client(server) as client:
            assert client.answer().status == 503
        for client in held:
            client.__exit__()
    lines = log.getvalue().splitlines()
    assert [line.split('" ')[1][:3] for line in lines] == ["400", "400", "414", "408", "200", "200", "503"]
    assert '"nonsense"' in lines[0]
    assert "refused with 400: 127.0.0.1: malformed request line" in errors.getvalue()
    assert "refused with 408: 127.0.0.1: the request head is not complete" in errors.getvalue()
    assert "refused with 503: 127.0.0.1: all connections are taken" in errors.getvalue()


def test_a_refused_line_cannot_write_lines_of_its_own_into_the_log() -> None:
    log = io.StringIO()
    with serving(log=log, error_log=None) as server, Client(server) as client:
        client.send(b"GET /\x1b[2J\xff\nINJECTED HTTP/1.1\r\n\r\n")
        assert client.answer().status == 400
    assert log.getvalue().count("\n") == 1
    assert "\x1b" not in log.getvalue()


def test_with_a_logger_refusals_have_a_level_of_their_own() -> None:
    records: list[logging.LogRecord] = []
    logger = logging.Logger("test")
    logger.addHandler(handler := logging.Handler())
    handler.emit = records.append  # type: ignore[method-assign]
    with serving(error_log=logger) as server, Client(server) as client:
        client.send(b"nonsense\r\n\r\n")
        client.answer()
    assert [record.levelno for record in records] == [logging.WARNING]


class Broken:
    """A log on a full disk."""

    def write(self, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_nothing_changes_for_a_client_when_no_line_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.errors"].write("words\n")
        if environ["PATH_INFO"] == "/fail":
            raise KeyError("deliberate")
        if environ["PATH_INFO"] == "/nothing":
            return [b""]
        return hello(environ, start_response)

    hub = gevent.get_hub()
    hub.exception_stream = Broken()
    try:
        with serving(fails, log=Broken(), error_log=Broken(), header_timeout=0.2) as server:
            for path, status in [(b"/", 200), (b"/fail", 500), (b"/nothing", 500)]:
                with Client(server) as client:
                    assert client.ask(GET.replace(b"/ ", path + b" ")).status == status
                    if status == 500:
                        assert client.closed()
            for request, status in [(b"nonsense\r\n\r\n", 400), (GET[:9], 408)]:
                with Client(server) as client:
                    assert client.ask(request).status == status
            eventually(lambda: server.parking.count == 0)
            assert server.error_log.lost >= 3
            assert server.log.lost == 5  # one for each request
    finally:
        del hub.exception_stream


def test_a_handler_whose_log_line_fails_loses_the_line_only() -> None:
    class Own(KeepAliveWSGIHandler):
        def format_request(self) -> str:
            raise KeyError("deliberate")

    with serving(handler_class=Own, log=io.StringIO(), error_log=None) as server, Client(server) as client:
        assert client.ask().status == client.ask().status == 200
        assert client.ask(b"nonsense\r\n\r\n").status == 400


HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"


def test_who_is_in_its_handshake_is_waited_for_by_a_server_that_retires() -> None:
    release = gevent.event.Event()

    def wait(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        release.wait(PATIENCE_S)
        return hello(environ, start_response)

    with serving(wait, proxy_protocol="v1", proxy_allow_from="127.0.0.1") as server, Client(server) as client:
        eventually(lambda: server._outside)
        server.retire()
        assert not server.drained.is_set()
        client.send(HEADER)
        eventually(lambda: server.parking.count)
        assert not server.drained.is_set()
        client.send(GET)
        eventually(lambda: server.active)
        gevent.sleep(0.02)
        assert not server.drained.is_set()
        release.set()
        assert client.answer().status == 200
        assert server.drained.wait(PATIENCE_S)


def test_a_server_that_is_started_again_stays_open_without_a_connection() -> None:
    with serving() as server:
        server.stop()
        server.start()
        for _ in range(2):
            with Client(server) as client:
                assert client.ask().status == 200
            eventually(lambda: server.parking.count == 0)
            assert server.parking._epoll is not None


def test_the_childs_handshakes_are_none_of_the_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(proxy_protocol="v1", proxy_allow_from="127.0.0.1") as server, Client(server) as client:
        eventually(lambda: server._outside == 1)
        monkeypatch.setattr(accepting.os, "getpid", lambda: 1)
        server._outside = 0  # as in a child
        client.__exit__()
        eventually(lambda: server.failed_handshakes)
        assert server._outside == 0


def test_refused_clients_that_linger_take_nobodys_place() -> None:
    with (
        serving(max_connections=3, error_log=None) as server,
        serving(max_connections=3, error_log=None) as other,
    ):
        server.beside, other.beside = [other], [server]
        for busy in (server, other):  # one after the other full
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(Client(busy)) for _ in range(3)]
                assert [client.ask().status for client in clients] == [200] * 3
                refused = [stack.enter_context(Client(one)) for one in (server, other) for _ in range(30)]
                eventually(lambda: server.rejected + other.rejected >= len(refused))  # noqa: B023
                lingering = server.parking.count + other.parking.count - 3
                assert lingering <= accepting.MAX_REFUSED_LINGERING
                for client in clients:
                    client.__exit__()
                eventually(lambda: server._held() == 0)
                with Client(other) as newcomer:
                    assert newcomer.ask().status == 200
            eventually(lambda: server.parking.count + other.parking.count == 0)
            server.rejected = other.rejected = 0


def test_a_pool_that_is_set_later_bounds_the_requests_from_then_on() -> None:
    at_once: list[int] = []
    running = 0

    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        nonlocal running
        running += 1
        at_once.append(running)
        gevent.sleep(0.02)
        running -= 1
        return hello(environ, start_response)

    with serving(slow) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(4)]
        for most in (4, 1):
            for client in clients:
                client.send(GET)
            assert [client.answer().status for client in clients] == [200] * 4
            assert max(at_once) == most
            at_once.clear()
            server.set_spawn(Pool(1))


def test_a_handler_that_logs_in_its_own_way_needs_no_log() -> None:
    logged: list[tuple[Any, bool, float]] = []

    class Own(KeepAliveWSGIHandler):
        def log_request(self) -> None:
            logged.append((self.code, self.time_start > 1e9, self.time_finish - self.time_start))

    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        gevent.sleep(0.03)
        return hello(environ, start_response)

    with serving(slow, handler_class=Own, log=None, error_log=None) as server, Client(server) as client:
        assert client.ask().status == 200
        assert client.ask(b"nonsense\r\n\r\n").status == 400
    (answered, refused) = logged
    assert answered[:2] == (200, True)
    assert answered[2] >= 0.03
    assert refused[:2] == (400, True)
