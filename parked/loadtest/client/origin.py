"""A server that a user talks to: its address, and the header fields that all requests to it share."""

from __future__ import annotations

import socket
import ssl
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from parked.loadtest.client.source_address import SourceAddresses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Origin:
    """A scheme, host and port, resolved once, with the header fields that all requests to it share.

    :ivar url: scheme and authority, without credentials.
    :ivar tail: what follows the path in a GET without fields of its own.
    """

    def __init__(
        self,
        url: str,
        default_headers: Mapping[str, str],
        make_tls_context: Callable[[], ssl.SSLContext],
        worker_index: int,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"host {url!r} is not an http:// or https:// URL")
        authority = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{authority}"
        self.hostname = parts.hostname
        self.tls_context = make_tls_context() if parts.scheme == "https" else None
        port = parts.port or (443 if self.tls_context else 80)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)[0]
        self.family: int = found[0]
        self.address: tuple[Any, ...] = found[4]
        self.sources = SourceAddresses.of_worker(str(self.address[0]), worker_index)
        self._fields = {
            "Host": authority,
            "User-Agent": "locust-parked",
            "Accept-Encoding": "gzip, deflate",
        }
        if parts.username is not None:
            credentials = unquote(parts.username), unquote(parts.password or "")
            self._fields["Authorization"] = basic_authorization(*credentials)
        for name, value in default_headers.items():
            self._fields = {
                known: kept for known, kept in self._fields.items() if known.lower() != name.lower()
            }
            self._fields[name] = value
        self.tail = self.tail_beside(())

    def tail_beside(self, names: Iterable[str]) -> bytes:
        """Version and shared fields, less those that a request brings itself."""
        brought = {name.lower() for name in names}
        fields = "".join(
            f"{name}: {value}\r\n" for name, value in self._fields.items() if name.lower() not in brought
        )
        return b" HTTP/1.1\r\n" + fields.encode("latin-1")


class TlsSettings(Protocol):
    """What a user says about TLS, in FastHttpUser's attributes."""

    insecure: bool
    ssl_context_factory: Callable[..., Any] | None


def tls_context(user: TlsSettings) -> ssl.SSLContext:
    if user.ssl_context_factory is not None:
        context: ssl.SSLContext = user.ssl_context_factory()
        return context
    context = ssl.create_default_context()
    if user.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def basic_authorization(user: str | bytes, password: str | bytes) -> str:
    """The Authorization field's value (RFC 7617)."""
    parts = [part if isinstance(part, bytes) else part.encode() for part in (user, password)]
    return "Basic " + b64encode(b":".join(parts)).decode()
