"""How long one client of a worker waits, at most, while another does its worst.

Each case runs against one server process per checkout, in turns for several rounds, so that what else the
machine does hits all of them; the table shows medians of the rounds. *Waits* is the longest of the answers to
a client that asks all the time. *Held up* is the longest again, each counted as no more than the CPU time
that the server spent meanwhile: what that client waits where nothing else runs, and the figure to go by where
something does. *CPU* is the server's for the whole case, all answers included. Needs openssl, for a
certificate.

    benchmarks/held-up --checkout ../before --checkout .
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import falcon

CHECKOUT: Final = Path(__file__).resolve().parents[1]
#: Seconds after which a case is ended as it is.
CASE_TIMEOUT_S: Final = 60.0
_GET: Final = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
_MANY_FIELDS: Final = b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(98))
_CHUNKED: Final = b"Transfer-Encoding: chunked"
_LONG_HEAD: Final = b"GET / HTTP/1.1\r\nHost: test\r\n%bX-Last: " % (b"X-Field: %b\r\n" % (b"x" * 985) * 60)
_EXPECT: Final = b"Expect: 100-continue\r\nContent-Length: 1"
_UPGRADE: Final = b"GET /upgrade HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n"


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    content = environ["wsgi.input"]
    if path == "/read":
        while content.read(65536):
            pass
    elif path == "/bytes":
        while content.read(1):
            pass
    elif path == "/lines":
        for _ in content:
            pass
    elif path == "/line":
        content.readline()
    elif path == "/form":
        for part in falcon.Request(environ).get_media():
            while part.stream.read(65536):
                pass
    elif path == "/upgrade":
        sock = content.raw._sock
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        while sock.recv(2):
            pass
        return []
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (
        (b"0123456789" for _ in range(500_000)) if path == "/drops" else [b"%.6f done" % time.process_time()]
    )


def serve(checkout: str) -> None:
    """Be the server: with the library of *checkout*, on two ports that are printed, the second one's TLS."""
    sys.path.insert(0, checkout)
    from parked.server import KeepAliveWSGIServer

    server = KeepAliveWSGIServer(("127.0.0.1", 0), application, log=None, max_connections=0)
    server.start()
    secure = KeepAliveWSGIServer(("127.0.0.1", 0), application, log=None, ssl_context=_tls_context())
    secure.start()
    print(server.server_port, secure.server_port, flush=True)
    server.serve_forever()


def _tls_context() -> ssl.SSLContext:
    import gevent.ssl

    context: ssl.SSLContext = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = f"{folder}/key.pem", f"{folder}/cert.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
            + ["-subj", "/CN=localhost", "-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
        )
        context.load_cert_chain(certificate, key)
    return context


def _post(path: str, fields: bytes, content: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: test\r\n%b\r\n\r\n%b" % (path.encode(), fields, content)


def _chunked(path: str, content_bytes: int, size: int = 1, extension: bytes = b"") -> bytes:
    chunk = b"%x%b\r\n%b\r\n" % (size, extension, b"x" * size)
    return _post(path, _CHUNKED, chunk * (content_bytes // size) + b"0\r\n\r\n")


def _of_length(path: str, content: bytes) -> bytes:
    return _post(path, b"Content-Length: %d" % len(content), content)


def _form(kilobytes: int) -> bytes:
    """One part, all of it the beginnings of boundaries."""
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n%b\r\n--b--\r\n' % (
        b"\r\n--" * 256 * kilobytes
    )
    fields = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d" % len(part)
    return _post("/form", fields, part)


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


def _drip(port: int, data: bytes) -> None:
    """Send this at once and then 2,000 bytes more, one at a time."""
    with socket.create_connection(("127.0.0.1", port), timeout=CASE_TIMEOUT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(data)
        for _byte in range(2_000):
            sock.sendall(b"x")
            time.sleep(0.0005)


def _hello() -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A TLS client whose first bytes are to be sent; with what comes in and what goes out."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return client, incoming, outgoing


def _tiny_records(port: int, data: bytes) -> None:
    """Send a request over TLS, a byte a record."""
    client, incoming, outgoing = _hello()
    with socket.create_connection(("127.0.0.1", port), timeout=CASE_TIMEOUT_S) as sock:
        while True:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
                break
        for byte in data:
            client.write(bytes([byte]))
        reader = threading.Thread(target=_drain, args=(sock,))
        reader.start()
        with contextlib.suppress(OSError):
            sock.sendall(outgoing.read())
            sock.shutdown(socket.SHUT_WR)
        reader.join(CASE_TIMEOUT_S)


def _shake_hands(port: int, _: bytes) -> None:
    """Begin 400 handshakes at once."""
    hello = _hello()[2].read()
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=CASE_TIMEOUT_S))
            for _ in range(400)
        ]
        time.sleep(0.5)
        for client in clients:
            client.sendall(hello)
        for client in clients:
            client.recv(1)


