"""Servers whose TLS comes so slowly that no wait for its next byte is ever too long."""

from __future__ import annotations

import time
from pathlib import Path

import gevent
import gevent.socket
import pytest

from parked.loadtest.client.connection import Connection
from parked.loadtest.client.errors import TimedOut
from parked.loadtest.client.readiness import Readiness
from tests.loadtest.client.test_connection import Opener, echo, trusting
from tests.loadtest.peers import Peer, Serve, Served, server_tls

PAUSE_S = 0.02


def dripping(port: int, is_slow: list[bool]) -> Serve:
    """Passes on what the server at that port sends, byte by byte once it is slow."""

    def relay(served: Served) -> None:
        with gevent.socket.create_connection(("127.0.0.1", port)) as onward:

            def back() -> None:
                while data := onward.recv(1 << 20):
                    for at in range(len(data)) if is_slow else ():
                        served.send(data[at : at + 1], pause_s=PAUSE_S)
                    if not is_slow:
                        served.send(data)

            answers = gevent.spawn(back)
            while data := served.sock.recv(1 << 20):
                onward.sendall(data)
            answers.kill()

    return relay


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture
def connect(readiness: Readiness) -> Opener:
    return Opener(readiness)


def test_a_handshake_that_drips_is_given_up(connect: Opener, certificates: Path) -> None:
    with (
        Peer(echo, tls=server_tls(certificates)) as peer,
        Peer(dripping(peer.port, [True])) as between,
        pytest.raises(TimedOut, match="connecting"),
    ):
        connect(between.port, tls_context=trusting(), server_hostname="127.0.0.1", timeout_s=0.2)


def test_a_record_that_drips_past_the_deadline_of_its_response_is_given_up(
    connect: Opener, certificates: Path
) -> None:
    is_slow: list[bool] = []
    with Peer(echo, tls=server_tls(certificates)) as peer, Peer(dripping(peer.port, is_slow)) as between:
        connection: Connection = connect(between.port, tls_context=trusting(), server_hostname="127.0.0.1")
        connection.send(b"hello", 5.0)
        assert connection.receive(5.0) == b"hello"
        is_slow.append(True)
        connection.send(b"x" * 2000, 5.0)
        with pytest.raises(TimedOut, match="whole response"):
            connection.receive(5.0, time.perf_counter() + 0.2)
        connection.close()
