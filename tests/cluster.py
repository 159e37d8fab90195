"""A run of several hosts on a network of namespaces: servers, balancer, master and the hosts that join."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parked.shared import listeners
from tests.network import BALANCER, FRONT, PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.network import Network

PORT = 8000
#: Seconds that a process may take to listen, and to end when it is told to.
READY_S, STOP_S = 20.0, 20.0


class Failed(Exception):
    """Something did not come about; the text says what, with the end of the log."""


class Cluster:
    """Make it with :func:`cluster`."""

    def __init__(self, network: Network, connections: int, folder: Path) -> None:
        self.network = network
        self.connections = connections
        self.folder = folder
        self.results = folder / "results"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.master: subprocess.Popen[bytes] | None = None
        self.joined: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def text(self, name: str) -> str:
        return self.log(name).read_text(errors="replace")

    def _start(self, host: str, name: str, command: list[str], **said: str) -> subprocess.Popen[bytes]:
        with self.log(name).open("wb") as output:
            process = self.network.start(host, command, output, **said)
        self._processes.append(process)
        return process

    def start_servers(self, balanced: bool) -> list[str]:
        """The URLs to test: the balancer's, or those of the servers."""
        each = -(-self.connections * 6 // (5 * len(self.network.servers)))  # a fifth more than its part
        for server in self.network.servers:
            bind = ["--bind", f"0.0.0.0:{PORT}", "--connections", str(each)]
            self._start(server, server, [sys.executable, "-P", "-m", "app", *bind])
        direct = [f"http://{address}:{PORT}" for address in self.network.server_addresses]
        for server in self.network.servers:
            self.await_text(server, str(PORT), READY_S)
        return [self._start_balancer()] if balanced else direct

    def _start_balancer(self) -> str:
        """As many HAProxy processes as two descriptors a connection ask for, all at one port."""
        _, nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Each connection takes one at either end.
        self.balancers = listeners.workers_for(self.connections, nofile // 2, 1)
        addresses = [f"{address}:{PORT}" for address in self.network.server_addresses]
        said = {f"SERVER{n}": addresses[(n - 1) % len(addresses)] for n in (1, 2)}
        config = str(PROJECT / "docs" / "haproxy.cfg")
        command = ["sh", "-c", 'ulimit -n "$(ulimit -Hn)" && exec haproxy -db -f "$0"', config]
        for number in range(self.balancers):
            self._start("balancer", f"haproxy{number}", command, BIND=f"{BALANCER}:{PORT}", **said)
        self._await("HAProxy to listen", lambda: self._listening("balancer") >= self.balancers, READY_S)
        return f"http://{BALANCER}:{PORT}"

    def _listening(self, host: str) -> int:
        """Sockets that listen at the port (0A in /proc/net/tcp is LISTEN)."""
        table = self.network.run(host, "cat", "/proc/net/tcp").splitlines()[1:]
        fields = [line.split() for line in table]
        return sum(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == PORT for row in fields)

    def start_run(self, urls: list[str], *options: str) -> None:
        """The master, on the router, and every client host."""
        hosts = [word for url in urls for word in ("--host", url)]
        self.master = self._start(
            *("router", "master"),
            [
                *(sys.executable, "-P", "-m", "loadtest", "--master", f"{FRONT}.1"),
                *("--expect-hosts", str(len(self.network.clients)), "-c", str(self.connections)),
                *("--results", str(self.results), *hosts, *options),
            ],
        )
        for client in self.network.clients:
            self.join(client)

    def join(self, client: str, *options: str, name: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "loadtest", "--join", f"{FRONT}.1", *options]
        process = self._start(client, name or client, command)
        self.joined[name or client] = process
        return process

    def kill_host(self, client: str) -> None:
        """Every process of a host, at once: its power is gone."""
        for pid in self.network.pids(client):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def await_text(self, name: str, wanted: str, within_s: float) -> None:
        self._await(f"{wanted!r} of {name}", lambda: wanted in self.text(name), within_s, name)

    def _await(self, what: str, there: Callable[[], bool], within_s: float, name: str = "") -> None:
        deadline = time.monotonic() + within_s
        while not there():
            if time.monotonic() > deadline:
                end = f"\n{self.text(name)[-2000:]}" if name else ""
                raise Failed(f"waited {within_s:.0f} s for {what}{end}")
            if self.master is not None and self.master.poll() is not None and name == "master":
                raise Failed(f"the master ended before {what}:\n{self.text('master')[-3000:]}")
            time.sleep(0.1)

    def end(self, process: subprocess.Popen[bytes], within_s: float, name: str) -> int:
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{name} did not end within {within_s:.0f} s\n{self.text(name)[-2000:]}") from None

    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.results / "summary.json").read_text())
        return loaded

    def stop(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def cluster(network: Network, connections: int, folder: Path) -> Iterator[Cluster]:
    made = Cluster(network, connections, folder)
    try:
        yield made
    finally:
        made.stop()
