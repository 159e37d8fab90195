"""Source addresses: the sums of the module's docstring, and ranges of every size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from parked.loadtest.client import source_address
from parked.loadtest.client.source_address import (
    ADDRESSES_A_WORKER,
    LOOPBACK_RANGE,
    PORT_SHARE,
    SourceAddresses,
    local_ports,
    of_interface,
    usable_addresses,
)


def taken(sources: SourceAddresses, count: int) -> list[str]:
    return [sources.next() for _ in range(count)]


def test_a_worker_goes_on_to_its_next_address_and_round_again() -> None:
    sources = SourceAddresses("127.1.0.0/16", 0, 2)
    first = taken(sources, 2 * ADDRESSES_A_WORKER)
    assert first[:4] == ["127.1.0.1", "127.1.0.1", "127.1.0.2", "127.1.0.2"]
    assert len(set(first)) == ADDRESSES_A_WORKER
    assert sources.next() == "127.1.0.1"


def test_a_range_of_two_addresses_is_used_whole_from_its_first_one_on() -> None:
    assert taken(SourceAddresses("127.1.0.4/31", 0, 1), 3) == ["127.1.0.4", "127.1.0.5", "127.1.0.4"]


def test_workers_have_addresses_of_their_own() -> None:
    blocks = [
        set(taken(SourceAddresses(LOOPBACK_RANGE, worker, 1), ADDRESSES_A_WORKER)) for worker in range(100)
    ]
    assert len(set.union(*blocks)) == 100 * ADDRESSES_A_WORKER
    # Neither the network's nor the broadcast address.
    assert not {"127.1.0.0", "127.1.255.255"} & set.union(*blocks)


@pytest.mark.parametrize(
    ("network", "addresses"),
    [
        ("127.1.0.9", {"127.1.0.9"}),
        ("127.1.0.9/32", {"127.1.0.9"}),
        ("127.1.0.8/31", {"127.1.0.8", "127.1.0.9"}),
        ("127.1.0.8/30", {"127.1.0.9", "127.1.0.10"}),
        ("127.1.0.5/29", {f"127.1.0.{n}" for n in range(1, 7)}),
        ("::1", {"::1"}),
    ],
)
def test_a_range_with_fewer_addresses_than_workers_is_shared(network: str, addresses: set[str]) -> None:
    for worker in (0, 1, 7, 1000):
        assert set(taken(SourceAddresses(network, worker, 1), 40)) == addresses


def test_a_large_ipv6_range_has_a_block_for_each_worker() -> None:
    assert SourceAddresses("fd00::/64", 2, 1).next() == "fd00::21"


def test_a_worker_without_a_number_yet_takes_the_first_block() -> None:
    assert SourceAddresses("127.1.0.0/24", -1, 1).next() == "127.1.0.1"


def test_the_addresses_in_use_are_reported() -> None:
    sources = SourceAddresses("127.1.0.0/16", 1, 10)
    assert sources.used == "127.1.0.17"
    taken(sources, 10)
    assert sources.used == "127.1.0.17"
    taken(sources, 11)
    assert sources.used == "127.1.0.17-127.1.0.19"
    taken(sources, 10_000)
    assert sources.used == "127.1.0.17-127.1.0.32"


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("nonsense", "nonsense"),
        ("10.0.0.0/33", "10.0.0.0/33"),
        ("10.0.0.1-10.0.0.9", "10.0.0.1-10.0.0.9"),
        ("10.0.0.300", "10.0.0.300"),
        ("fd00::/64", "IPv6"),
    ],
)
def test_a_bad_range_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, network: str, says: str
) -> None:
    monkeypatch.setenv("PARKED_SOURCE", network)
    with pytest.raises(ValueError, match="PARKED_SOURCE") as caught:
        SourceAddresses.of_worker("127.0.0.1", 0)
    assert says in str(caught.value)


def test_only_a_server_on_ipv4_loopback_gets_sources_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARKED_SOURCE", raising=False)
    on_loopback = SourceAddresses.of_worker("127.0.0.1", 0)
    assert on_loopback is not None
    assert on_loopback.next() == "127.1.0.1"
    assert SourceAddresses.of_worker("192.0.2.1", 0) is None
    assert SourceAddresses.of_worker("::1", 0) is None
    monkeypatch.setenv("PARKED_SOURCE", "192.0.2.16/28")
    elsewhere = SourceAddresses.of_worker("192.0.2.1", 0)
    assert elsewhere is not None
    assert elsewhere.next() == "192.0.2.17"


def test_an_address_is_left_when_a_quarter_of_its_ports_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARKED_SOURCE", raising=False)
    monkeypatch.setattr(source_address, "local_ports", lambda: 40)
    sources = SourceAddresses.of_worker("127.0.0.1", 0)
    assert sources is not None
    assert taken(sources, 40 // PORT_SHARE + 1)[-2:] == ["127.1.0.1", "127.1.0.2"]


def test_the_kernels_port_range_is_counted_with_both_ends() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert local_ports() == last - first + 1
    assert 65535 - 1024 + 1 == 64_512
    assert 60999 - 32768 + 1 == 28_232
    # A worker's addresses have room for all the descriptors that it can have.
    assert ADDRESSES_A_WORKER * 28_232 // PORT_SHARE > 100_000


def test_named_ranges_are_gone_round_connection_by_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARKED_SOURCE", "10.0.0.16/29, 10.0.1.1")
    for worker in (0, 5):
        sources = SourceAddresses.of_worker("10.0.0.1", worker)
        assert sources is not None
        got = Counter(taken(sources, 70))
        assert got == dict.fromkeys([*(f"10.0.0.{n}" for n in range(17, 23)), "10.0.1.1"], 10)
    assert usable_addresses("10.0.0.16/29,10.0.1.1") == 7


def test_many_named_addresses_are_cut_into_blocks_of_which_each_worker_has_one() -> None:
    named = ",".join(f"10.0.{n // 200}.{1 + n % 200}" for n in range(4 * ADDRESSES_A_WORKER))
    blocks = [tuple(taken(SourceAddresses(named, worker, 1), ADDRESSES_A_WORKER)) for worker in range(8)]
    assert len(set(blocks)) == 4
    assert len({address for block in blocks for address in block}) == 4 * ADDRESSES_A_WORKER


def test_what_sysconfig_gave_the_interface_is_used_towards_servers_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PARKED_SOURCE", raising=False)
    # On loopback the kernel sends from 127.0.0.1, so that the route is a real one.
    entries = {
        "lo": ["127.0.0.1", "127.9.9.9"],
        "lo:keep": ["127.0.0.20", "127.0.0.3"],
        "eth0:keep": ["192.0.2.7"],
    }
    monkeypatch.setattr(
        psutil,
        "net_if_addrs",
        lambda: {name: [SimpleNamespace(address=a) for a in found] for name, found in entries.items()},
    )
    assert of_interface("127.0.0.1") == ["127.0.0.1", "127.0.0.3", "127.0.0.20"]
    del entries["lo:keep"]
    assert of_interface("127.0.0.1") == [], "the kernel's own choice will do"
