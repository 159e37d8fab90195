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
    "ok",
    "bad_url",
    "does_not_resolve",
    "refused",
    "unreachable",
    "timeout",
    "tls_error",
    "bad_certificate",
    "not_http",
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


def probe_host(url: str, timeout_s: float = 5.0, verify: bool = True) -> Probe:
    """Send one GET to `url` and say what is there; `timeout_s` bounds connect, TLS and response together.

    Resolving a name has the resolver's own time limit.

    :param verify: whether the server's certificate has to be valid for its name.
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
                authority = parts.netloc.rpartition("@")[2]
                context = client_tls(verify) if tls else None
                return _ask(sock, context, host, authority, target, peer, deadline)
    return failure


def client_tls(verify: bool) -> ssl.SSLContext:
    """As a KeepAliveUser's own (`client.origin`): with the system's authorities, SSL_CERT_FILE's if set."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _left(deadline: float) -> float:
    """Seconds until `deadline`, as a socket timeout (0 would mean non-blocking)."""
    return max(0.001, deadline - time.monotonic())


def _ask(
    sock: socket.socket,
    tls: ssl.SSLContext | None,
    host: str,
    authority: str,
    target: str,
    peer: tuple[str, int],
    deadline: float,
) -> Probe:
    """One request over a connection; closed by its end."""
    where = f"{host}:{peer[1]}"
    if tls is not None:
        try:
            sock.settimeout(_left(deadline))
            sock = tls.wrap_socket(sock, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            detail = f"{where} has no valid certificate: {error.verify_message}; --insecure takes any"
            return Probe("bad_certificate", detail, address=peer)
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
