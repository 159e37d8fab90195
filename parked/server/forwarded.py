"""Who is behind a proxy: X-Forwarded-For, -Proto, -Host and -Port, and Forwarded (RFC 7239).

Anyone can send these fields, so they count only if the peer is trusted, and of a list only what trusted
proxies have added to its end. Each proxy adds the address that it sees; read from the right, the first one
that is not trusted is the client, and all on its left is hearsay. Scheme and host are those of the same hop.

    peer trusted   client, scheme, host and port as its fields say; the fields stay
    any other      the fields are removed, lest a framework believe them

A proxy that sets one family of fields passes on what a client sends of the other. Where both are there and do
not say the same, the request is refused: nobody can know which of them is forged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from parked.server.request import HOST, BadRequestError
from parked.server.trust import TrustedPeers, plain

#: Proxies that a request may have passed. A client can send very long lists.
MAX_HOPS: Final = 100
#: What a client's fields say is remembered, since it sends them with every request: how many of them, and the
#: longest. Some 2 MB of a process at most.
MAX_REMEMBERED: Final = 2048
MAX_REMEMBERED_CHARACTERS: Final = 256

_FIELDS: Final = (
    "HTTP_FORWARDED",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PORT",
)

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
#: What proxies say of the scheme; the last two of what becomes a WebSocket.
_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}

# RFC 7239, 4: pairs of token and value; there may be none. Proxies also write [2001:db8::1]:80
# without quotes.
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z:\[\]]+"
_QUOTED: Final = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_PAIR: Final = re.compile(rf"[ \t]*(?:({_TOKEN})=({_VALUE}|{_QUOTED})[ \t]*)?([;,]|\Z)")
# RFC 7239, 6: a port may be obfuscated.
_NODE: Final = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)|([0-9A-Fa-f:.]+))(?::(?:([0-9]{1,5})|_[0-9A-Za-z._-]+))?"
)


class Node(NamedTuple):
    """One end of a hop; the port is empty if nobody says it."""

    host: str
    port: str


class _Said(NamedTuple):
    """What one family of fields says; None where it says nothing."""

    client: Node | None = None
    scheme: str | None = None
    host: str | None = None
    port: str | None = None


class Forwarded:
    """Believe trusted proxies.

    :param allowed: their addresses, for `TrustedPeers`.
    :raises ValueError: these are none.
    """

    def __init__(self, allowed: str) -> None:
        self._peers = TrustedPeers(allowed)
        self._remembered = lru_cache(MAX_REMEMBERED)(self._read)

    def apply(self, environ: dict[str, Any], peer: Any) -> Any:
        """Put into *environ* what is known of the client behind *peer*; returns its address.

        :raises BadRequestError: a trusted peer's fields are malformed, or contradict each other.
        """
        present = [name for name in _FIELDS if name in environ]
        if not present:
            return peer
        if not self._peers.trusts(peer):
            for name in present:
                del environ[name]
            return peer
        values = [environ.get(name, "") for name in _FIELDS]
        is_short = sum(map(len, values)) <= MAX_REMEMBERED_CHARACTERS
        said = self._remembered(*values) if is_short else self._read(*values)
        _put(environ, said)
        return (said.client.host, int(said.client.port or 0)) if said.client else peer

    def _read(self, forwarded: str, chain: str, scheme: str, host: str, port: str) -> _Said:
        by_fields = _Said()
        if chain or scheme or host or port:
            by_fields = self._by_x_fields(chain, scheme, host, port)
        return _agreed(by_fields, self._by_forwarded(forwarded)) if forwarded else by_fields

    def _by_x_fields(self, chain: str, schemes: str, hosts: str, ports: str) -> _Said:
        client, depth = self._find_client(_node(text) for text in _last(chain))

        def said(text: str) -> str | None:
            values = _last(text)
            # Some proxies replace a field that others add to: then it has fewer values than there are hops.
            return values[min(depth, len(values)) - 1] if values else None

        port = said(ports)
        if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise _refusal("malformed X-Forwarded-Port")
        return _Said(client, _scheme(said(schemes)), _host(said(hosts)), port)

    def _by_forwarded(self, text: str) -> _Said:
        hops = _elements(text)[::-1]
        if not hops:
            return _Said()
        client, depth = self._find_client(_node(hop.get("for", "unknown")) for hop in hops)
        hop = hops[depth - 1]
        return _Said(client, _scheme(hop.get("proto")), _host(hop.get("host")))

    def _find_client(self, hops: Iterable[Node | None]) -> tuple[Node | None, int]:
        """The client, and how many hops away it is.

        :param hops: from the nearest on; None for one that has no address.
        """
        client, depth = None, 0
        for node in hops:
            depth += 1
            if node is None:
                break  # the last address that is known stands for it
            client = node
            if not self._peers.trusts_host(node.host):
                break
        return client, max(1, depth)


def _put(environ: dict[str, Any], said: _Said) -> None:
    if said.client is not None:
        environ["REMOTE_ADDR"] = said.client.host
        environ.pop("REMOTE_PORT", None)
        if said.client.port:
            environ["REMOTE_PORT"] = said.client.port
    if said.scheme is not None:
        environ["wsgi.url_scheme"] = said.scheme
    if said.scheme is None and said.host is None and said.port is None:
        return
    usual = _DEFAULT_PORTS[environ["wsgi.url_scheme"]]
    name, port = _split(said.host if said.host is not None else environ.get("HTTP_HOST", ""))
    if said.host is not None:
        environ["HTTP_HOST"] = said.host
        environ["SERVER_NAME"] = name
    if said.port is not None:
        port = said.port
        if name:
            environ["HTTP_HOST"] = name if port == usual else f"{name}:{port}"
    environ["SERVER_PORT"] = port or usual


def _agreed(one: _Said, other: _Said) -> _Said:
    """What both say, or the one that says something."""
    parts: list[Any] = []
    for ours, theirs in zip(one, other, strict=True):
        if ours is not None and theirs is not None and _essence(ours) != _essence(theirs):
            raise _refusal("the forwarded fields contradict each other")
        parts.append(ours if ours is not None else theirs)
    return _Said(*parts)


def _essence(part: Node | str) -> str:
    return part.host if isinstance(part, Node) else part.lower()


def _refusal(reason: str) -> BadRequestError:
    return BadRequestError(HTTPStatus.BAD_REQUEST, reason)


def _last(text: str) -> list[str]:
    """The elements of a list, the last one first; no more than a chain of proxies may have."""
    parts = text.rsplit(",", MAX_HOPS)[-MAX_HOPS:]
    return [part for text in reversed(parts) if (part := text.strip(" \t"))]


def _node(text: str) -> Node | None:
    """RFC 7239, 6, and a bare IPv6 address, as X-Forwarded-For has it; None for what has no address."""
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    try:
        host = str(plain(ip_address(match[1] or match[2] or match[3])))
    except ValueError:
        return None
    return Node(host, match[4] if match[4] and int(match[4]) < 65536 else "")


def _scheme(text: str | None) -> str | None:
    if text is None:
        return None
    scheme = _SCHEMES.get(text.lower())
    if scheme is None:
        raise _refusal("malformed forwarded scheme")
    return scheme


def _host(text: str | None) -> str | None:
    if text is not None and not (HOST.fullmatch(text) and _split(text)[0]):
        raise _refusal("malformed forwarded host")
    return text


def _split(host: str) -> tuple[str, str]:
    """Name and port of a Host field; an IPv6 address has brackets."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and not port.endswith("]") else (host, "")


def _elements(text: str) -> list[dict[str, str]]:
    """The elements of `Forwarded`: parameters by name, in lower case."""
    elements: list[dict[str, str]] = []
    element: dict[str, str] = {}
    at = 0
    end = ";"
    while end:
        match = _PAIR.match(text, at)
        if match is None or len(elements) > MAX_HOPS:
            raise _refusal("malformed Forwarded")
        name, value, end = match.groups()
        at = match.end()
        if name:
            if name.lower() in element:
                raise _refusal("repeated parameter in Forwarded")
            element[name.lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value[0] == '"' else value
        if end != ";" and element:
            elements.append(element)
            element = {}
    return elements
