"""Outside witnesses: what the kernel says about both sides of a run, once a second.

Our own counters say how many connections are open and how many requests were answered.  Whether that is
true, and at what price, is read here from where we cannot embellish it: CPU time and memory of the server's
and the client's processes, the kernel's own share, its socket counts and its drop counters.

Everything comes from /proc, and nothing from a list of all sockets: with 800,000 of them /proc/net/tcp takes
minutes.  It is read once, for its first lines only, to find who listens on the server's port; after that the
processes are followed by parent and child.

- *server*: the processes that hold the listening sockets, and their descendants (replaced workers too);
- *client*: the given process and its descendants, except those of the server (it may have started it);
- *kernel*: time spent in the kernel that no process of the two sides is charged with, mostly interrupts.
  Send and receive calls are charged to their process, with the TCP work that they cause on loopback;
- what is left of the busy cores belongs to other programs.

Figures are of the whole machine where the kernel has no narrower ones: CPU and slab are the host's in a
container; sockets and TCP counters are those of the network namespace.

Sources: Documentation/filesystems/proc.rst, Documentation/networking/snmp_counter.rst.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from parked.loadtest.machine import kernel_memory
from parked.loadtest.machine.machine import read_meminfo

#: Seconds between two looks at who was forked.
TREE_EVERY_S = 3.0

#: ... and at what sockets pin: for /proc/slabinfo the kernel walks lists of every cache, some milliseconds.
SLABS_EVERY_S = 3.0

#: CPU seconds a sample may spend on reading PSS.  The kernel walks the page tables for it: 1.7 ms for a
#: process of 200 MB (EPYC, Linux 6.18), 0.12 ms for one of 10 MB.  So the processes take turns; 46 of them
#: at 400,000 connections take about 25 samples, and `pss_complete_age_s` says how old the oldest figure is.
PSS_BUDGET_S = 0.002

#: ... and on those that were not read before, without which there is no sum. New ones are small.
PSS_FIRST_S = 0.02

#: Samples in which all have had their turn, whatever that takes: one a sample, 207 processes of 250,000
#: connections were not through by the end of a run.
PSS_ROUND = 30

#: Descriptors of a process, lowest first, that are looked at for a listening socket: those are opened at
#: the start.  A process that holds 20,000 connections need not be read to its end.
DESCRIPTORS_LOOKED_AT = 1_024

#: `st` of a listening socket in /proc/net/tcp (TCP_LISTEN, include/net/tcp_states.h).
_LISTEN = b"0A"

#: Rates over less than this would only show the 10-ms ticks in which the kernel reports CPU time.
_RATE_INTERVAL_MIN_S = 0.05

#: Seconds that reading /proc/stat may take for its time to be known, and how often that is tried.
PROMPT_S, READ_TRIES = 0.005, 3

Side = Literal["server", "client"]


class LostProcess(NamedTuple):
    """A process that was there at the sample before."""

    side: Side
    pid: int


@dataclass(frozen=True)
class MachineSample:
    """One second of the machine.  None means that the kernel does not show it, or not to this user."""

    server_cores: float | None  #: CPU seconds a second since the last sample
    client_cores: float | None
    kernel_cores: float | None
    busy_cores: float | None  #: of all programs; time stolen by the hypervisor is not in it
    server_cpu_seconds: float | None  #: since the monitor began, processes that ended included
    client_cpu_seconds: float
    server_pss_bytes: int | None  #: sum of the last known values; see pss_complete_age_s
    client_pss_bytes: int | None
    pss_complete_age_s: float | None  #: age of the oldest value in the two sums
    slab_bytes: int  #: kernel memory, whatever it is of
    socket_bytes: int  #: kernel memory that sockets pin (`machine.kernel_memory`)
    socket_bytes_from: kernel_memory.Source
    memory_available_bytes: int  #: what can really be had: without what sockets pin
    sockstat_tcp_inuse: int | None  #: both ends on loopback, listening sockets included, IPv4 and IPv6
    sockstat_tcp_orphan: int | None
    sockstat_tcp_tw: int | None
    sockstat_tcp_alloc: int | None
    sockstat_tcp_mem_bytes: int | None  #: TCP buffers
    listen_overflows: int | None  #: these five count from the monitor's start
    listen_drops: int | None
    retrans_segs: int | None
    tcp_timeouts: int | None
    tcp_memory_pressures: int | None
    server_processes: int | None  #: None, as all of the server's: not on this machine, or not to be seen
    client_processes: int
    lost: tuple[LostProcess, ...] = ()


#: Field of a sample and the counter's name in /proc/net/netstat or /proc/net/snmp, as nstat prints it.
_COUNTERS = {
    "listen_overflows": "TcpExtListenOverflows",
    "listen_drops": "TcpExtListenDrops",
    "retrans_segs": "TcpRetransSegs",
    "tcp_timeouts": "TcpExtTCPTimeouts",
    "tcp_memory_pressures": "TcpExtTCPMemoryPressures",
}

#: Fields whose maximum `Monitor.peaks` keeps.
_PEAKS = (
    "server_pss_bytes",
    "client_pss_bytes",
    "slab_bytes",
    "socket_bytes",
    "sockstat_tcp_inuse",
    "sockstat_tcp_tw",
    "sockstat_tcp_mem_bytes",
    "server_cores",
    "client_cores",
    "kernel_cores",
    "busy_cores",
)


class _Times(NamedTuple):
    """CPU time in clock ticks."""

    user: int = 0
    system: int = 0

    def since(self, earlier: _Times) -> _Times:
        # Never backwards: the kernel scales user and system to fit their exact sum.
        return _Times(max(0, self.user - earlier.user), max(0, self.system - earlier.system))

    def plus(self, other: _Times) -> _Times:
        return _Times(self.user + other.user, self.system + other.system)


@dataclass(eq=False)
class _Process:
    side: Side
    pid: int
    started: int  #: ticks after boot; with the pid it names a process, since pids are used again
    times: _Times  #: at the last sample
    pss_bytes: int | None = None  #: None until read, and where it may not be read
    pss_read_at: float | None = None


@dataclass
class _Cpu:
    """Ticks of all cores, from /proc/stat."""

    busy: int
    system: int  #: in the kernel: system calls, hard and soft interrupts
    all: int  #: idle and stolen ones with them
    cores: int
    at_s: float | None  #: when that was, on the monotonic clock; None if it took too long to say


@dataclass
class Monitor:
    """Follows both sides from its creation on; call `sample` about once a second.

    A sample takes 3-5 ms of CPU at 50 processes, however many connections there are.
    """

    client_pid: int
    server_ports: tuple[int, ...]  #: of the servers under test; none: they are not on this machine
    clock: Callable[[], float] = time.monotonic
    proc: Path = Path("/proc")
    peaks: dict[str, float] = field(default_factory=dict)  #: by name of the sample's field
    memory_available_min_bytes: int | None = None

    def __post_init__(self) -> None:
        self._root = os.fspath(self.proc)
        # CONFIG_PROC_CHILDREN, Linux 4.2: distributions have it, small kernels may not.
        self._lists_children = (self.proc / f"self/task/{os.getpid()}/children").exists()
        self._processes: dict[int, _Process] = {}
        self._turns: deque[_Process] = deque()  # whose PSS is read next
        self._used: dict[Side, _Times] = {"server": _Times(), "client": _Times()}
        found = [_listeners(self.proc, port) for port in self.server_ports]
        #: Whether all servers are known: figures of some would pass for those of all.
        self._knows_server = bool(found) and all(found)
        for pid in {pid for pids in found for pid in pids} if self._knows_server else ():
            self._add("server", pid, from_birth=False)
        self._add("client", self.client_pid, from_birth=False)
        self._follow(from_birth=False)
        self._counters_at_start = self._counters()
        self._cpu = self._read_cpu()
        self._followed_at = self.clock()
        self._held: kernel_memory.Pinned | None = None
        self._held_at = 0.0

    def sample(self) -> MachineSample:
        """The machine now, and rates since the sample before."""
        now = self.clock()
        known = set(self._processes)
        if now - self._followed_at >= TREE_EVERY_S:
            self._follow()
            self._followed_at = now
        used, lost = self._read_processes(known)
        if lost:
            self._followed_at = -float("inf")  # whoever replaces it is looked for next time
        earlier, self._cpu = self._cpu, self._read_cpu()
        self._read_pss(now)
        interval_s = (self._cpu.all - earlier.all) / self._cpu.cores / _TICKS_PER_S
        if self._cpu.at_s is not None and earlier.at_s is not None:
            interval_s = self._cpu.at_s - earlier.at_s
        per_core = 1 / (interval_s * _TICKS_PER_S) if interval_s >= _RATE_INTERVAL_MIN_S else None
        server, client = used["server"], used["client"]
        busy = self._cpu.busy - earlier.busy
        # Ticks and exact times are rounded differently, so the parts are kept within the whole.
        rest = max(0, busy - sum(server) - sum(client))
        kernel = min(rest, max(0, self._cpu.system - earlier.system - server.system - client.system))
        meminfo, sockstat = read_meminfo(self.proc), self._sockstat()
        if self._held is None or now - self._held_at >= SLABS_EVERY_S:
            self._held = kernel_memory.pinned(self.proc, meminfo, sockstat["sockstat_tcp_alloc"])
            self._held_at = now
        held = self._held
        processes = self._processes.values()
        ages = [now - p.pss_read_at for p in processes if p.pss_read_at is not None]
        sample = MachineSample(
            server_cores=_times(sum(server), per_core) if self._knows_server else None,
            client_cores=_times(sum(client), per_core),
            kernel_cores=_times(kernel, per_core),
            busy_cores=_times(max(busy, sum(server) + sum(client)), per_core),
            server_cpu_seconds=sum(self._used["server"]) / _TICKS_PER_S if self._knows_server else None,
            client_cpu_seconds=sum(self._used["client"]) / _TICKS_PER_S,
            server_pss_bytes=self._pss("server") if self._knows_server else None,
            client_pss_bytes=self._pss("client"),
            pss_complete_age_s=max(ages, default=None),
            slab_bytes=meminfo.get("Slab", 0),
            socket_bytes=held.size_bytes,
            socket_bytes_from=held.source,
            memory_available_bytes=kernel_memory.left(meminfo, held),
            **sockstat,
            **{
                name: None if count is None else count - (self._counters_at_start[name] or 0)
                for name, count in self._counters().items()
            },
            server_processes=sum(p.side == "server" for p in processes) if self._knows_server else None,
            client_processes=sum(p.side == "client" for p in processes),
            lost=lost,
        )
        self._keep_peaks(sample)
        return sample

    # Processes

    def _add(self, side: Side, pid: int, from_birth: bool) -> None:
        """Follow `pid`; CPU time it used before now counts only if the run has seen all its life."""
        try:
            _, started, times = self._stat(pid)
        except OSError:  # it ended between being seen and being read
            return
        process = _Process(side, pid, started, _Times() if from_birth else times)
        self._processes[pid] = process
        self._turns.appendleft(process)  # a new one is read first, so the sum is complete soon

    def _follow(self, from_birth: bool = True) -> None:
        """Find the descendants of what is known: the server's first, since the client may have started it."""
        children_of = self._children if self._lists_children else self._scan_for_children()
        sides: tuple[Side, ...] = ("server", "client")
        for side in sides:
            unseen = [process.pid for process in self._processes.values() if process.side == side]
            while unseen:
                for child in children_of(unseen.pop()):
                    if child not in self._processes:
                        self._add(side, child, from_birth)
                        unseen.append(child)

    def _children(self, pid: int) -> list[int]:
        """Children by the kernel's list of each thread: 15 us per process.

        The list may miss some while others are reaped; the next look finds them.
        """
        children: list[int] = []
        try:
            for thread in (self.proc / str(pid) / "task").iterdir():
                children.extend(map(int, _read(f"{thread}/children").split()))
        except OSError:  # the process or thread ended meanwhile; sample() notices
            pass
        return children

    def _scan_for_children(self) -> Callable[[int], list[int]]:
        """The same from the parent of every process, where the kernel has no lists: 10 us per process."""
        children: dict[int, list[int]] = {}
        for pid in _pids(self.proc):
            try:
                parent = int(_read(f"{self._root}/{pid}/stat").rpartition(b")")[2].split()[1])
            except OSError:  # it just ended
                continue
            children.setdefault(parent, []).append(pid)
        return lambda pid: children.get(pid, [])

    def _stat(self, pid: int) -> tuple[bytes, int, _Times]:
        """State, start and CPU time of a process with all its threads.  OSError if it is gone."""
        # The name, in parentheses, may contain blanks and parentheses itself.
        fields = _read(f"{self._root}/{pid}/stat").rpartition(b")")[2].split()
        return fields[0], int(fields[19]), _Times(int(fields[11]), int(fields[12]))

    def _read_processes(self, known: set[int]) -> tuple[dict[Side, _Times], tuple[LostProcess, ...]]:
        """CPU time of both sides since the last sample, and who ended; a late comer has no rate yet."""
        recent: dict[Side, _Times] = {"server": _Times(), "client": _Times()}
        lost = []
        for process in list(self._processes.values()):
            try:
                state, started, times = self._stat(process.pid)
                if started != process.started:
                    raise ProcessLookupError  # another process by now
            except OSError:
                state, times = b"X", process.times  # its last known CPU time stays counted
            used = times.since(process.times)
            self._used[process.side] = self._used[process.side].plus(used)
            if process.pid in known:
                recent[process.side] = recent[process.side].plus(used)
            process.times = times
            if state in b"ZX":  # a zombie has ended, though its parent has not noticed
                del self._processes[process.pid]
                self._turns.remove(process)
                lost.append(LostProcess(process.side, process.pid))
        return recent, tuple(lost)

    # Memory

    def _read_pss(self, now: float) -> None:
        """Read PSS of as many processes as the budget allows, a part of a round at least, stalest first."""
        spent_from = time.thread_time()
        least = -(-len(self._turns) // PSS_ROUND)
        for count in range(len(self._turns)):
            budget_s = PSS_BUDGET_S if self._turns[0].pss_read_at is not None else PSS_FIRST_S
            if count >= max(least, 1) and time.thread_time() - spent_from >= budget_s:
                break
            process = self._turns.popleft()
            self._turns.append(process)
            self._read_one_pss(process, now)

    def _read_one_pss(self, process: _Process, now: float) -> None:
        try:
            rollup = _read(f"{self._root}/{process.pid}/smaps_rollup")
        except (FileNotFoundError, ProcessLookupError):  # it just ended; the next sample says so
            return
        except PermissionError:  # another user's process
            process.pss_bytes, process.pss_read_at = None, now
            return
        kib = rollup.partition(b"\nPss:")[2].split(maxsplit=1)
        process.pss_bytes, process.pss_read_at = (int(kib[0]) * 1024 if kib else 0), now

    def _pss(self, side: Side) -> int | None:
        """None if one of that side may not be read, or was not yet: a part of the sum would pass for all."""
        total = 0
        for process in self._processes.values():
            if process.side == side:
                if process.pss_bytes is None:
                    return None
                total += process.pss_bytes
        return total

    # The kernel

    def _read_cpu(self) -> _Cpu:
        """The first line of /proc/stat, a sum of all cores: user nice system idle iowait irq softirq steal.

        With the clock read once, in another line, 1,000,000 connections had 5.3 of 2 cores busy: on a machine
        without a core to spare much time passes between any two lines of this program. If it does here, the
        ticks have to do for time. They are not as good: a hypervisor may keep the machine from its cores and
        not say so, 9 % of a minute have been seen.
        """
        for _ in range(READ_TRIES):
            before_s = time.monotonic()
            stat = _read(f"{self._root}/stat")
            after_s = time.monotonic()
            if prompt := after_s - before_s < PROMPT_S:
                break
        ticks = [int(value) for value in stat.partition(b"\n")[0].split()[1:9]]
        user, nice, system, _, _, irq, softirq, _ = ticks
        kernel = system + irq + softirq
        at_s = (before_s + after_s) / 2 if prompt else None
        return _Cpu(user + nice + kernel, kernel, sum(ticks), stat.count(b"\ncpu"), at_s)

    def _sockstat(self) -> dict[str, int | None]:
        """TCP sockets by state; TIME-WAIT, orphans and memory are counted for both IP versions together."""
        values: dict[str, int] = {}
        for name in ("sockstat", "sockstat6"):  # the second is absent without IPv6
            for line in _lines(f"{self._root}/net/{name}"):
                words = line.split()
                if words[0] in (b"TCP:", b"TCP6:"):
                    for key, value in zip(words[1::2], words[2::2], strict=True):
                        values[key.decode()] = values.get(key.decode(), 0) + int(value)
        found: dict[str, int | None] = {
            f"sockstat_tcp_{key}": values.get(key) for key in ("inuse", "orphan", "tw", "alloc")
        }
        found["sockstat_tcp_mem_bytes"] = values["mem"] * _PAGE_BYTES if "mem" in values else None
        return found

    def _counters(self) -> dict[str, int | None]:
        """The counters of `_COUNTERS` since boot; each prefix has a line of names and one of values."""
        values: dict[str, int] = {}
        for name in ("netstat", "snmp"):
            lines = list(_lines(f"{self._root}/net/{name}"))
            for names, numbers in zip(lines[::2], lines[1::2], strict=True):
                prefix, *keys = names.decode().split()
                if prefix in ("TcpExt:", "Tcp:"):
                    pairs = zip(keys, numbers.split()[1:], strict=True)
                    values.update((prefix[:-1] + key, int(number)) for key, number in pairs)
        return {name: values.get(counter) for name, counter in _COUNTERS.items()}

    def _keep_peaks(self, sample: MachineSample) -> None:
        for name in _PEAKS:
            if (value := getattr(sample, name)) is not None:
                self.peaks[name] = max(value, self.peaks.get(name, value))
        least = self.memory_available_min_bytes
        available = sample.memory_available_bytes
        self.memory_available_min_bytes = available if least is None else min(least, available)


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def _times(ticks: int, per_core: float | None) -> float | None:
    return None if per_core is None else ticks * per_core


def _read(path: str) -> bytes:
    """The whole file; half as dear as Path.read_bytes(), and this runs some 60 times a second."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _lines(path: str) -> Iterable[bytes]:
    try:
        return _read(path).splitlines()
    except FileNotFoundError:
        return ()


def _pids(proc: Path) -> list[int]:
    return [int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()]


def _listeners(proc: Path, port: int) -> list[int]:
    """Process ids that hold a socket listening on `port`, as far as this user may see."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(proc, port)}
    if not wanted:
        return []
    return [pid for pid in _pids(proc) if _holds(proc / str(pid) / "fd", wanted)]


def _listening_inodes(proc: Path, port: int) -> list[int]:
    """Sockets that listen on `port` for IPv4 or, if there is none, for IPv6.

    Listening sockets come first in either table (tcp_seq_start, net/ipv4/tcp_ipv4.c), so the rest stays
    unread.  To find nothing in the second one, though, the kernel passes by every IPv4 socket: 25 ms at
    130,000 of them.  So it is read only when needed.
    """
    for name in ("tcp", "tcp6"):
        inodes = []
        try:
            table = (proc / "net" / name).open("rb")
        except FileNotFoundError:  # no IPv6
            continue
        with table:
            next(table, None)  # the heading
            for line in table:
                fields = line.split()
                if fields[3] != _LISTEN:
                    break
                if int(fields[1].rpartition(b":")[2], 16) == port:
                    inodes.append(int(fields[9]))
        if inodes:
            return inodes
    return []


def _holds(folder: Path, wanted: set[str]) -> bool:
    try:
        descriptors = sorted(folder.iterdir(), key=lambda link: int(link.name))
    except OSError:  # it ended, or is another user's
        return False
    for link in descriptors[:DESCRIPTORS_LOOKED_AT]:
        try:
            if str(link.readlink()) in wanted:
                return True
        except OSError:  # closed meanwhile
            continue
    return False
