"""Who reaches a master: its own workers; and bytes that are no message."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
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
    stranger.send(Message("client_ready", "2.47.0", "stranger"))
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


def test_a_message_without_sense_does_not_end_who_hears_it() -> None:
    runner: Any = SimpleNamespace(clients={}, environment=SimpleNamespace())
    MasterRunner.handle_message(runner, "stranger", Message("stats", 7, "stranger"))
    MasterRunner.handle_message(runner, "stranger", Message("client_ready", [], "stranger"))
