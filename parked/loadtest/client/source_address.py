"""Which local address a connection starts from.

A connection is told apart by its two addresses and two ports. Towards one server address and port, a source
address has only as many connections as it has ports: 65535 - 1024 + 1 = 64,512 at most, 28,232 with Linux'
default `ip_local_port_range`. So each worker binds addresses of its own.

Even fewer are cheap. connect() tries ports of one parity first, from a random one on, and once most of those
are taken it walks past the taken ones (`__inet_hash_connect` in the kernel's net/ipv4/inet_hashtables.c). A
worker therefore goes on to its next address when a quarter of an address's ports is in use.

On loopback there are addresses enough for each worker to have its own. The few of a real interface are
shared by all workers of the host, so each worker goes round all of them, connection by connection, and every
address gets its even part. Each server address and port is counted by itself.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import psutil

from parked.loadtest.terms import variables

#: What a worker binds from if nothing else is said and the server is on loopback: 127.0.0.0/8 is local as a
#: whole, so no address need be added anywhere.
LOOPBACK_RANGE = "127.1.0.0/16"
#: What sysconfig/addresses puts behind the interface's name in the label of each address that it adds.
LABEL = ":keep"
#: Addresses that belong to one worker, where the range is large enough.
ADDRESSES_A_WORKER = 16
#: Of an address's ports, the share that is used before the next address's turn.
PORT_SHARE = 4

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SourceAddresses:
    """Hands out a worker's source addresses."""

    def __init__(self, ranges: str, worker_index: int, connections_an_address: int) -> None:
        """
        :param ranges: addresses or ranges with commas between, such as 127.1.0.0/16.
        :param worker_index: Locust's number of the worker; its block of the ranges follows from it. Ranges
            with fewer blocks than workers are shared, which costs nothing but ports.
        :param connections_an_address: connections after which the next address follows.
        """
        spans = [_usable(network) for network in parse(ranges)]
        usable = sum(count for _, count in spans)
        block = usable if usable < 2 * ADDRESSES_A_WORKER else ADDRESSES_A_WORKER
        first = (max(worker_index, 0) % (usable // block)) * block
        self._addresses = [_at(spans, first + place) for place in range(block)]
        self._connections_an_address = max(connections_an_address, 1)
        self._count = 0

    @classmethod
    def of_worker(cls, server_address: str, worker_index: int) -> SourceAddresses | None:
        """For connections to `server_address`; None if the kernel may choose the source.

        It does so for servers that are not on this machine's loopback, unless PARKED_SOURCE names ranges
        or the interface has addresses that sysconfig/addresses gave it.
        """
        address = ipaddress.ip_address(server_address)
        named = os.environ.get(variables.SOURCE, "")
        if named:
            other = next((net for net in parse(named) if net.version != address.version), None)
            if other is not None:
                raise ValueError(
                    f"{variables.SOURCE}={named} has IPv{other.version}, "
                    f"the server's address is IPv{address.version}"
                )
        elif address.version == 4 and address.is_loopback:
            return cls(LOOPBACK_RANGE, worker_index, local_ports() // PORT_SHARE)
        ranges = named or ",".join(of_interface(server_address))
        return cls(ranges, worker_index, connections_an_address=1) if ranges else None

    def next(self) -> str:
        """The address for one more connection."""
        index = (self._count // self._connections_an_address) % len(self._addresses)
        self._count += 1
        return self._addresses[index]

    @property
    def used(self) -> str:
        """First and last address handed out so far, for reports."""
        last = min(max(self._count - 1, 0) // self._connections_an_address, len(self._addresses) - 1)
        first_address, last_address = self._addresses[0], self._addresses[last]
        return first_address if last == 0 else f"{first_address}-{last_address}"


def parse(ranges: str) -> list[Network]:
    """The networks in a text as PARKED_SOURCE has it. Raises ValueError with the variable's name."""
    try:
        # strict=False: 10.0.0.5/24 means the range that the address is in.
        return [ipaddress.ip_network(part.strip(), strict=False) for part in ranges.split(",")]
    except ValueError as error:
        raise ValueError(f"{variables.SOURCE}: {error}") from None


def usable_addresses(ranges: str) -> int:
    """How many source addresses a text names."""
    return sum(count for _, count in map(_usable, parse(ranges)))


def _usable(network: Network) -> tuple[Network, int]:
    # The first and the last address of a larger IPv4 range are its network and broadcast address.
    return network, network.num_addresses - (2 if network.num_addresses > 2 else 0)


def _at(spans: list[tuple[Network, int]], place: int) -> str:
    for network, count in spans:
        if place < count:
            return str(network[place + (1 if network.num_addresses > 2 else 0)])
        place -= count
    raise IndexError(place)


def of_interface(server_address: str) -> list[str]:
    """The interface's own address and those that sysconfig/addresses gave it, where the kernel would send to
    the server; empty if it was given none."""
    family = socket.AF_INET6 if ":" in server_address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                (server_address, 9)
            )  # of a datagram socket: it asks for the route and sends nothing
        except OSError:  # no route; the connection's own error will say so
            return []
        own = str(probe.getsockname()[0])
    names = {name: {str(entry.address) for entry in found} for name, found in psutil.net_if_addrs().items()}
    device = next((name.partition(":")[0] for name, found in names.items() if own in found), "")
    given = names.get(f"{device}{LABEL}", set()) - {own}
    return [own, *sorted(given, key=ipaddress.ip_address)] if given else []


def local_ports() -> int:
    """Number of ports that connect() chooses from (ip-sysctl.rst, ip_local_port_range)."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return last - first + 1
