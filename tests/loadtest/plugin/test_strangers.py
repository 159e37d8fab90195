"""Who reaches a master: its own workers; and bytes that are no message."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
import gevent.socket
import msgpack
import pytest
import zmq.green
from locust.exception import RPCReceiveError
from locust.rpc import zmqrpc
from locust.rpc.protocol import Message
from locust.runners import MasterRunner

from parked.loadtest.plugin import strangers
from parked.loadtest.terms import variables

strangers.keep_out()


def heard(server: zmqrpc.Server, within_s: float) -> Any:
    """The next message; None if there is none in time."""
    with gevent.Timeout(within_s, False):
        return server.recv_from_client()
    return None


def close(*ends: zmqrpc.BaseSocket) -> None:
    for end in ends:
        context = end.socket.context
        end.close(linger=0)
        gevent.sleep(0.05)  # who listens to the socket's events hears that it is closed
        context.term()


def test_only_who_has_the_runs_key_reaches_its_master(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variables.KEYS, b" ".join(zmq.green.curve_keypair()).decode())
    server = zmqrpc.Server("127.0.0.1", 0)
    worker = zmqrpc.Client("127.0.0.1", server.port, "worker")
    monkeypatch.delenv(variables.KEYS)
    stranger = zmqrpc.Client("127.0.0.1", server.port, "stranger")
    stranger.send(Message("quit", None, "stranger"))
    worker.send(Message("hello", None, "worker"))
    try:
        assert heard(server, 5.0)[0] == "worker"
        assert heard(server, 0.3) is None
        told = caplog.text
        assert told.count("a Locust worker of another test") == 1, told
        assert f"127.0.0.1:{server.port}" in told
        server.send_to_client(Message("hello", None, "worker"))
        assert worker.recv().type == "hello"
    finally:
        close(server, worker, stranger)


def test_a_worker_of_none_of_a_runs_hosts_is_named_and_not_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variables.EXPECT_HOSTS, "1")
    server = zmqrpc.Server("127.0.0.1", 0)
    stranger = zmqrpc.Client("127.0.0.1", server.port, "stranger")
    worker = zmqrpc.Client("127.0.0.1", server.port, "worker")
    for kind in ("client_ready", "stats", "exception", "parked_sample"):
        stranger.send(Message(kind, "2.47.0", "stranger"))
    monkeypatch.setenv(variables.HOST, "h1")
    worker.send(Message("client_ready", "2.47.0", "worker"))
    try:
        sender, message = heard(server, 5.0)
        assert (sender, message.type) == ("worker", "client_ready")
        assert heard(server, 0.3) is None
        assert "as stranger and is refused" in caplog.text
    finally:
        close(server, stranger, worker)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xff" * 100,
        msgpack.dumps(7),
        msgpack.dumps([1, 2]),
        msgpack.dumps([{}, {}, []]),
        msgpack.dumps(["a", {"__datetime__": True, "as_str": "never"}, "b"]),
        msgpack.dumps(["stats", {}, "stranger\x1b[2J"]),
        msgpack.dumps(["stats\n", {}, "stranger"]),
        msgpack.dumps(["stats", {}, "x" * 1000]),
    ],
    ids=range(10),
)
def test_bytes_that_are_no_message_are_an_error_that_locust_lives_with(data: bytes) -> None:
    server = zmqrpc.Server("127.0.0.1", 0)
    client = zmqrpc.Client("127.0.0.1", server.port, "stranger")
    try:
        client.socket.send(data)
        with pytest.raises(RPCReceiveError):
            heard(server, 5.0)
    finally:
        close(server, client)


@pytest.mark.parametrize("keys", [b"", b" ".join(zmq.green.curve_keypair())], ids=["no key", "a key"])
def test_a_message_that_says_to_be_very_long_is_not_waited_for(
    keys: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variables.KEYS, keys.decode())
    server = zmqrpc.Server("127.0.0.1", 0)
    # ZMTP 3.1 (RFC 37, 3): a greeting, then a frame of 64 bits' length. No key is asked for before that.
    mechanism = (b"CURVE" if keys else b"NULL").ljust(20, b"\0")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism + bytes(32)
    frame = b"\x06" + (strangers.LARGEST + 1).to_bytes(8, "big") + b"\x05READY"
    try:
        with gevent.socket.create_connection(("127.0.0.1", server.port), timeout=20.0) as stranger:
            stranger.sendall(greeting + frame)
            while stranger.recv(1000):  # its own greeting, then the end
                pass
    finally:
        close(server)


def test_a_flood_of_nonsense_leaves_time_for_others_and_is_logged_some_times() -> None:
    server = zmqrpc.Server("127.0.0.1", 0)
    client = zmqrpc.Client("127.0.0.1", server.port, "stranger")
    faults: list[Exception] = []
    for number in range(500):
        client.socket.send(b"\xc1" if number % 2 else msgpack.dumps([1, 2]))
    client.send(Message("hello", None, "stranger"))
    turns: list[int] = []

    def others() -> None:
        while True:
            turns.append(len(faults))
            gevent.sleep(0)

    beside = gevent.spawn(others)
    try:
        while True:
            try:
                assert heard(server, 20.0)[1].type == "hello"
                break
            except RPCReceiveError as error:
                faults.append(error)
        assert len(faults) == strangers.MOST_NAMED
        assert turns.count(strangers.MOST_NAMED) > 100
    finally:
        beside.kill()
        close(server, client)


def test_a_message_without_sense_does_not_end_who_hears_it() -> None:
    runner: Any = SimpleNamespace(clients={}, environment=SimpleNamespace())
    MasterRunner.handle_message(runner, "stranger", Message("stats", 7, "stranger"))
    MasterRunner.handle_message(runner, "stranger", Message("client_ready", [], "stranger"))
