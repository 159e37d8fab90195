"""The server's own counts: read from a real one, and what is no such server is told in one line."""

from __future__ import annotations

import http.client
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path

import gevent
import pytest

from parked.loadtest.master import server_metrics
from parked.loadtest.master.server_metrics import COLUMNS, NoMetrics, ServerMetrics, parse
from tests.commands import free_port
from tests.loadtest.peers import Peer, Served
from tests.loadtest.runs import PROJECT

TEXT = """\
# HELP parked_connections Client connections.
# TYPE parked_connections gauge
parked_connections{state="open"} 2000.0
parked_connections{state="idle"} 1990.0
parked_accepted_total 2005.0
parked_requests_total{status="200"} 1.5e+03
parked_requests_total{status="400"} 2.0
parked_request_seconds_bucket{le="+Inf"} 1502.0
parked_sent_bytes_total 9e+06
parked_gc_pause_seconds_sum 0.25
parked_gc_pause_longest_seconds 0.003
parked_loop_lag_longest_seconds 0.0204
"""


def test_a_page_becomes_cells() -> None:
    cells = parse(TEXT, 1_700_000_000.5).columns
    assert tuple(cells) == COLUMNS
    assert cells == {
        "server_counted_unix_s": 1_700_000_000.5,
        "server_connections": 2000,
        "server_accepted_total": 2005,
        "server_requests_total": 1502,
        "server_sent_bytes_total": 9_000_000,
        "server_loop_lag_max_ms": 20.4,
        "server_gc_pause_max_ms": 3.0,
        "server_pending": None,
        "server_messages_total": None,
    }


def test_counts_are_from_the_runs_begin_on_and_levels_are_as_they_are() -> None:
    reading = parse(TEXT, 2.0)
    since = parse(TEXT.replace("1.5e+03", "1600"), 3.0).since(reading)
    assert (since.requests, since.accepted, since.connections, since.gc_pause_s) == (100, 0, 2000, 0.0)


def test_what_a_server_does_not_tell_is_unknown() -> None:
    reading = parse('parked_requests_total{status="200"} 7\n', 1.0)
    assert (reading.requests, reading.connections, reading.loop_lag_max_s) == (7, None, None)
    assert reading.since(reading).columns["server_connections"] is None


@pytest.mark.parametrize("text", ["", "<html>", "other_metric 1\n", "parked_accepted_total many\n"])
def test_another_page_is_refused(text: str) -> None:
    with pytest.raises(NoMetrics):
        parse(text, 1.0)


def test_who_does_not_answer_is_told_once_and_is_no_witness(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    nobody = ServerMetrics(f"127.0.0.1:{free_port()}")
    for metrics in (nobody, ServerMetrics(f"unix:{tmp_path}/none")):
        with pytest.raises(NoMetrics):
            metrics.read()
        with caplog.at_level(logging.WARNING):
            metrics._look()
            metrics._look()
        assert metrics.latest is None
    assert len([record for record in caplog.records if record.name == server_metrics.__name__]) == 2


def test_a_reading_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = ServerMetrics("127.0.0.1:1")
    metrics._latest = parse(TEXT, 100.0)
    monkeypatch.setattr(server_metrics, "unix_time_s", lambda: 104.0)
    assert metrics.latest is not None
    monkeypatch.setattr(server_metrics, "unix_time_s", lambda: 106.0)
    assert metrics.latest is None


def test_a_real_server_tells_what_it_has_answered_and_at_the_end_once_it_has_counted_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app", "--bind", f"127.0.0.1:{port}", "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--metrics", f"unix:{tmp_path}/m"], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    metrics = ServerMetrics(f"unix:{tmp_path}/m")
    try:
        assert server.stdout is not None
        assert "listening" in server.stdout.readline()
        with gevent.Timeout(20):
            while metrics.latest is None:
                metrics._look()
                gevent.sleep(0.05)
        metrics.begin()
        client = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(3):
            client.request("GET", "/?length=1000")
            client.getresponse().read()
        # A reading while the worker tells its counts has some of before and some of after.
        with gevent.Timeout(20):
            while metrics.latest.connections != 1:
                metrics._look()
                gevent.sleep(0.05)
        metrics.settle(3)
        now = metrics.since_begin
        assert now is not None
        assert (now.connections, now.accepted, now.requests) == (1, 1, 3)
        assert now.sent_bytes is not None
        assert 3000 < now.sent_bytes < 4000
        assert now.loop_lag_max_s is not None
        client.close()
        monkeypatch.setattr(server_metrics, "SETTLED_S", 60.0)
        monkeypatch.setattr(server_metrics, "SETTLE_MOST_S", 60.0)
        closed = time.monotonic()
        metrics.settle(3)
        assert time.monotonic() - closed < 50, (
            "it tells of no connection and of all answers: no more will come"
        )
        assert metrics.since_begin is not None
        assert metrics.since_begin.connections == 0
    finally:
        metrics.stop()
        server.terminate()
        server.wait(20)
    assert list(tmp_path.iterdir()) == [], "it takes its socket away"


@pytest.mark.parametrize(
    "text",
    [
        "parked_accepted_total NaN\n",
        "parked_accepted_total +Inf\n",
        "parked_accepted_total -1\n",
        "parked_accepted_total 1e300\n",
        "parked_accepted_total\n",
        'parked_requests_total{status="2 1\n',
        "parked_" + "{" * 4000 + "\n",
        "parked_accepted_total 1 " + "9" * 4000 + "\n",
        ("parked_accepted_total{" + 'a="b",' * 600 + "} 1\n") * 200,
    ],
    ids=range(9),
)
def test_a_value_that_makes_no_sense_is_no_metrics(text: str) -> None:
    with pytest.raises(NoMetrics):
        parse(TEXT + text, 1.0)


def test_a_long_hostile_page_takes_no_longer_than_its_length_asks_for() -> None:
    line = "parked_" + "a" * 4_000 + "{" * 80
    for text in (line * 500, (line + "\n") * 900, "x" * (4 << 20)):
        began = time.process_time()
        with pytest.raises(NoMetrics):
            parse(text, 1.0)
        assert time.process_time() - began < 5


@pytest.mark.parametrize("endless", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: ", b""])
def test_who_drips_for_ever_is_left_in_time(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "PATIENCE_S", 0.3)

    def drip(served: Served) -> None:
        served.read_request()
        served.sock.sendall(endless)
        while True:
            served.sock.sendall(b"x")
            gevent.sleep(0.01)

    with Peer(drip) as peer:
        address = f"127.0.0.1:{peer.port}"
        for read in (ServerMetrics(address).read, lambda: server_metrics.ask(address)):
            with pytest.raises(NoMetrics, match=r"within 0\.3 s"):
                read()


def test_a_page_without_an_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def flood(served: Served) -> None:
        served.read_request()
        served.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            served.sock.sendall(b"x" * 65536)

    with Peer(flood) as peer, pytest.raises(NoMetrics, match="more than 4 MiB"):
        ServerMetrics(f"127.0.0.1:{peer.port}").read()


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100, "chunks"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100 + b"HTTP/1.1 200 OK\r\n\r\n", "no response"),
    ],
    ids=["chunks", "interim responses"],
)
def test_a_page_in_very_many_pieces_is_not_put_together(page: bytes, why: str) -> None:
    """4 MB in such as hold a byte would keep the master for seconds, each second."""

    def serve(served: Served) -> None:
        served.read_request()
        served.sock.sendall(page)

    with Peer(serve) as peer, pytest.raises(NoMetrics, match=why):
        ServerMetrics(f"127.0.0.1:{peer.port}").read()
