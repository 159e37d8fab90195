"""Two requests on one connection, before a run against a server that is not ours: what would fail for each
connection is said at once, in a line."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from urllib.parse import quote, urlsplit

from parked.loadtest.plan.probe import client_tls

#: Seconds for both requests, and bytes of a body that are read.
TIMEOUT_S, LARGEST_BODY = 10.0, 64 << 20
#: Of a path and query, what is left alone when the rest is percent-encoded, as `client.message.fit` has it.
SAFE = "!$%&'()*+,/:;=?@[]~"
#: Characters of a URL that are told.
LONGEST_URL = 200


def objection(
    url: str, path: str, length: int | None = None, *, verify: bool = True, timeout_s: float = TIMEOUT_S
) -> str:
    """Why connections to this server would not be held, or their requests would fail; empty if they would.

    :param path: what is asked for, behind the path of `url`.
    :param length: bytes that the body should have; None for any.
    :param verify: whether the server's certificate has to be valid.
    """
    connection = _connection(url, verify, timeout_s)
    target, what = _target(url, path), f"GET {path}"
    with contextlib.closing(connection):
        try:
            connection.connect()
            opened = connection.sock
            guard = threading.Timer(timeout_s, _shut, [opened])  # a peer that drips must not hold us
            guard.start()
            try:
                for _ in range(2):
                    connection.request("GET", target)
                    with connection.getresponse() as response:
                        body = response.read(LARGEST_BODY)
                        closes = response.will_close
                    if found := _wrong(what, response, len(body), length):
                        return found
                    if closes:
                        version = "1.0" if response.version == 10 else "1.1"
                        return (
                            f"closes each connection after its response (HTTP/{version}): none would be held"
                        )
            finally:
                guard.cancel()
        except (OSError, http.client.HTTPException) as error:
            return f"does not answer two requests on one connection: {error or type(error).__name__}"
    return ""


def no_stream(url: str, path: str, *, verify: bool = True, timeout_s: float = TIMEOUT_S) -> str:
    """Why what this server has at the path is no event stream, by its head; empty if it is one."""
    what = f"GET {path}"
    with contextlib.closing(_connection(url, verify, timeout_s)) as connection:
        try:
            connection.connect()
            guard = threading.Timer(timeout_s, _shut, [connection.sock])
            guard.start()
            try:
                connection.request("GET", _target(url, path), headers={"Accept": "text/event-stream"})
                response = connection.getresponse()
            finally:
                guard.cancel()
        except (OSError, http.client.HTTPException) as error:
            return f"does not begin an event stream: {error or type(error).__name__}"
        if found := _wrong(what, response, 0, None):
            return found
        kind = response.headers.get_content_type()
        if response.status != http.HTTPStatus.OK or kind != "text/event-stream":
            return f"answers {what} with {response.status}, {kind}: no event stream; --path names another"
    return ""


def _connection(url: str, verify: bool, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme != "https":
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    return http.client.HTTPSConnection(
        parts.hostname or "", parts.port, timeout=timeout_s, context=client_tls(verify)
    )


def _target(url: str, path: str) -> str:
    """What a session asks for, which may spell it with fewer escapes (`client.message.fit`)."""
    return quote((urlsplit(url).path.rstrip("/") + path).partition("#")[0], SAFE)


def _wrong(what: str, response: http.client.HTTPResponse, got: int, length: int | None) -> str:
    if 300 <= response.status < 400:
        return (
            f"redirects {what} to {(response.headers.get('Location') or 'nowhere')[:LONGEST_URL]} "
            f"({response.status}): test that address"
        )
    if response.status >= 400:
        return f"answers {response.status} to {what}; --path names another"
    if length is not None and got != length:
        return f"answers {what} with {got:,} bytes, not the {length:,} asked for; --path / takes any body"
    return ""


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
