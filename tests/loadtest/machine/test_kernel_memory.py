"""Kernel memory of sockets, whatever else the machine caches."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from parked.loadtest.machine import kernel_memory
from parked.loadtest.machine.kernel_memory import Pinned
from parked.loadtest.machine.machine import Machine, read_meminfo

PROC = Path("/proc")
#: Connections of the test on the real kernel, both ends here.
CONNECTIONS = 2_000
SLABINFO = """\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables
TCP                 1000   1053   2368   13    8 : tunables    0    0    0 : slabdata     81     81      0
sock_inode_cache    1100   1102    832   19    4 : tunables    0    0    0 : slabdata     58     58      0
filp                3329   3591    192   21    1 : tunables    0    0    0 : slabdata    171    171      0
dentry            405165 405258    192   21    1 : tunables    0    0    0 : slabdata  19298  19298      0
"""


def now() -> Pinned:
    return kernel_memory.pinned(PROC, read_meminfo(), kernel_memory.tcp_sockets(PROC))


@pytest.fixture
def connections() -> Iterator[None]:
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        for _ in range(CONNECTIONS):
            opened.enter_context(socket.create_connection(listener.getsockname()))
            opened.enter_context(listener.accept()[0])
        yield


def test_sockets_are_counted_by_object_where_slabinfo_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "slabinfo").write_text(SLABINFO)
    companions = 192 + 192 + 24 + 32 + 128 + 64 + 64
    assert kernel_memory.pinned(tmp_path, {"SUnreclaim": 5}, None) == Pinned(
        1000 * (2368 + companions) + 1100 * 832, 1100 * (832 + 192), "slabinfo"
    )


def test_without_slabinfo_it_is_what_can_not_be_reclaimed_and_the_sockets_share(tmp_path: Path) -> None:
    held = kernel_memory.pinned(tmp_path, {"SUnreclaim": 5_000_000, "MemAvailable": 9_000_000}, 1000)
    assert held == Pinned(5_000_000 + 1000 * 1024, 1000 * 1024, "meminfo")
    assert kernel_memory.left({"MemAvailable": 9_000_000}, held) == 9_000_000 - 1_024_000


def test_a_machine_has_no_more_available_than_its_sockets_leave(tmp_path: Path, connections: None) -> None:
    # A copy: what the machine has changes by megabytes from one reading to the next.
    (tmp_path / "meminfo").write_text((PROC / "meminfo").read_text())
    for name in ("cpuinfo", "net", "self", "slabinfo", "sys"):
        (tmp_path / name).symlink_to(PROC / name)
    left = Machine.read(tmp_path, tmp_path).memory_available_bytes
    pinned = read_meminfo(tmp_path)["MemAvailable"] - left
    assert pinned >= 2 * CONNECTIONS * 1_000
    assert pinned == pytest.approx(now().seems_available_bytes, rel=0.5)


@pytest.mark.skipif(os.access("/proc/slabinfo", os.R_OK) is False, reason="/proc/slabinfo is root's")
def test_a_program_that_fills_caches_does_not_move_the_memory_per_connection(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Page cache, dentries and inodes of thousands of files, as a copy beside a run makes them."""
    before = now(), tcp_objects()
    request.getfixturevalue("connections")

    def per_connection() -> float:
        # Other programs open sockets meanwhile, which cost the same: so it is by those that there are.
        return 2 * (now().size_bytes - before[0].size_bytes) / (tcp_objects() - before[1])

    held, moved = per_connection(), []
    assert 6_000 < held < 10_500
    for attempt in range(5):
        for number in range(6_000):
            (tmp_path / f"{attempt}-{number}").write_bytes(b"x")
        moved.append(abs(per_connection() / held - 1))
        if moved[-1] <= 0.02:
            break
    assert min(moved) <= 0.02


def tcp_objects() -> int:
    caches = kernel_memory._slabinfo(PROC)
    return sum(caches[name][0] for name in ("TCP", "TCPv6") if name in caches)


def test_what_others_cache_is_in_no_figure(tmp_path: Path) -> None:
    (tmp_path / "slabinfo").write_text(SLABINFO)
    before = kernel_memory.pinned(tmp_path, {}, None)
    (tmp_path / "slabinfo").write_text(SLABINFO.replace("405165 405258", "9405165 9405258"))
    assert kernel_memory.pinned(tmp_path, {"SReclaimable": 10**12, "Cached": 10**12}, None) == before
