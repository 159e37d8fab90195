"""Kernel memory that sockets pin, and what is left of the machine's memory because of it.

Slab as a whole counts whatever else the machine caches meanwhile: copied files fill it, and so does a program
that lists the descriptors of all processes. And MemAvailable takes inodes and dentries for memory that can be
had at any time, also those that open sockets hold. So sockets are counted: from /proc/slabinfo, which root
may read, otherwise from what can't be reclaimed and the part of a socket that seems to be.

Sources: slabinfo(5), Documentation/filesystems/proc.rst (meminfo), si_mem_available() in mm/show_mem.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

Source = Literal["slabinfo", "meminfo"]

#: Bytes of a socket's inode and dentry: caches that count as reclaimable (Linux 6.18, x86-64; older ones are
#: within 10 %).
INODE_BYTES: Final = 832
DENTRY_BYTES: Final = 192
#: Bytes of what else each connected socket has, by the cache's name where it has one of its own.
_COMPANIONS: Final = {"filp": 192, "dentry": DENTRY_BYTES, "lsm_file_cache": 24, "lsm_inode_cache": 32}
#: ... and of what the kernel merges with other caches of that size: an epoll item, its wait entry, and half
#: of the bucket of a local port, which one end of a connection has.
_MERGED_BYTES: Final = 128 + 64 + 64
#: Caches of TCP sockets alone.
_SOCKETS: Final = ("TCP", "TCPv6")


class Pinned(NamedTuple):
    """What sockets hold in the kernel; buffers are not in it (`sockstat_tcp_mem_bytes`)."""

    size_bytes: int
    seems_available_bytes: int  #: the part of it that MemAvailable counts
    source: Source


def pinned(proc: Path, meminfo: Mapping[str, int], sockets: int | None) -> Pinned:
    """By /proc now. `sockets`: how many TCP sockets there are (sockstat, alloc), None if not known."""
    caches = _slabinfo(proc)
    if any(name in caches for name in _SOCKETS) and "sock_inode_cache" in caches:
        tcp = sum(caches[name][0] for name in _SOCKETS if name in caches)
        inodes, inode_bytes = caches["sock_inode_cache"]
        dentry_bytes = caches.get("dentry", (0, DENTRY_BYTES))[1]
        each = _MERGED_BYTES + sum(
            caches.get(name, (0, size_bytes))[1] for name, size_bytes in _COMPANIONS.items()
        )
        own = sum(caches[name][0] * caches[name][1] for name in _SOCKETS if name in caches)
        return Pinned(
            own + inodes * inode_bytes + tcp * each, inodes * (inode_bytes + dentry_bytes), "slabinfo"
        )
    reclaimable = (sockets or 0) * (INODE_BYTES + DENTRY_BYTES)
    return Pinned(meminfo.get("SUnreclaim", 0) + reclaimable, reclaimable, "meminfo")


def left(meminfo: Mapping[str, int], held: Pinned) -> int:
    """Bytes that can really be had without swapping."""
    return max(0, meminfo["MemAvailable"] - held.seems_available_bytes)


def tcp_sockets(proc: Path) -> int | None:
    """TCP sockets that are allocated in this network namespace."""
    try:
        lines = (proc / "net/sockstat").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if words[:1] == ["TCP:"] and "alloc" in words:
            return int(words[words.index("alloc") + 1])
    return None


def _slabinfo(proc: Path) -> dict[str, tuple[int, int]]:
    """Objects in use, and bytes of one, by cache; empty where it may not be read."""
    try:
        lines = (proc / "slabinfo").read_text().splitlines()
    except OSError:
        return {}
    caches = {}
    for line in lines:
        words = line.split()
        if len(words) > 3 and words[1].isdigit() and words[3].isdigit():
            caches[words[0]] = int(words[1]), int(words[3])
    return caches
