"""Which local address a connection starts from.

A connection is told apart by its two addresses and two ports. Towards one server address and port, a source
address has only as many connections as it has ports: 65535 - 1024 + 1 = 64,512 at most, 28,232 with Linux'
default `ip_local_port_range`. So each worker binds addresses of its own.

Even fewer are cheap. connect() tries ports of one parity first, from a random one on, and once most of those
are taken it walks past the taken ones (`__inet_hash_connect` in the kernel's net/ipv4/inet_hashtables.c). A
worker therefore goes on to its next address when a quarter of an address's ports is in use.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

#: What a worker binds from if nothing else is said and the server is on loopback: 127.0.0.0/8 is local as a
#: whole, so no address need be added anywhere.
LOOPBACK_RANGE = "127.1.0.0/16"
#: Environment variable with a host's own range, for example 10.0.0.16/28. Not a command-line option: Locust
#: overwrites a worker's options with the master's, and the addresses differ from host to host.
RANGE_VARIABLE = "KEEPALIVE_SOURCE"
#: Addresses that belong to one worker, where the range is large enough.
ADDRESSES_A_WORKER = 16
#: Of an address's ports, the share that is used before the next address's turn.
PORT_SHARE = 4


class SourceAddresses:
    """Hands out a worker's source addresses."""

    def __init__(self, network: str, worker_index: int, connections_an_address: int) -> None:
        """
        :param network: address range, such as 127.1.0.0/16 or a single address.
        :param worker_index: Locust's number of the worker; its block of the range follows from it. A range
        with
            fewer blocks than workers is shared, which costs nothing but ports.
        :param connections_an_address: connections after which the next address follows.
        """
        try:
            # strict=False: 10.0.0.5/24 means the range that the address is in.
            self._network = ipaddress.ip_network(network, strict=False)
        except ValueError as error:
            raise ValueError(f"{RANGE_VARIABLE}: {error}") from None
        # The first and the last address of a larger IPv4 range are its network and broadcast address.
        margin = 1 if self._network.num_addresses > 2 else 0
        usable = self._network.num_addresses - 2 * margin
        self._block = min(ADDRESSES_A_WORKER, usable)
        self._first = margin + (max(worker_index, 0) % max(usable // self._block, 1)) * self._block
        self._connections_an_address = max(connections_an_address, 1)
        self._count = 0

    @classmethod
    def of_worker(cls, server_address: str, worker_index: int) -> SourceAddresses | None:
        """For connections to `server_address`; None if the kernel may choose the source.

        It does so for servers that are not on this machine's loopback, unless KEEPALIVE_SOURCE names a range.
        """
        network = os.environ.get(RANGE_VARIABLE, "")
        address = ipaddress.ip_address(server_address)
        if not network:
            if not (address.version == 4 and address.is_loopback):
                return None
            network = LOOPBACK_RANGE
        sources = cls(network, worker_index, local_ports() // PORT_SHARE)
        if sources._network.version != address.version:
            raise ValueError(
                f"{RANGE_VARIABLE}={network} is IPv{sources._network.version}, "
                f"the server's address IPv{address.version}"
            )
        return sources

    def next(self) -> str:
        """The address for one more connection."""
        index = (self._count // self._connections_an_address) % self._block
        self._count += 1
        return str(self._network[self._first + index])

    @property
    def used(self) -> str:
        """First and last address handed out so far, for reports."""
        last = min(max(self._count - 1, 0) // self._connections_an_address, self._block - 1)
        first_address, last_address = self._network[self._first], self._network[self._first + last]
        return str(first_address) if last == 0 else f"{first_address}-{last_address}"


def local_ports() -> int:
    """Number of ports that connect() chooses from (ip-sysctl.rst, ip_local_port_range)."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return last - first + 1
