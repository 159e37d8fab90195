from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from parked.prefork import settings, sizing, worker
from parked.prefork.scoreboard import Scoreboard
from parked.server.server import KeepAliveWSGIServer
from tests.commands import free_port
from tests.support import Client, ServerProcess, eventually


@contextlib.contextmanager
def made(*arguments: str, nofile: int = 1000) -> Iterator[KeepAliveWSGIServer]:
    chosen = settings.load(arguments, {})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = worker.Place(listener, True, None)
        (server,) = worker.make_servers([place], lambda *_: [], chosen, nofile)
        yield server


@pytest.mark.parametrize(
    ("flag", "attribute"),
    [
        ("--idle-timeout", "parking.idle_timeout"),
        ("--header-timeout", "parking.header_timeout"),
        ("--body-timeout", "body_timeout"),
        ("--write-timeout", "write_timeout"),
        ("--limit-request-line", "limits.request_line_bytes"),
        ("--limit-header-bytes", "limits.header_bytes"),
        ("--limit-header-count", "limits.header_count"),
        ("--limit-body", "limits.body_bytes"),
        ("--limit-connections", "max_connections"),
        ("--limit-requests", "pool.size"),
    ],
)
def test_every_bound_reaches_the_server(flag: str, attribute: str) -> None:
    with made(flag, "123") as server:
        found: object = server
        for name in attribute.split("."):
            found = getattr(found, name)
        assert found == 123


def test_deadlines_are_spread_only_where_there_are_few_workers_for_the_cores() -> None:
    cpus = sizing.cpu_count()
    for workers, spreads in ((1, True), (worker.CROWDED * cpus, True), (worker.CROWDED * cpus + 1, False)):
        with made("--workers", str(workers)) as server:
            assert server.pending.deadlines.spreads is spreads


def test_without_a_bound_a_worker_takes_what_its_descriptors_allow() -> None:
    with made(nofile=1000) as server:
        assert server.max_connections == 1000 - 250
        assert server.pool is None


def test_requests_beyond_those_in_flight_wait_their_turn_and_their_connections_are_kept() -> None:
    flags = ("--app", "tests.apps:busiest", "--workers", "1", "--limit-requests", "2")
    with ServerProcess(*flags) as server:
        clients = [Client(server.address) for _ in range(10)]
        for _ in range(2):
            for client in clients:
                client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with gevent.Timeout(10):
                assert {client.answer().body for client in clients} <= {b"1", b"2"}
        for client in clients:
            client.__exit__()


def test_a_clock_that_is_set_back_in_a_request_freezes_no_figures(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    (tmp_path / "steps.py").write_text(
        "import time\nreal = time.time\n"
        "def app(environ, start_response):\n"
        "    earlier = real() - 3600\n"
        "    time.time = lambda: earlier\n"
        "    start_response('200 OK', [])\n"
        "    return [b'']\n"
    )
    port = free_port()

    def figure(name: str) -> float:
        with Client(("127.0.0.1", port)) as client:
            text = client.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").body.decode()
        found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    flags = ("--app", "steps:app", "--workers", "1", "--metrics", f"127.0.0.1:{port}")
    with ServerProcess(*flags, cwd=tmp_path) as server, Client(server.address) as client:
        for count in (1, 2, 3):
            client.ask()
            eventually(lambda count=count: figure("parked_request_seconds_count") == count)
        assert 0 <= figure("parked_request_seconds_sum") < 60


def test_a_number_that_cannot_be_stored_ends_nobody() -> None:
    board = Scoreboard()
    board.set(0, "accepted", -1)
    assert board.get(0, "accepted") == 0
