from __future__ import annotations

import os
import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from parked.prefork import metrics
from parked.prefork.counts import Statistics
from parked.prefork.metrics import WorkersCollector
from parked.prefork.scoreboard import COUNTERS, Scoreboard
from parked.server import KeepAliveWSGIServer
from parked.shared import pauses
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


def test_memory_is_kept_of_workers_that_are_there_alone(
    scoreboard: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "memory_bytes", lambda pid: pid)
    collector = WorkersCollector(scoreboard)
    rows = [scoreboard.claim() or 0 for _ in range(4)]
    for pid in range(1, 401):  # a server that replaces its workers again and again
        scoreboard.set(rows[pid % 4], "ready", pid)
        list(collector.collect())
    assert sorted(collector._memory) == [397, 398, 399, 400]
    for row in rows[1:]:
        scoreboard.restart(row)
    list(collector.collect())
    assert list(collector._memory) == [400]


def test_the_help_says_how_often_the_loop_is_looked_at(scoreboard: Scoreboard) -> None:
    registry = CollectorRegistry()
    registry.register(WorkersCollector(scoreboard))  # type: ignore[arg-type]
    said = f"Lateness of the event loops, {round(1 / pauses.LOOK_S)} looks a second each."
    assert f"# HELP parked_loop_lag_seconds {said}" in generate_latest(registry).decode()
