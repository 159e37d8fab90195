"""Hosts on a network, in one kernel: network namespaces with host names, links between them, a slow one too.

    c1 c2 c3 -- front (bridge) -- router == link == balancer -- back (bridge) -- s1 s2

    front 10.77.1.0/24: clients from .11 on, router .1
    back  10.77.3.0/24: servers from .11 on, balancer .1
    link  10.77.2.0/30: router .1, balancer .2

The link between router and balancer has the latency and the loss: tc netem where the kernel has it, else a
process that carries the packets between two TUN devices, late, and drops some of them (`python -m
tests.network`, started by this module). Everything has this process's id in its name and goes with it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROJECT = Path(__file__).resolve().parents[1]

BALANCER = "10.77.2.2"
FRONT, BACK, LINK = "10.77.1", "10.77.3", "10.77.2"
#: Source addresses of each client beside its own, as sysconfig/addresses adds them: a /30 has two.
MORE_ADDRESSES = "/30"

#: From <linux/if_tun.h>: ioctl to name a device, layer 3, no header of the driver's own.
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
#: Packets that one way of the link holds before it drops more: an answer for each of 20,000 connections.
LINK_PACKETS = 100_000


class NotPermitted(Exception):
    """No namespaces can be made here; the text says why."""


class Network:
    """Make it with :func:`network`."""

    def __init__(self, clients: int, servers: int) -> None:
        self.clients = [f"c{number}" for number in range(1, clients + 1)]
        self.servers = [f"s{number}" for number in range(1, servers + 1)]
        self._prefix = f"k{os.getpid() % 1_000_000}"
        self.link = ""  #: what makes latency and loss
        self._relay: subprocess.Popen[bytes] | None = None

    @property
    def server_addresses(self) -> list[str]:
        return [f"{BACK}.{10 + number}" for number in range(1, len(self.servers) + 1)]

    def _namespace(self, host: str) -> str:
        return f"{self._prefix}-{host}"

    @property
    def _hosts(self) -> list[str]:
        return [*self.clients, "router", "balancer", *self.servers]

    def inside(self, host: str, command: Sequence[str]) -> list[str]:
        """The command that runs a command on a host, with the host's name."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host, *command]
        return ["ip", "netns", "exec", self._namespace(host), *named]

    def run(self, host: str, *command: str) -> str:
        return _run(*self.inside(host, command))

    def start(
        self, host: str, command: Sequence[str], output: IO[bytes], **said: str
    ) -> subprocess.Popen[bytes]:
        """A process on a host, in a session of its own."""
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            self.inside(host, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path} | said,
            start_new_session=True,
        )

    def sockets(self, host: str) -> int:
        """TCP sockets in use, as the host's kernel counts them (/proc/net/sockstat)."""
        for line in self.run(host, "cat", "/proc/net/sockstat").splitlines():
            words = line.split()
            if words[0] == "TCP:":
                return int(words[words.index("inuse") + 1])
        raise RuntimeError("no TCP in /proc/net/sockstat")

    def pids(self, host: str) -> list[int]:
        """Processes on a host."""
        listed = ["ip", "netns", "pids", self._namespace(host)]
        return [int(pid) for pid in subprocess.run(listed, capture_output=True, check=False).stdout.split()]

    def _ip(self, *words: str) -> None:
        _run("ip", *words)

    def make(self, delay_ms: float, loss_percent: float) -> None:
        for host in self._hosts:
            self._ip("netns", "add", self._namespace(host))
            self._ip("-n", self._namespace(host), "link", "set", "lo", "up")
        self._bridge("router", "front", FRONT, self.clients)
        self._bridge("balancer", "back", BACK, self.servers)
        self._link(delay_ms, loss_percent)
        for bridge_host, net in (("router", BACK), ("balancer", FRONT)):
            self.run(bridge_host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            gateway = f"{LINK}.{2 if bridge_host == 'router' else 1}"
            self._ip("-n", self._namespace(bridge_host), "route", "add", f"{net}.0/24", "via", gateway)
        for number, client in enumerate(self.clients):
            more = f"{FRONT}.{64 + 4 * number}{MORE_ADDRESSES}"
            self.run(client, str(PROJECT / "sysconfig" / "addresses"), "add", "eth0", more)

    def _bridge(self, host: str, name: str, net: str, members: Sequence[str]) -> None:
        inside = self._namespace(host)
        self._ip("-n", inside, "link", "add", name, "type", "bridge")
        self._ip("-n", inside, "address", "add", f"{net}.1/24", "dev", name)
        self._ip("-n", inside, "link", "set", name, "up")
        for number, member in enumerate(members, 11):
            there = self._namespace(member)
            self._ip(
                *("-n", there, "link", "add", "eth0", "type", "veth"),
                *("peer", "name", f"to-{member}", "netns", inside),
            )
            self._ip("-n", inside, "link", "set", f"to-{member}", "master", name, "up")
            self._ip("-n", there, "address", "add", f"{net}.{number}/24", "dev", "eth0")
            self._ip("-n", there, "link", "set", "eth0", "up")
            self._ip("-n", there, "route", "add", "default", "via", f"{net}.1")

    def _link(self, delay_ms: float, loss_percent: float) -> None:
        router, balancer = self._namespace("router"), self._namespace("balancer")
        self._ip("-n", router, "link", "add", "wan", "type", "veth", "peer", "name", "wan", "netns", balancer)
        try:
            for end in (router, balancer):
                _run(
                    *(
                        "tc",
                        "-n",
                        end,
                        "qdisc",
                        "add",
                        "dev",
                        "wan",
                        "root",
                        "netem",
                        "limit",
                        str(LINK_PACKETS),
                    ),
                    *("delay", f"{delay_ms}ms", "loss", f"{loss_percent}%"),
                )
            self.link = "tc netem"
        except subprocess.CalledProcessError:  # the module is not there
            self._ip("-n", router, "link", "delete", "wan")
            self._start_relay(delay_ms, loss_percent)
            self.link = "a process between two TUN devices"
        for end, last in ((router, 1), (balancer, 2)):
            self._ip("-n", end, "address", "add", f"{LINK}.{last}/30", "dev", "wan")
            self._ip("-n", end, "link", "set", "wan", "up")

    def _start_relay(self, delay_ms: float, loss_percent: float) -> None:
        names = [f"{self._prefix}{side}" for side in "rb"]
        self._relay = subprocess.Popen(
            [sys.executable, "-m", "tests.network", *names, str(delay_ms), str(loss_percent)],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._relay.stdout is not None
        if self._relay.stdout.readline() != b"ready\n":
            raise NotPermitted("neither netem nor TUN devices are to be had here")
        for name, host in zip(names, ("router", "balancer"), strict=True):
            self._ip("link", "set", name, "netns", self._namespace(host), "name", "wan")
            # A TUN device's 500 would be what drops packets when thousands of connections close together.
            self._ip("-n", self._namespace(host), "link", "set", "wan", "txqueuelen", str(LINK_PACKETS))

    def remove(self) -> None:
        """All of it, whatever of it was made; processes that still run on a host are killed."""
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
        for host in self._hosts:
            name = self._namespace(host)
            for pid in self.pids(host):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextlib.contextmanager
def network(
    clients: int, servers: int, delay_ms: float = 0.0, loss_percent: float = 0.0
) -> Iterator[Network]:
    """For the duration of a test. Raises :class:`NotPermitted`.

    :param delay_ms: of the link, each way.
    :param loss_percent: of the link's packets, each way.
    """
    missing = [name for name in ("ip", "unshare", "hostname") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        raise NotPermitted(f"network namespaces need {missing[0] if missing else 'root'}")
    made = Network(clients, servers)
    try:
        try:
            made.make(delay_ms, loss_percent)
        except subprocess.CalledProcessError as error:
            raise NotPermitted(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from None
        yield made
    finally:
        made.remove()


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# The relay


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def relay(one: int, other: int, delay_s: float, loss: float) -> None:
    """Carry packets between two TUN devices, for ever. All are equally late, so they stay in order."""
    ways: dict[int, tuple[int, deque[tuple[float, bytes]]]] = {one: (other, deque()), other: (one, deque())}
    poller = select.poll()
    for descriptor in ways:
        poller.register(descriptor, select.POLLIN)
    while True:
        now = time.monotonic()
        for out, waiting in ways.values():
            while waiting and waiting[0][0] <= now:
                packet = waiting.popleft()[1]
                with contextlib.suppress(OSError):  # the device is not up yet, or its queue is full: lost
                    os.write(out, packet)
        dues = [waiting[0][0] for _, waiting in ways.values() if waiting]
        timeout_ms = max(0.0, min(dues) - time.monotonic()) * 1000 if dues else None
        for descriptor, _ in poller.poll(timeout_ms):
            waiting = ways[descriptor][1]
            due = time.monotonic() + delay_s
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):  # then the other way's turn
                    packet = os.read(descriptor, 65_536)
                    if random.random() >= loss and len(waiting) < LINK_PACKETS:
                        waiting.append((due, packet))


def main(arguments: Any = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.network", description=relay.__doc__)
    parser.add_argument("one")
    parser.add_argument("other")
    parser.add_argument("delay_ms", type=float)
    parser.add_argument("loss_percent", type=float)
    chosen = parser.parse_args(arguments)
    descriptors = [_tun(chosen.one), _tun(chosen.other)]
    print("ready", flush=True)
    relay(*descriptors, chosen.delay_ms / 1000, chosen.loss_percent / 100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
