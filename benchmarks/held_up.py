"""How long one client of a worker waits, at most, while another does its worst.

Each case runs against one server process per checkout, in turns for several rounds, so that what else the
machine does hits all of them; the table shows medians of the rounds. *Waits* is the longest of the answers to
a client that asks all the time. *Busy* is the most CPU time that the server spends from one of them to the
next: what that client waits at most where nothing else runs, and the figure to go by where something does.
*CPU* is the server's for the whole case, all answers included.

    benchmarks/held-up --checkout ../before --checkout .
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

CHECKOUT: Final = Path(__file__).resolve().parents[1]
#: Seconds after which a case is ended as it is.
CASE_TIMEOUT_S: Final = 60.0
_GET: Final = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
_HEAD_BYTES: Final = 60_000


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    content = environ["wsgi.input"]
    if path == "/read":
        while content.read(65536):
            pass
    elif path == "/lines":
        for _ in content:
            pass
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (
        (b"0123456789" for _ in range(500_000)) if path == "/drops" else [b"%.6f done" % time.process_time()]
    )


def serve(checkout: str) -> None:
    """Be the server: with the library of *checkout*, on a port that is printed."""
    sys.path.insert(0, checkout)
    from parked.server import KeepAliveWSGIServer

    server = KeepAliveWSGIServer(("127.0.0.1", 0), application, log=None, max_connections=0)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()


def _post(path: str, fields: bytes, content: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: test\r\n%b\r\n\r\n%b" % (path.encode(), fields, content)


def _chunked(path: str, content_bytes: int, size: int = 1) -> bytes:
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    return _post(path, b"Transfer-Encoding: chunked", chunk * (content_bytes // size) + b"0\r\n\r\n")


def _of_length(path: str, content: bytes) -> bytes:
    return _post(path, b"Content-Length: %d" % len(content), content)


def _send(port: int, data: bytes) -> None:
    """Send a request and read all that comes, until the end of the connection or of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=CASE_TIMEOUT_S) as sock:
        reader = threading.Thread(target=_drain, args=(sock,))
        reader.start()
        with contextlib.suppress(OSError):  # an answer before the end of the upload may be a reset
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        reader.join(CASE_TIMEOUT_S)


def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 20):
            pass


def _drip(port: int, _: bytes) -> None:
    """Send a head of 60 KB at once and then 2,000 bytes more, one at a time."""
    with socket.create_connection(("127.0.0.1", port), timeout=CASE_TIMEOUT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X-Field: %b\r\n" % (b"x" * 985) * 60)
        sock.sendall(b"X-Last: ")
        for _byte in range(2_000):
            sock.sendall(b"x")
            time.sleep(0.0005)


class Case(NamedTuple):
    title: str
    data: bytes
    clients: int = 1
    act: Callable[[int, bytes], None] = _send


def _cases() -> list[Case]:
    megabyte = 1 << 20
    return [
        Case("uploads 8 MB in 1-byte chunks, which are read", _chunked("/read", 8 * megabyte)),
        Case("uploads 8 MB in 16-byte chunks, which are read", _chunked("/read", 8 * megabyte, 16)),
        Case("uploads 8 MB of newlines, which are iterated over", _of_length("/lines", b"\n" * 8 * megabyte)),
        Case("8 times 2 MB in 1-byte chunks, nothing is read", _chunked("/", 2 * megabyte), 8),
        Case("8 times 64 MB of a length, which are read", _of_length("/read", bytes(64 * megabyte)), 8),
        Case("pipelines 100,000 requests", _GET * 100_000),
        Case("downloads 5 MB in pieces of 10 bytes", _GET.replace(b"/ ", b"/drops ", 1)),
        Case("drips 2,000 bytes behind a head of 60 KB", b"", 1, _drip),
    ]


class Result(NamedTuple):
    waits_ms: float
    busy_ms: float
    cpu_s: float


@contextlib.contextmanager
def _serving(checkout: Path) -> Iterator[tuple[int, psutil.Process]]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "GEVENT_TRACK_GREENLET_TREE": "0"}
    command = [sys.executable, "-P", __file__, "--serve", str(checkout)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), psutil.Process(process.pid)
        finally:
            process.terminate()


def _measure(case: Case, port: int, server: psutil.Process) -> Result:
    began = sum(server.cpu_times()[:2])
    actors = [
        threading.Thread(target=case.act, args=(port, case.data), daemon=True) for _ in range(case.clients)
    ]
    longest = busiest = 0.0
    with socket.create_connection(("127.0.0.1", port), timeout=CASE_TIMEOUT_S) as sock:
        for _ in range(100):
            spent = _ask(sock)[1]
        for actor in actors:
            actor.start()
        while longest < CASE_TIMEOUT_S and any(actor.is_alive() for actor in actors):
            waited, so_far = _ask(sock)
            longest, busiest, spent = max(longest, waited), max(busiest, so_far - spent), so_far
            time.sleep(0.001)
    return Result(longest * 1000, busiest * 1000, sum(server.cpu_times()[:2]) - began)


def _ask(sock: socket.socket) -> tuple[float, float]:
    """Seconds to the answer, and of CPU that the server has spent; `CASE_TIMEOUT_S` if there is none."""
    began = time.monotonic()
    sock.sendall(_GET)
    received = b""
    while not received.endswith(b"done"):
        try:
            data = sock.recv(65536)
        except TimeoutError:
            return CASE_TIMEOUT_S, CASE_TIMEOUT_S
        if not data:
            raise ConnectionError("the server closed the connection of the client that waits")
        received += data
    return time.monotonic() - began, float(received.rpartition(b"\n")[2].split()[0])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/held-up", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--checkout", type=Path, action="append", help="a checkout to try; several take turns"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose title has this text")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    checkouts = [path.resolve() for path in arguments.checkout or [CHECKOUT]]
    print(
        "| one client | "
        + " | ".join(f"{path.name}: waits ms | busy ms | CPU s" for path in checkouts)
        + " |"
    )
    print("| --- |" + " --- | --- | --- |" * len(checkouts))
    for case in _cases():
        if arguments.only not in case.title:
            continue
        results: dict[Path, list[Result]] = {path: [] for path in checkouts}
        for _ in range(arguments.rounds):
            for path in checkouts:
                with _serving(path) as (port, server):
                    results[path].append(_measure(case, port, server))
        cells = []
        for path in checkouts:
            cells.append(f"{statistics.median(result.waits_ms for result in results[path]):,.0f}")
            cells.append(f"{statistics.median(result.busy_ms for result in results[path]):,.0f}")
            cells.append(f"{statistics.median(result.cpu_s for result in results[path]):.2f}")
        print(f"| {case.title} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