class Case(NamedTuple):
    title: str
    data: bytes
    clients: int = 1
    act: Callable[[int, bytes], None] = _send
    tls: bool = False


def _cases() -> list[Case]:
    megabyte = 1 << 20
    return [
        Case("uploads 8 MB in 1-byte chunks, which are read", _chunked("/read", 8 * megabyte)),
        Case("uploads 8 MB in 16-byte chunks, which are read", _chunked("/read", 8 * megabyte, 16)),
        Case("uploads 8 MB of newlines, which are iterated over", _of_length("/lines", b"\n" * 8 * megabyte)),
        Case("8 times 2 MB in 1-byte chunks, nothing is read", _chunked("/", 2 * megabyte), 8),
        Case("8 times 64 MB of a length, which are read", _of_length("/read", bytes(64 * megabyte)), 8),
        Case("uploads 4 MB in chunks with extensions", _chunked("/read", 4 * megabyte, 2, b";a")),
        Case("1-byte chunks of 100 clients, 100 KB each", _chunked("/read", 100_000), 100),
        Case("uploads 2 MB that are read a byte at a time", _of_length("/bytes", bytes(2 * megabyte))),
        Case("uploads 64 MB without a newline, read as one line", _of_length("/line", bytes(64 * megabyte))),
        Case("uploads a form of 8 MB that are all but boundaries", _form(8 * 1024)),
        Case("sends 4 MB to who reads a socket 2 bytes at a time", _UPGRADE + bytes(4 * megabyte)),
        Case(
            "uploads 500 KB over TLS, a byte a record",
            _of_length("/read", bytes(500_000)),
            1,
            _tiny_records,
            True,
        ),
        Case("begins 400 TLS handshakes at once", b"", 1, _shake_hands, True),
        Case("pipelines 100,000 requests", _GET * 100_000),
        Case("pipelines 5,000 requests with 99 fields", (_GET[:-2] + _MANY_FIELDS + b"\r\n") * 5_000),
        Case("pipelines 20,000 requests that wait for 100 Continue", _post("/read", _EXPECT, b"x") * 20_000),
        Case("downloads 5 MB in pieces of 10 bytes", _GET.replace(b"/ ", b"/drops ", 1)),
        Case("drips 2,000 bytes behind a head of 60 KB", _LONG_HEAD, 1, _drip),
        Case(
            "drips 2,000 bytes of a chunk extension",
            _post("/read", _CHUNKED, b"1" + b";a" * 3000 + b";"),
            1,
            _drip,
        ),
    ]


class Result(NamedTuple):
    waits_ms: float
    held_up_ms: float
    cpu_s: float


@contextlib.contextmanager
def _serving(checkout: Path) -> Iterator[tuple[list[int], int]]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "GEVENT_TRACK_GREENLET_TREE": "0"}
    command = [sys.executable, "-P", __file__, "--serve", str(checkout)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield [int(port) for port in process.stdout.readline().split()], process.pid
        finally:
            process.terminate()


def _cpu_s(pid: int) -> float:
    """CPU time of a process, by its own clock (clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2)


def _measure(case: Case, ports: list[int], server: int) -> Result:
    began = _cpu_s(server)
    port = ports[case.tls]
    actors = [
        threading.Thread(target=case.act, args=(port, case.data), daemon=True) for _ in range(case.clients)
    ]
    longest = most = 0.0
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=CASE_TIMEOUT_S) as sock:
        for _ in range(100):
            _ask(sock, server)
        for actor in actors:
            actor.start()
        while longest < CASE_TIMEOUT_S and any(actor.is_alive() for actor in actors):
            waited, spent = _ask(sock, server)
            longest, most = max(longest, waited), max(most, min(waited, spent))
            time.sleep(0.001)
    return Result(longest * 1000, most * 1000, _cpu_s(server) - began)


def _ask(sock: socket.socket, server: int) -> tuple[float, float]:
    """Seconds to the answer, and of CPU that the server spent; `CASE_TIMEOUT_S` without an answer."""
    spent = _cpu_s(server)
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
    return time.monotonic() - began, float(received.rpartition(b"\n")[2].split()[0]) - spent


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
        + " | ".join(f"{path.name}: waits ms | held up ms | CPU s" for path in checkouts)
        + " |"
    )
    print("| --- |" + " --- | --- | --- |" * len(checkouts))
    for case in _cases():
        if arguments.only not in case.title:
            continue
        results: dict[Path, list[Result]] = {path: [] for path in checkouts}
        for _ in range(arguments.rounds):
            for path in checkouts:
                with _serving(path) as (ports, server):
                    results[path].append(_measure(case, ports, server))
        cells = []
        for path in checkouts:
            cells.append(f"{statistics.median(result.waits_ms for result in results[path]):,.0f}")
            cells.append(f"{statistics.median(result.held_up_ms for result in results[path]):,.0f}")
            cells.append(f"{statistics.median(result.cpu_s for result in results[path]):.2f}")
        print(f"| {case.title} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
