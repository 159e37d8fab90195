from __future__ import annotations

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
    [("10.0.0.1", 5), ("10.0.0.1", 0), ("::1", 5, 0, 2), "", "/run/client.sock", b"\0abstract", None],
)
def test_a_connection_says_its_peer_as_accept_gave_it(address: Any) -> None:
    sock: Any = None
    assert Connection(sock, address).address == address
