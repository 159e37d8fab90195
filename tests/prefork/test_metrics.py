from __future__ import annotations

import os
import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from parked.prefork.counts import Statistics
from parked.prefork.metrics import WorkersCollector
from parked.prefork.scoreboard import COUNTERS, Scoreboard
from parked.server import KeepAliveWSGIServer
from tests.support import Client, serving


@pytest.fixture
def scoreboard() -> Scoreboard:
    board = Scoreboard()
    os.close(board.fd)  # its memory stays mapped
    return board


def scraped(server: KeepAliveWSGIServer, scoreboard: Scoreboard) -> dict[str, float]:
    """Series without labels, after a worker with this server has told its figures."""
    row = scoreboard.claim()
    assert row is not None
    scoreboard.update(row, Statistics().counters(server.figures()), dict.fromkeys(COUNTERS, 0))
    registry = CollectorRegistry()
    registry.register(WorkersCollector(scoreboard))  # type: ignore[arg-type]
    text = generate_latest(registry).decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


def test_what_the_server_refuses_and_where_it_fails_is_counted_for_the_operator(
    scoreboard: Scoreboard,
) -> None:
    with serving() as server:
        with Client(server) as client:
            client.send(b"nonsense\r\n\r\n")
            assert client.answer().status == 400
        server._on_fault("a test", RuntimeError("on purpose"))
        server.failed_handshakes += 2
        series = scraped(server, scoreboard)
    assert series["parked_refused_total"] == 1
    assert series["parked_faults_total"] == 1
    assert series["parked_failed_handshakes_total"] == 2
