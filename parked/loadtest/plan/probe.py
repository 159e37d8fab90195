"""What answers at the host that is to be tested: found out by one request, before anything is started."""

from __future__ import annotations

import re
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

#: Bytes of response head that the probe reads before it says "not HTTP".
PROBE_HEAD_MAX_BYTES = 64 * 1024

ProbeKind = Literal[
    "ok", "bad_url", "does_not_resolve", "refused", "unreachable", "timeout", "tls_error", "not_http"
]


@dataclass(frozen=True)
class Probe:
    """What answered at a URL."""

    kind: ProbeKind
    detail: str  #: one sentence for the terminal
    status: int | None = None  #: of the response, if there was one
    server: str | None = None  #: its Server field
    address: tuple[str, int] | None = None  #: the one that answered or was tried last

    @property
    def ok(self) -> bool:
        return self.kind == "ok"


#: RFC 9112, section 4: a status line; its reason may be empty.
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r?\n")
_SERVER_FIELD = re.compile(rb"^server:[ \t]*([^\r\n]*?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


def probe_host(url: str, timeout_s: float = 5.0) -> Probe:
    """Send one GET to `url` and say what is there; `timeout_s` bounds connect, TLS and response together.

    Resolving a name has the resolver's own time limit.  Certificates are not verified: a load test meets
    self-signed ones, and Locust's FastHttpUser does not verify them either.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return Probe("bad_url", f"{url!r} is no URL: {error}")
    if parts.scheme not in ("http", "https") or not host:
        return Probe("bad_url", f"{url!r} is no URL of the form http://HOST[:PORT]")
    tls = parts.scheme == "https"
    port = port if port is not None else 443 if tls else 80
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Probe("does_not_resolve", f"{host} does not resolve: {reason}")
    deadline = time.monotonic() + timeout_s
    failure = Probe("unreachable", f"{host} has no address")
    for _, _, _, _, address in found:  # as create_connection does: localhost is ::1 and 127.0.0.1
        peer = (str(address[0]), port)
        try:
            sock = socket.create_connection(peer, timeout=_left(deadline))
        except ConnectionRefusedError:
            failure = Probe("refused", f"nothing listens at {host}:{port}: connection refused", address=peer)
        except TimeoutError:
            detail = f"{host}:{port} did not accept a connection within {timeout_s:g} s"
            return Probe("timeout", detail, address=peer)
        except OSError as error:
            failure = Probe("unreachable", f"{host}:{port} is out of reach: {error.strerror}", address=peer)
        else:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            with sock:
                return _ask(sock, tls, host, parts.netloc.rpartition("@")[2], target, peer, deadline)
    return failure


def _left(deadline: float) -> float:
    """Seconds until `deadline`, as a socket timeout (0 would mean non-blocking)."""
    return max(0.001, deadline - time.monotonic())


def _ask(
    sock: socket.socket,
    tls: bool,
    host: str,
    authority: str,
    target: str,
    peer: tuple[str, int],
    deadline: float,
) -> Probe:
    """One request over a connection; closed by its end."""
    where = f"{host}:{peer[1]}"
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            sock.settimeout(_left(deadline))
            sock = context.wrap_socket(sock, server_hostname=host)
        except TimeoutError:
            return Probe("timeout", f"{where} accepts but does not answer the TLS handshake", address=peer)
        except OSError as error:  # SSLError is one
            reason = getattr(error, "reason", None) or error.strerror or str(error)
            return Probe("tls_error", f"{where} does not speak TLS: {reason}", address=peer)
    with sock:
        head = b""
        try:
            sock.settimeout(_left(deadline))
            sock.sendall(
                f"GET {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: preflight\r\n"
                "Accept: */*\r\nConnection: close\r\n\r\n".encode()
            )
            while len(head) < PROBE_HEAD_MAX_BYTES and b"\r\n\r\n" not in head:
                if time.monotonic() >= deadline:  # a peer that drips must not hold us
                    raise TimeoutError
                sock.settimeout(_left(deadline))
                if not (data := sock.recv(8192)):
                    break
                head += data
        except TimeoutError:
            if not head:
                return Probe("timeout", f"{where} accepts connections but does not answer", address=peer)
        except OSError as error:
            if not head:
                return Probe("not_http", f"{where} ended the connection: {error.strerror}", address=peer)
    if not head:
        return Probe("not_http", f"{where} closed the connection without an answer", address=peer)
    if (line := _STATUS_LINE.match(head)) is None:
        start = head[:40].decode("ascii", "backslashreplace")
        return Probe("not_http", f"{where} does not speak HTTP/1: it answered {start!r}", address=peer)
    fields = head.partition(b"\r\n\r\n")[0]
    field = _SERVER_FIELD.search(fields)
    server = field[1].decode("latin-1") if field else None
    status = int(line[1])
    return Probe("ok", f"{where} answers {status}" + (f", {server}" if server else ""), status, server, peer)
