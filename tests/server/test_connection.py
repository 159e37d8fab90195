from __future__ import annotations

from parked.server.connection import shared_address


def test_addresses_share_their_host() -> None:
    one = shared_address(("10.0.0." + str(1), 5))
    two = shared_address(("10.0.0." + str(1), 6))
    assert one == ("10.0.0.1", 5)
    assert one[0] is two[0]
    assert shared_address("") == ""
