"""What clients that wait cost a server: memory per client, and the time of a broadcast to all.

The same application (`benchmarks/stream_app.py`) is served by `parked.server`, where a client that waits is a
pending response, and by stock `gevent.pywsgi`, where it is a greenlet. Clients are sockets of this program,
over loopback. Memory is the growth of the server's PSS (proportional set size) while they connect and begin
to wait. A broadcast takes from the request for it to the last client's last byte.

What it does not show: a network, TLS, an application that keeps more than a set of who waits.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import platform
import re
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

CHECKOUT: Final = Path(__file__).resolve().parents[1]
EXIT_USAGE: Final = 2
#: Clients that connect before the server is waited for.
CLIENTS_A_WAVE: Final = 500
#: Seconds after which what should have come is given up.
PATIENCE_S: Final = 120.0
#: Seconds between the last client and a look at the memory.
SETTLE_S: Final = 2.0

_PSS: Final = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


class Row(NamedTuple):
    server: str
    what: str
    clients: int
    bytes_per_client: float
    #: Seconds until all was written, and until the last client had it; None without a broadcast.
    written_s: float | None
    received_s: float | None


@contextlib.contextmanager
def served(kind: str) -> Iterator[tuple[int, int]]:
    """The process id and port of a server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stream_app", kind],
        cwd=CHECKOUT,
        env={**os.environ, "GEVENT_TRACK_GREENLET_TREE": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(10)


def pss_bytes(pid: int) -> int:
    found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text("ascii"))
    assert found
    return int(found[1]) * 1024


def ask(port: int, path: str) -> str:
    """The content of an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while part := sock.recv(65536):
            data += part
    return data.partition(b"\r\n\r\n")[2].decode()


class Clients:
    """Connections that have asked for *path*, and how many of them have got how much."""

    def __init__(self, port: int, path: str, count: int) -> None:
        self._epoll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
            sock.sendall(request)
            sock.setblocking(False)
            self._socks[sock.fileno()] = sock
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            if number % CLIENTS_A_WAVE == CLIENTS_A_WAVE - 1:
                self._drain(0.05)

    def receive_all(self, marker: bytes) -> float:
        """Wait until each has received *marker*; the seconds that took."""
        began = time.perf_counter()
        missing = set(self._socks)
        while missing:
            assert time.perf_counter() - began < PATIENCE_S, f"{len(missing)} clients got nothing"
            for fd, _ in self._epoll.poll(1):
                if marker in self._socks[fd].recv(65536):
                    missing.discard(fd)
        return time.perf_counter() - began

    def _drain(self, seconds: float) -> None:
        """Read what is there (heads of streams)."""
        while ready := self._epoll.poll(seconds):
            for fd, _ in ready:
                self._socks[fd].recv(65536)

    def settle(self) -> None:
        time.sleep(SETTLE_S)
        self._drain(0.1)

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()
        self._epoll.close()


def measure(kind: str, path: str, count: int, rounds: int) -> Row:
    with served(kind) as (pid, port):
        ask(port, "/idle")
        before = pss_bytes(pid)
        clients = Clients(port, path, count)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while path != "/idle" and int(ask(port, "/idle")) < count:
                assert time.monotonic() < deadline, "the server does not hold them all"
                time.sleep(0.1)
            clients.settle()
            size = (pss_bytes(pid) - before) / count
            if path == "/idle":
                return Row(kind, path, count, size, None, None)
            written, received = [], []
            for _ in range(rounds if path == "/events" else 1):
                with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as asker:
                    asker.sendall(b"GET /broadcast HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    received.append(clients.receive_all(b"data: "))
                    answer = b""
                    while part := asker.recv(65536):
                        answer += part
                written.append(float(answer.partition(b"\r\n\r\n")[2].split()[0]))
            return Row(kind, path, count, size, statistics.median(written), statistics.median(received))
        finally:
            clients.close()


def table(rows: list[Row]) -> str:
    lines = [
        "| server | client | clients | bytes per client | all written, s | all received, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        times = [
            f"{seconds:.2f}" if seconds is not None else "" for seconds in (row.written_s, row.received_s)
        ]
        cells = [row.server, row.what, f"{row.clients:,}", f"{row.bytes_per_client:,.0f}", *times]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/pending", description=__doc__.split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=10_000, help="of each kind [%(default)s]")
    parser.add_argument(
        "--rounds", type=int, default=3, help="broadcasts, of which the median counts [%(default)s]"
    )
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.clients + 100 > hard:
        print(f"benchmarks/pending: {hard} open files are not enough", file=sys.stderr)
        return EXIT_USAGE
    gc.disable()
    print(f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}\n")
    rows = [
        measure(kind, path, arguments.clients, arguments.rounds)
        for path in ("/idle", "/poll", "/events")
        for kind in ("parked", "stock")
    ]
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
