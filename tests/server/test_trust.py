from __future__ import annotations

import pytest

from parked.server import trust
from parked.server.trust import TrustedPeers


@pytest.mark.parametrize(
    ("text", "peer", "trusted"),
    [
        ("192.0.2.1", ("192.0.2.1", 80), True),
        ("192.0.2.1", ("192.0.2.2", 80), False),
        ("192.0.2.1, 10.0.0.0/8", ("10.255.0.1", 80), True),
        ("2001:db8::/32", ("2001:db8::5", 80, 0, 0), True),
        ("2001:db8::/32", ("10.0.0.1", 80), False),
        ("10.0.0.0/8", ("::ffff:10.0.0.1", 80, 0, 0), True),
        ("::ffff:10.0.0.0/104", ("::ffff:10.9.0.1", 80, 0, 0), True),
        ("::ffff:10.0.0.1", ("10.0.0.1", 80), True),
        ("::ffff:10.0.0.1", ("::ffff:10.0.0.2", 80, 0, 0), False),
        ("*", ("192.0.2.1", 80), True),
        ("*", "", True),
        ("unix:", "", True),
        ("unix:", b"\0abstract", True),
        ("unix:", ("192.0.2.1", 80), False),
        ("127.0.0.1", "", False),
    ],
)
def test_a_peer_is_trusted_by_address_by_network_or_as_a_local_one(
    text: str, peer: object, trusted: bool
) -> None:
    peers = TrustedPeers(text)
    assert [peers.trusts(peer) for _ in range(2)] == [trusted] * 2


@pytest.mark.parametrize("text", ["10.0.0.1/8", "localhost", "10.0.0.0/33", "unix:/path"])
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"; addresses, networks, unix: and \* can be named$"):
        TrustedPeers(f"127.0.0.1,{text}")


def test_verdicts_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_REMEMBERED", 10)
    peers = TrustedPeers("10.0.0.0/30")
    verdicts = [peers.trusts((f"10.0.0.{number}", 1)) for number in range(100)]
    assert verdicts == [number < 4 for number in range(100)]
    assert len(peers._known) <= 10
