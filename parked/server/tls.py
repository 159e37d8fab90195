"""TLS for parked connections: a gevent `SSLSocket` behind the interface of a raw non-blocking socket."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from parked.server.turns import of_hub

#: Records decrypted in one go, 8 us each however little is in them: 64 KB in records as large as a packet.
MAX_RECORDS: Final = 64

_WOULD_BLOCK: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class TLSSocket:
    """A client's TLS connection after its handshake.

    `recv` keeps the promise that parking relies on: fewer bytes than asked for mean that nothing is left,
    neither in the kernel nor, decrypted, in OpenSSL, unless `is_behind`. An SSL socket with pending bytes is
    not idle.

    :ivar is_behind: the last `recv` has ended for the number of its records, and there may be more.
    """

    __slots__ = ("_cooperative", "_is_cut", "_ssl", "is_behind")

    def __init__(self, ssl_socket: Any) -> None:
        ssl_socket.setblocking(False)
        self._ssl = ssl_socket
        self._cooperative = False
        self._is_cut = False
        self.is_behind = False

    def recv(self, size: int, /) -> bytes:
        if self._cooperative:
            received: bytes = self._ssl.recv(size)
            return received
        parts: list[bytes] = []
        missing = size
        self.is_behind = False
        while missing > 0:
            if len(parts) == MAX_RECORDS:
                self.is_behind = True
                break
            try:
                data = self._ssl.recv(missing)
            except _WOULD_BLOCK:
                if parts:
                    break
                raise BlockingIOError from None
            except OSError:
                if parts:
                    break  # it will be raised again by the next call
                raise
            if not data:
                break
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        try:
            sent: int = self._ssl.send(data)
        except _WOULD_BLOCK:
            raise BlockingIOError from None
        return sent

    def cooperative(self) -> Any:
        """The SSL socket for those who take over the connection; it blocks until `uncooperative`."""
        if not self._cooperative:
            self._cooperative = True
            self._ssl.setblocking(True)
            self._ssl.read, self._ssl.send = _sharing(self._ssl.read), _sharing(self._ssl.send)
        return self._ssl

    def uncooperative(self) -> None:
        if self._cooperative:
            self._cooperative = False
            del self._ssl.read, self._ssl.send
        if self._ssl.fileno() >= 0:
            self._ssl.setblocking(False)

    def peer_certificate(self) -> dict[str, Any] | None:
        """The client's certificate, as `ssl` has it; None or empty if there is none that was verified."""
        certificate: dict[str, Any] | None = self._ssl.getpeercert()
        return certificate

    def fileno(self) -> int:
        fd: int = self._ssl.fileno()
        return fd

    def getpeername(self) -> Any:
        return self._ssl.getpeername()

    def shutdown(self, how: int, /) -> None:
        """Say the end in TLS too. What the client still sends is received as it is, to be thrown away."""
        self._notify()
        self._ssl.shutdown(how)

    def close(self) -> None:
        self._notify()
        self._ssl.close()

    def detach(self) -> int:
        fd: int = self._ssl.detach()
        return fd

    def setsockopt(self, level: int, option: int, value: Any, /) -> None:
        if option == socket.SO_LINGER:
            self._is_cut = True  # a reset is no proper end
        self._ssl.setsockopt(level, option, value)

    def _notify(self) -> None:
        """Send close_notify, unless that was done: without it a response may have been cut off by anyone
        (RFC 9112, 9.8; RFC 8446, 6.1). The client's own is not waited for.
        """
        if self._ssl.fileno() < 0 or self._is_cut:
            return
        try:
            self._ssl.setblocking(False)
            self._ssl.unwrap()
        except (OSError, ValueError):
            pass  # sent, with the client's still to come; or there is nobody to tell


def _sharing(call: Callable[..., Any]) -> Callable[..., Any]:
    """As `parked.server.stream.SharingSocket`: its recv() is made of read()."""

    turns = of_hub()

    def shared(*args: Any, **options: Any) -> Any:
        turns.share()
        return call(*args, **options)

    return shared
