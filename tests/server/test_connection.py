from __future__ import annotations

import _socket
import sys
from typing import Any

import pytest

from parked.server.connection import Connection, shared_address


def test_addresses_share_their_host() -> None:
    one = shared_address(("10.0.0." + str(1), 5))
    two = shared_address(("10.0.0." + str(1), 6))
    assert one == ("10.0.0.1", 5)
    assert one[0] is two[0]
    assert shared_address("") == ""


@pytest.mark.parametrize(
    "address",
    [
        ("10.0.0.1", 5),
        ("10.0.0.1", 65535),
        ("::1", 5, 0, 2),
        (3, 1 << 31),
        "",
        "/run/client.sock",
        b"\0abstract",
        None,
    ],
)
def test_a_connection_says_its_peer_as_accept_gave_it(address: Any) -> None:
    sock = _socket.socket()
    connection = Connection(sock, address)
    assert connection.address == address
    sock.close()
    assert connection.address == (address if not _is_inet(address) else (address[0], 0))


def _is_inet(address: Any) -> bool:
    return isinstance(address, tuple) and len(address) == 2 and isinstance(address[0], str)


def test_ports_are_the_connections_own_whatever_their_descriptors() -> None:
    sockets = [_socket.socket() for _ in range(40)]
    connections = [Connection(sock, ("10.0.0.1", 1000 + sock.fileno())) for sock in reversed(sockets)]
    for connection in connections:
        assert connection.address == ("10.0.0.1", 1000 + connection.sock.fileno())
    for sock in sockets:
        sock.close()


def test_a_connection_is_small() -> None:
    sock = _socket.socket()
    assert sys.getsizeof(Connection(sock, ("10.0.0.1", 5))) <= 80
    sock.close()
