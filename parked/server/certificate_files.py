"""TLS by `certfile` and `keyfile`, as pywsgi takes them, with one context for all connections.

`gevent.ssl.wrap_socket` makes a context for each: 20 KB that stay as long as the connection, both files read
at each handshake, and no session that could be resumed. That new files count without a restart is kept: they
are looked at before each handshake, and read when they have changed.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any, Final

from gevent.ssl import SSLContext

#: Options of `gevent.ssl.wrap_socket` that belong to a context; the others belong to a socket.
OF_CONTEXT: Final = ("certfile", "keyfile", "cert_reqs", "ssl_version", "ca_certs", "ciphers")


class CertificateFiles:
    """Stands for an `ssl.SSLContext` where sockets are wrapped.

    :param tell: told in a line when changed files are of no use; then what was read before goes on.
    :param options: those of `OF_CONTEXT`.
    :raises OSError: the files are of no use; `ssl.SSLError` is one.
    """

    def __init__(self, tell: Callable[[str], None], **options: Any) -> None:
        self._tell = tell
        self._options = options
        self.verify_mode: ssl.VerifyMode = options.get("cert_reqs", ssl.CERT_NONE)
        self._seen = self._stamps()
        self._context = self._load()

    def wrap_socket(self, sock: Any, **options: Any) -> Any:
        """A `gevent.ssl.SSLSocket`, as `SSLContext.wrap_socket` makes it."""
        try:
            stamps = self._stamps()
            if stamps != self._seen:
                self._context, self._seen = self._load(), stamps
        except OSError as error:  # half of them is there; looked at again by the next one
            self._tell(f"cannot use the new files: {error}")
        return self._context.wrap_socket(sock, **options)

    def _stamps(self) -> list[tuple[int, int, int]]:
        """What is different when a file is."""
        names = (self._options.get(name) for name in ("certfile", "keyfile", "ca_certs"))
        found = [os.stat(name) for name in names if name]  # noqa: PTH116 - half the time of Path's, per handshake
        return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in found]

    def _load(self) -> SSLContext:
        options = self._options
        context = SSLContext(options.get("ssl_version") or ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = self.verify_mode
        if options.get("ca_certs"):
            context.load_verify_locations(options["ca_certs"])
        context.load_cert_chain(options["certfile"], options.get("keyfile"))
        if options.get("ciphers"):
            context.set_ciphers(options["ciphers"])
        return context
