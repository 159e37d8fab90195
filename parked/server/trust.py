"""Peers whose word counts, be it in header fields or in front of a connection: addresses and networks."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

#: Stands for all peers, and for those of unix sockets, which have no address.
EVERYBODY: Final = "*"
LOCAL: Final = "unix:"
#: Verdicts that are remembered. Beyond it all are forgotten at once: a few microseconds for each peer.
MAX_REMEMBERED: Final = 10_000
#: RFC 4291, 2.5.5.2: those before an IPv4 address that is written as one of IPv6.
_MAPPED_BITS: Final = 96


class TrustedPeers:
    """Peers by address (192.0.2.1), by network (10.0.0.0/8, 2001:db8::/32), `unix:` or `*`.

    :param text: several of these with commas between them.
    :raises ValueError: one of them is none of these; in words that follow the text itself.
    """

    def __init__(self, text: str) -> None:
        names = [name.strip() for name in text.split(",")]
        self._everybody = EVERYBODY in names
        self._local = LOCAL in names
        self._networks = [_network(name) for name in names if name not in ("", EVERYBODY, LOCAL)]
        self._known: dict[str, bool] = {}

    def trusts(self, peer: Any) -> bool:
        """Whether it is one of them.

        :param peer: its address, as accept() gives it.
        """
        if self._everybody:
            return True
        return self.trusts_host(peer[0]) if isinstance(peer, tuple) else self._local

    def trusts_host(self, host: str) -> bool:
        """Whether an IP address is one of those that are named; `*` is for who connects, and names nobody."""
        known = self._known.get(host)
        if known is None:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            address = plain(ip_address(host))
            known = self._known[host] = any(address in network for network in self._networks)
        return known


def plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address, where an IPv6 socket says it as ::ffff:192.0.2.1 (RFC 4291, 2.5.5.2)."""
    return getattr(address, "ipv4_mapped", None) or address


def _network(name: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(name)
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= _MAPPED_BITS:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
        return network
    except ValueError as error:
        raise ValueError(f"{error}; addresses, networks, {LOCAL} and {EVERYBODY} can be named") from None
