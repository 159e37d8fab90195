"""TLS for parked connections: a gevent `SSLSocket` behind the interface of a raw non-blocking socket."""

from __future__ import annotations

import _ssl
import ctypes
import socket
import ssl
from collections.abc import Callable
from fcntl import ioctl
from functools import partial
from termios import FIONREAD
from typing import Any, Final

from gevent.ssl import SSLContext, SSLSocket

from parked.server.turns import of_hub

#: Records decrypted in one go, 8 us each however little is in them: 64 KB in records as large as a packet.
MAX_RECORDS: Final = 64

_WOULD_BLOCK: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: SSL_CTRL_CLEAR_MODE and SSL_MODE_AUTO_RETRY (openssl/ssl.h).
_CLEAR_MODE, _AUTO_RETRY = 78, 4
_NOTHING: Final = bytes(4)


class TLSSocket:
    """A client's TLS connection after its handshake.

    `recv` keeps the promise that parking relies on: fewer bytes than asked for mean that nothing is left,
    neither in the kernel nor, decrypted, in OpenSSL, unless `is_behind`. An SSL socket with pending bytes is
    not idle. The same holds where it raises BlockingIOError.

    :ivar is_behind: the last `recv` has ended for the number of its records, and there may be more.
    """

    __slots__ = ("_cooperative", "_is_cut", "_ssl", "is_behind")

    def __init__(self, ssl_socket: Any) -> None:
        ssl_socket.setblocking(False)
        _read_records_one_by_one(getattr(ssl_socket, "_sslobj", None))
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
        left = MAX_RECORDS
        while missing > 0:
            if not left:
                self.is_behind = True
                if parts:
                    break
                raise BlockingIOError
            left -= 1
            try:
                data = self._ssl.recv(missing)
            except _WOULD_BLOCK as why:
                if type(why) is ssl.SSLWantReadError and ioctl(self.fileno(), FIONREAD, _NOTHING) != _NOTHING:
                    continue  # there was a record, and no content in it
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


def wrapping(context: Any) -> Callable[..., Any]:
    """What makes a socket a `gevent.ssl.SSLSocket` with that *context*, also with one of Python's own class.

    `ssl` has that class in a program that is not patched, or before it is, and its sockets block the hub.
    """
    if isinstance(context, _ssl._SSLContext) and not isinstance(context, SSLContext):
        return partial(SSLSocket, _context=context)
    wrap: Callable[..., Any] = context.wrap_socket
    return wrap


def _read_records_one_by_one(connection: Any) -> None:
    """Have OpenSSL come back after a record that has no content, such as a key update (RFC 8446, 4.6.3).

    It would go on as long as there are such, some 20 us each, and nobody else would be served meanwhile: a
    client can send as many with 1.5 MB/s. Python turns SSL_MODE_AUTO_RETRY on for each connection and has no
    way to turn it off, so OpenSSL is asked itself.
    """
    if (known := ssl_of(connection)) is not None:
        openssl.SSL_ctrl(ctypes.c_void_p(known), _CLEAR_MODE, ctypes.c_long(_AUTO_RETRY), None)


def ssl_of(connection: Any) -> int | None:
    """The address of OpenSSL's own connection beneath Python's; None if there is no telling.

    Behind what all objects have, Python's has a weak reference, that address, and its context (PySSLSocket in
    Modules/_ssl.c, from 3.6 to 3.14). Where the third is not the context that it shows, it is another kind.
    """
    if openssl is None or type(connection) is not _ssl._SSLSocket:  # type: ignore[attr-defined]
        return None
    _, address, context = (ctypes.c_void_p * 3).from_address(id(connection) + object.__basicsize__)
    return address if context == id(connection.context) else None


def _openssl_of_python() -> Any:
    """The library that Python's own module is linked with; None if it cannot be called."""
    try:
        library = ctypes.CDLL(_ssl.__file__)
        library.SSL_ctrl.restype = ctypes.c_long
    except (AttributeError, OSError):  # built into Python, or of another kind
        return None
    return library


openssl: Final = _openssl_of_python()


def _sharing(call: Callable[..., Any]) -> Callable[..., Any]:
    """As `parked.server.stream.SharingSocket`: its recv() is made of read()."""

    turns = of_hub()

    def shared(*args: Any, **options: Any) -> Any:
        turns.share()
        return call(*args, **options)

    return shared
