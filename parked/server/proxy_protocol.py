"""The PROXY protocol: a balancer says in front of a connection, before TLS too, whose it is.

The source is HAProxy's proxy-protocol.txt (2.1 for version 1, a line of text; 2.2 for version 2, binary). A
peer that is trusted must send a header, and everybody else must not: what they send is read as TLS or HTTP,
and refused as that. Not a byte behind the header is taken from the socket: a TLS handshake may begin there.

A header is checked as strictly as it can be, and bounded: 107 bytes in version 1, `MAX_HEADER_BYTES` in
version 2, and the header timeout for all of it.
"""

from __future__ import annotations

import re
import socket
import struct
from ipaddress import ip_address
from typing import Any, Final

from parked.server.trust import TrustedPeers, plain

#: Which versions are taken, by the name of the setting.
VERSIONS: Final = {"v1": (1,), "v2": (2,), "auto": (1, 2)}
#: Whom to believe if nobody is named, as gunicorn has it.
DEFAULT_PEERS: Final = "127.0.0.1,::1"

#: Version 1, 2.1: the longest line, with its CRLF.
_MAX_LINE_BYTES: Final = 107
#: Version 2: a certificate's names and a balancer's own notes fit in; the protocol itself would allow 64 KB.
MAX_HEADER_BYTES: Final = 4096

_LINE_BEGINS: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = struct.Struct("!12sBBH")
_LINE: Final = re.compile(
    r"PROXY (?:TCP([46]) (\S{2,39}) (\S{2,39}) ([0-9]{1,5}) ([0-9]{1,5})|UNKNOWN(?: .*)?)"
)
#: Version 2, family and transport: how long the addresses are, and where the source's port stands.
_ADDRESSES: Final = {
    0x11: (4, 8),
    0x12: (4, 8),
    0x21: (16, 32),
    0x22: (16, 32),
    0x31: (108, 0),
    0x32: (108, 0),
}
_UNSPEC: Final = 0x00
#: Version 2, commands.
_LOCAL: Final = 0x20
_PROXY: Final = 0x21


class ProxyError(ValueError):
    """Not the header that was due, in words."""


class ProxyProtocol:
    """Whose connections begin with a header, and the reading of it.

    :param version: v1, v2 or auto.
    :param allowed: the peers that send one, for `TrustedPeers`.
    :raises ValueError: one of these is something else.
    """

    def __init__(self, version: str, allowed: str = DEFAULT_PEERS) -> None:
        if version not in VERSIONS:
            raise ValueError("needs v1, v2 or auto")
        self._versions = VERSIONS[version]
        self._peers = TrustedPeers(allowed)

    def receive(self, client: Any, peer: Any) -> Any:
        """The client's address: what the header of *peer* says, or *peer* itself.

        :param client: a cooperative socket, of which no byte behind the header is read.
        :raises ProxyError: there is no proper header.
        :raises OSError: the connection is lost.
        """
        if not self._peers.trusts(peer):
            return peer
        header = b""
        size = 0
        while not size:
            # What is looked at and taken is header, as long as its length is not known.
            seen = client.recv(MAX_HEADER_BYTES, socket.MSG_PEEK)
            if not seen:
                raise ProxyError("the connection ends before its PROXY header")
            size = header_size(header + seen, self._versions)
            taken = client.recv(min(len(seen), size - len(header)) if size else len(seen))
            header += taken
        while len(header) < size:
            more = client.recv(size - len(header))
            if not more:
                raise ProxyError("the connection ends within its PROXY header")
            header += more
        return source(header) or peer


def header_size(data: bytes, versions: tuple[int, ...] = (1, 2)) -> int:
    """Bytes of the header that *data* begins with; 0 while that cannot be told, and all of it is header.

    :raises ProxyError: it does not begin with one of these versions.
    """
    if 1 in versions and data.startswith(_LINE_BEGINS[: len(data)]):
        end = data.find(b"\n", 0, _MAX_LINE_BYTES)
        if end < 0 and len(data) >= _MAX_LINE_BYTES:
            raise ProxyError("the PROXY line is too long")
        return end + 1
    if 2 in versions and data.startswith(_SIGNATURE[: len(data)]):
        if len(data) < _FIXED.size:
            return 0
        size = _FIXED.size + int.from_bytes(data[14:16], "big")
        if size > MAX_HEADER_BYTES:
            raise ProxyError(f"the PROXY header is longer than {MAX_HEADER_BYTES} bytes")
        return size
    raise ProxyError("no PROXY header")


def source(header: bytes) -> tuple[str, int] | None:
    """Host and port of the client that a whole header names; None if it names none (a health check, say).

    :raises ProxyError: it is malformed.
    """
    return _source_v1(header) if header.startswith(_LINE_BEGINS) else _source_v2(header)


def _source_v1(header: bytes) -> tuple[str, int] | None:
    match = _LINE.fullmatch(header[:-2].decode("latin-1"))
    if match is None or not header.endswith(b"\r\n"):
        raise ProxyError("malformed PROXY line")
    version, host, target, *ports = match.groups()
    if version is None:
        return None
    try:
        right = all(ip_address(text).version == int(version) and "%" not in text for text in (host, target))
    except ValueError:
        right = False
    if not right or any(int(port) > 65535 or port != str(int(port)) for port in ports):
        raise ProxyError("malformed address in a PROXY line")
    return str(plain(ip_address(host))), int(ports[0])


def _source_v2(header: bytes) -> tuple[str, int] | None:
    _, command, family, _ = _FIXED.unpack_from(header)
    if command == _LOCAL:  # of the balancer itself; the rest is to be ignored, the family included
        return None
    if command != _PROXY or not (family == _UNSPEC or family in _ADDRESSES):
        raise ProxyError("unknown command or family in a PROXY header")
    host_bytes, port_at = _ADDRESSES.get(family, (0, 0))
    addresses = header[_FIXED.size :]
    rest = 2 * host_bytes + (4 if port_at else 0)
    if len(addresses) < rest:
        raise ProxyError("a PROXY header too short for its addresses")
    if family != _UNSPEC:
        _check_notes(addresses[rest:])
    if not port_at:  # of a unix socket, or of nothing that is known
        return None
    host = str(plain(ip_address(addresses[:host_bytes])))
    return host, int.from_bytes(addresses[port_at : port_at + 2], "big")


def _check_notes(notes: bytes) -> None:
    """2.2: type, length and value, one after the other to the end."""
    at = 0
    while at < len(notes):
        at += 3 + int.from_bytes(notes[at + 1 : at + 3], "big")
        if at > len(notes):
            raise ProxyError("malformed notes in a PROXY header")
