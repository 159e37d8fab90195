"""Whom a user talks to: a server by its name, and what all requests to it share.

A :class:`Server` is a host and port with all of its addresses, one for the whole process. An :class:`Origin`
is that with a scheme and with what users say of themselves: header fields, credentials, TLS. Users who say
the same share one; it is theirs by value, not by class, since each may have a token of its own.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from gevent.lock import BoundedSemaphore

from parked.loadtest.client.coding import ACCEPTED
from parked.loadtest.client.errors import ConnectFailed, NoAddress
from parked.loadtest.client.source_address import SourceAddresses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Seconds after which a name is looked up again, when the next connection is opened.
RESOLVED_FOR_S = 1.0
#: Sets of header fields that are remembered with what goes beside them: a test has few, a fuzzer many.
MAX_TAILS = 64

PORTS = {"http": 80, "https": 443}

#: What methods and names of header fields are made of (RFC 9110, 5.6.2).
is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch


class Address(NamedTuple):
    """One address of a server, and where connections to it start from (None: the kernel chooses)."""

    family: int
    socket_address: tuple[Any, ...]
    sources: SourceAddresses | None


class Server:
    """A host and port, by name or address."""

    def __init__(self, hostname: str, port: int, worker_index: int) -> None:
        self.hostname = hostname
        self._port = port
        self._worker_index = worker_index
        self._turn = max(worker_index, 0)
        self._addresses: tuple[Address, ...] = ()
        #: Those that refused since the last look-up are tried last.
        self._refused: set[tuple[Any, ...]] = set()
        self._known: dict[tuple[Any, ...], Address] = {}
        self._stale_at = -float("inf")
        self._looking_up = BoundedSemaphore()

    @property
    def sources(self) -> str:
        """The local addresses that connections to it start from, for reports; "" if the kernel chooses."""
        return next((address.sources.used for address in self._known.values() if address.sources), "")

    def addresses(self) -> tuple[Address, ...]:
        """All addresses, in the order in which one more connection should try them: each comes first in turn.

        Raises :class:`ConnectFailed` if the name has none.
        """
        if time.perf_counter() >= self._stale_at:
            with self._looking_up:  # one look-up for all users that open connections just now
                if time.perf_counter() >= self._stale_at:
                    self._look_up()
        if len(self._addresses) == 1:
            return self._addresses
        first = self._turn % len(self._addresses)
        self._turn += 1
        turned = self._addresses[first:] + self._addresses[:first]
        return tuple(sorted(turned, key=lambda address: address.socket_address in self._refused))

    def refused(self, address: Address) -> None:
        """A connection to it was refused."""
        self._refused.add(address.socket_address)

    def _look_up(self) -> None:
        try:
            found = socket.getaddrinfo(self.hostname, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NoAddress(f"{self.hostname}: {getattr(error, 'strerror', None) or error}") from None
        addresses, unfit = [], ""
        for entry in found:
            try:
                addresses.append(self._address(entry[0], entry[4]))
            except ValueError as error:  # no source address is of its version of IP
                unfit = str(error)
        if not addresses:
            raise ConnectFailed(unfit)
        self._refused.clear()
        self._addresses = tuple(dict.fromkeys(addresses))
        is_literal = [str(self._addresses[0].socket_address[0])] == [self.hostname]
        self._stale_at = float("inf") if is_literal else time.perf_counter() + RESOLVED_FOR_S

    def _address(self, family: int, socket_address: tuple[Any, ...]) -> Address:
        if socket_address not in self._known:
            sources = SourceAddresses.of_worker(str(socket_address[0]), self._worker_index)
            self._known[socket_address] = Address(family, socket_address, sources)
        return self._known[socket_address]


class Nowhere(Server):
    """In place of the server of a host that is none: there is no connection to it."""

    def __init__(self, host: str) -> None:
        super().__init__("", 0, -1)
        self._host = host

    def addresses(self) -> tuple[Address, ...]:
        raise ConnectFailed(f"host {self._host!r} is not an http:// or https:// URL")


class BadField(ValueError):
    """A header field that is none."""


class Place(NamedTuple):
    """Scheme, host and port: what makes two URLs one origin (RFC 6454, 4), however they are spelt."""

    scheme: str
    hostname: str
    port: int

    @classmethod
    def of(cls, parts: SplitResult) -> Place:
        """Raises ValueError for what is no http:// or https:// URL."""
        scheme = parts.scheme.lower()
        if scheme not in PORTS or not parts.hostname:
            raise ValueError(f"host {parts.geturl()!r} is not an http:// or https:// URL")
        return cls(scheme, parts.hostname, parts.port or PORTS[scheme])


