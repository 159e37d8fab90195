"""Small servers for the client's tests, made of raw sockets: a function of the test serves each connection.

    with Peer(answering(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")) as peer:
        client = session(peer.url)

A serving function gets a :class:`Served` for each connection and may do to it what no proper server does.
What the connections brought is kept in `peer.connections` for assertions.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl

#: Seconds that anything here may take before its test fails.
DEADLINE_S = 40.0


class Served:
    """A connection as its server sees it."""

    def __init__(self, sock: Any, number: int) -> None:
        self.sock = sock
        #: 0 for the first connection of the peer.
        self.number = number
        #: Each request as its bytes, head and body.
        self.requests: list[bytes] = []
        self._buffer = b""

    def read_request(self) -> bytes | None:
        """One request with its body; None at the end of the connection."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return None
        head, _, _ = self._buffer.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        total = len(head) + 4 + length
        while len(self._buffer) < total:
            if not self._more():
                return None
        request, self._buffer = self._buffer[:total], self._buffer[total:]
        self.requests.append(request)
        return request

    def _more(self) -> bool:
        try:
            data = self.sock.recv(1 << 20)
        except OSError:
            return False
        self._buffer += data
        return bool(data)

    def send(self, *parts: bytes, pause_s: float = 0.0) -> None:
        """Send each part in a segment of its own."""
        for part in parts:
            self.sock.sendall(part)
            gevent.sleep(pause_s)

    def reset(self) -> None:
        """End the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Serve = Callable[[Served], None]


class Peer:
    """Listens on a free port; `serve` runs once a connection, which closes when it returns."""

    def __init__(
        self, serve: Serve, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, backlog: int = 128
    ) -> None:
        self._serve = serve
        self._tls = tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = gevent.socket.socket(family, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((host, 0))
        self.listener.listen(backlog)
        self.port = self.listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http{'s' if tls else ''}://{shown}:{self.port}"
        self.connections: list[Served] = []
        self._accepted: list[Any] = []
        self._greenlets: list[Any] = []

    def __enter__(self) -> Peer:
        self._greenlets.append(gevent.spawn(self._accept))
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        gevent.killall(self._greenlets, block=True, timeout=DEADLINE_S)
        for sock in self._accepted:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._accepted.append(sock)
            self._greenlets.append(gevent.spawn(self._one, sock))

    def _one(self, sock: Any) -> None:
        try:
            if self._tls is not None:
                self._accepted.remove(
                    sock
                )  # the TLS socket takes its descriptor over, and closes it if it fails
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                self._accepted.append(sock)
                sock.do_handshake()
            served = Served(sock, len(self.connections))
            self.connections.append(served)
            self._serve(served)
        except OSError:
            pass  # the client went away: what it saw is what the test looks at
        with contextlib.suppress(OSError):
            sock.close()

    @property
    def requests(self) -> list[bytes]:
        """Requests of all connections."""
        return [request for served in self.connections for request in served.requests]


def answering(*responses: bytes, pause_s: float = 0.0) -> Serve:
    """Serve: each request gets the next of `responses`, the last one for ever."""

    def serve(served: Served) -> None:
        count = 0
        while served.read_request() is not None:
            served.send(responses[min(count, len(responses) - 1)], pause_s=pause_s)
            count += 1

    return serve


def by_path(routes: dict[str, bytes]) -> Serve:
    """Serve: each request gets the response of its path (without the query)."""

    def serve(served: Served) -> None:
        while (request := served.read_request()) is not None:
            path = request.split(b" ")[1].partition(b"?")[0].decode()
            served.send(routes.get(path) or response(b"", status="404 Not Found"))

    return serve


def response(body: bytes = b"ok", *fields: str, status: str = "200 OK") -> bytes:
    """A response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def head_fields(request: bytes) -> dict[str, str]:
    """The header fields of a request."""
    lines = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines), "a field is there twice"
    return fields


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until the condition is true, and return its value; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what or condition}"
        gevent.sleep(0.002)
    return value


@cache
def server_tls(folder: Path, **options: Any) -> ssl.SSLContext:
    """A server's context with a self-signed certificate for 127.0.0.1, made in the folder."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    if not key.exists():
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test"]
            + ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
            check=True,
            capture_output=True,
        )
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for name, value in options.items():
        setattr(context, name, value)
    return context
