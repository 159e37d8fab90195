from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from parked.server.disconnected import KEY, has_left
from tests.support import GET, Client, eventually, serving


def close(sock: socket.socket) -> None:
    sock.close()


def shut(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("leave", [close, shut, reset])
@pytest.mark.parametrize("unread", [b"", b"unread"])
def test_a_client_that_leaves_is_seen_whatever_it_has_sent(
    leave: Callable[[Any], None], unread: bytes
) -> None:
    told: list[bool] = []

    def waits(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        told.append(environ[KEY]())
        eventually(lambda: environ[KEY](), "it has left")
        told.append(True)
        start_response("200 OK", [])
        return []

    with serving(waits) as server:
        client = Client(server)
        client.send(GET + unread)
        eventually(lambda: told == [False])
        client.file.close()  # which would keep the socket open
        leave(client.sock)
        eventually(lambda: told == [False, True])
        client.sock.close()
        eventually(lambda: not server.parking.count)
        assert server.faults == 0


def test_one_that_waits_is_there_also_while_the_loop_does_not_turn() -> None:
    def answers(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [str(environ[KEY]()).encode()]

    with serving(answers) as server, Client(server) as client:
        for _ in range(3):
            assert client.ask().body == b"False"


def test_a_socket_that_is_closed_has_nobody() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not has_left(ours.fileno())
    assert has_left(ours.fileno())
    gevent.sleep(0)