class Origin:
    """A server as a user talks to it.

    :ivar url: scheme and authority, without credentials.
    :ivar tail: what follows the path in a GET without fields of its own.
    :ivar named: lower-case names of the fields that the user gave.
    """

    __slots__ = (
        "__weakref__",
        "_bare",
        "_fields",
        "_tails",
        "_to_length",
        "named",
        "place",
        "server",
        "tail",
        "tls_context",
        "url",
    )

    def __init__(
        self, url: str, server: Server, default_headers: Mapping[str, Any], tls_context: ssl.SSLContext | None
    ) -> None:
        parts = urlsplit(url)
        self.place = Place.of(parts)
        self.server = server
        authority = parts.netloc.rpartition("@")[2]
        self.url = f"{self.place.scheme}://{authority}"
        self.tls_context = tls_context
        bare = {"Host": authority, "User-Agent": "locust-parked", "Accept-Encoding": ACCEPTED}
        fields = dict(bare)
        if credentials := credentials_of(parts):
            fields["Authorization"] = basic_authorization(*credentials)
        self.named = frozenset(name.lower() for name in default_headers)
        fields = {name: value for name, value in fields.items() if name.lower() not in self.named}
        #: With and without what is the user's own.
        self._fields: dict[str, Any] = fields | dict(default_headers)
        self._bare = bare
        self._tails: dict[tuple[tuple[str, ...], bool], bytes] = {}
        self._to_length: dict[tuple[tuple[str, str], ...], bytes] = {}
        self.tail = self.tail_beside(())

    @property
    def authorization(self) -> str | None:
        """What the user has to show, if anything."""
        return next(
            (str(value) for name, value in self._fields.items() if name.lower() == "authorization"), None
        )

    def tail_beside(self, names: tuple[str, ...], bare: bool = False) -> bytes:
        """Version and shared fields, less those that a request brings; `bare`: nothing of the user's."""
        tail = self._tails.get((names, bare))
        if tail is None:
            fields = self._bare if bare else self._fields
            for name in (*names, *fields):
                if not is_token(name):
                    raise BadField(f"no name of a header field: {name!r}")
            brought = {name.lower() for name in names}
            tail = b" HTTP/1.1\r\n" + field_lines(
                {name: value for name, value in fields.items() if name.lower() not in brought}
            )
            if len(self._tails) < MAX_TAILS:
                self._tails[names, bare] = tail
        return tail

    def tail_to_length(self, fields: tuple[tuple[str, str], ...], instead: bool) -> bytes:
        """Version, shared fields, and those of a body up to the number of its bytes.

        :param instead: they take the place of the user's, which otherwise stay.
        """
        tail = self._to_length.get(fields)
        if tail is None:
            kept = () if instead else self.named
            beside = {name: value for name, value in fields if name.lower() not in kept}
            tail = self.tail_beside((*beside, "Content-Length")) + field_lines(beside) + b"Content-Length: "
            if len(self._to_length) < MAX_TAILS:
                self._to_length[fields] = tail
        return tail


def last_of_each(fields: Any) -> dict[str, Any]:
    """Header fields by their names, however these are spelt: the last one of each counts.

    :param fields: mapping or pairs.
    """
    return dict({name.lower(): (name, value) for name, value in dict(fields).items()}.values())


def field_lines(fields: Mapping[str, Any]) -> bytes:
    """Header fields as they are sent; a list has a line for each of its values, as in FastHttpUser.

    Raises :class:`BadField` for what would be more than a line (CWE-113), or no text of HTTP.
    """
    lines: list[str] = []
    for name, value in fields.items():
        if isinstance(value, list | tuple):
            lines += [f"{name}: {one}\r\n" for one in value]
        else:
            lines.append(f"{name}: {value}\r\n")
    text = "".join(lines)
    if text.count("\r") != len(lines) or text.count("\n") != len(lines) or "\0" in text:
        raise BadField(f"line break or NUL in the header fields {list(fields)}")
    return text.encode("latin-1")


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


def credentials_of(parts: SplitResult) -> tuple[str, str] | None:
    """User and password in a URL, their percent-encoding undone."""
    if parts.username is None:
        return None
    return unquote(parts.username), unquote(parts.password or "")


def basic_authorization(user: str | bytes, password: str | bytes) -> str:
    """The Authorization field's value (RFC 7617)."""
    return "Basic " + b64encode(b":".join((_as_bytes(user), _as_bytes(password)))).decode()


def _as_bytes(text: str | bytes) -> bytes:
    """In Latin-1 as FastHttpUser and requests have it, and what that can't say in UTF-8."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()
