"""Request content: the bytes behind a request head, as `wsgi.input`.

pywsgi's `Input`, with chunked coding read strictly (RFC 9112, 7.1), with bounds, and with the knowledge
whether some of the content is still on its way, since what is left unread must never become the next request.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from errno import ECONNRESET
from typing import Final

import gevent
from gevent import pywsgi

from parked.server.stream import ConnectionReader

#: Bytes of unread content thrown away to keep a connection; beyond that closing it is cheaper (and a client
#: that waits for the answer before it sends 10 GB learns it sooner).
MAX_DISCARD_BYTES: Final = 262144
#: Bytes of one chunk-size line, extensions included, and of all trailer lines. RFC 9112, 7.1.1: a server
#: ought to limit them; nobody uses them for more than a signature. pywsgi's numbers. Extensions together may
#: be that long and as long again as the content so far, or 8 KB could be sent with each byte of it.
MAX_CHUNK_LINE_BYTES: Final = 8192
MAX_TRAILER_BYTES: Final = 8192

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
# RFC 9112, 7.1 and 7.1.1: chunk-size [ chunk-ext ] CRLF; 15 digits stay below 2**60.
_CHUNK_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[ \t]*"
    + _TOKEN
    + rb"(?:[ \t]*=[ \t]*(?:"
    + _TOKEN
    + rb"|"
    + _QUOTED
    + rb"))?)*\r\n"
)
# RFC 9112, 7.1.2: trailers are field lines; we check and drop them, as pywsgi does.
_TRAILER_LINE: Final = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n")


class RequestBody(pywsgi.Input):  # type: ignore[misc] # gevent has no type hints
    """The content of one request.

    :param content_length: as the client declared it; None if chunked.
    :param send_continue: sends the interim answer that the client waits for (Expect: 100-continue).
    :param limit: bytes after which chunked content is refused, 0 for no bound.
    """

    __slots__ = (
        "abandoned",
        "broken",
        "chunk_left",
        "ended",
        "extension_bytes",
        "limit",
        "received",
        "send_continue",
        "too_long",
    )

    def __init__(
        self,
        rfile: ConnectionReader,
        content_length: int | None,
        send_continue: Callable[[bytes], None] | None = None,
        chunked: bool = False,
        limit: int = 0,
    ) -> None:
        super().__init__(rfile, content_length, None, chunked)
        self.send_continue = send_continue
        self.limit = limit
        #: Part of the content is still on its way: the connection cannot be used again.
        self.abandoned = False
        #: The coding is broken: nobody knows where the content ends.
        self.broken = False
        self.chunk_left = 0
        self.ended = False
        self.extension_bytes = 0
        self.received = 0
        #: It was refused for its length.
        self.too_long = False

    @property
    def unread(self) -> bool:
        """Whether content is left that the application has not read."""
        return not self.ended if self.chunked_input else self.position < (self.content_length or 0)

    def _discard(self) -> None:
        if self.broken or not self.unread:
            return
        left = (self.content_length or 0) - self.position
        if self.send_continue is not None:
            # The client waits for 100 Continue, which will not come: after the final answer it may send its
            # content or not (RFC 9110, 10.1.1), and nobody can tell what comes next. Unless it has not
            # waited.
            if self.chunked_input or len(self.rfile.connection.buffer) < left:
                self.abandoned = True
                return
            self.send_continue = None
        if not self.chunked_input and left > MAX_DISCARD_BYTES:
            self.abandoned = True
            return
        self.abandoned = True  # until proven otherwise: reading may raise
        budget = MAX_DISCARD_BYTES
        # All of it in the time of one read: only a client that sends a byte now and then takes longer.
        with gevent.Timeout(self.rfile.timeout or None, False):
            while budget > 0:
                data = self.read(16384)
                if not data:
                    self.abandoned = False
                    return
                budget -= len(data)

    def _send_100_continue(self) -> None:
        if self.send_continue is not None:
            send, self.send_continue = self.send_continue, None
            send(_CONTINUE)

    def _do_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        left = (self.content_length or 0) - self.position
        size = left if length is None else min(length, left)
        if not size:
            return b""
        self._send_100_continue()
        data = self._take(size, use_readline)
        self.position += len(data)
        return data

    def _take(self, size: int, use_readline: bool) -> bytes:
        """*size* bytes, or a line if that is shorter."""
        if self.broken:
            raise self._invalid("reading on after an error")
        try:
            data: bytes = self.rfile.readline(size) if use_readline else self.rfile.read(size)
        except BaseException:  # too slow, gone, or the application's own timeout: what came is lost
            self.abandoned = self.broken = True
            raise
        if len(data) < size and not (use_readline and data.endswith(b"\n")):
            self.abandoned = self.broken = True
            # An OSError like pywsgi's, with the number by which WSGIHandler knows that a client has left.
            raise ConnectionResetError(ECONNRESET, "the client closed before the end of its request")
        return data

    def _invalid(self, reason: str) -> Exception:
        self.abandoned = self.broken = True
        error: Exception = pywsgi._InvalidClientInput(reason)
        return error

    def _line(self, limit: int) -> bytes:
        try:
            line: bytes = self.rfile.readline(limit)
        except BaseException:
            self.abandoned = self.broken = True
            raise
        if not line.endswith(b"\n"):
            raise self._invalid("end of input or line too long in chunked content")
        return line

    def _next_chunk(self) -> None:
        """Read a chunk-size line and, behind the last chunk, the trailers."""
        line = self._line(MAX_CHUNK_LINE_BYTES)
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise self._invalid("malformed chunk size")
        self.chunk_left = int(match[1], 16)
        self.extension_bytes += len(line) - match.end(1) - 2
        if self.extension_bytes > MAX_CHUNK_LINE_BYTES + self.received:
            raise self._invalid("more chunk extensions than content")
        self.received += self.chunk_left
        if self.limit and self.received > self.limit:
            self.too_long = True
            raise self._invalid("chunked content too long")
        if self.chunk_left:
            return
        budget = MAX_TRAILER_BYTES
        while (line := self._line(budget)) != b"\r\n":
            if not _TRAILER_LINE.fullmatch(line):
                raise self._invalid("malformed trailer")
            budget -= len(line)
            if budget <= 0:
                raise self._invalid("trailers too long")
        self.ended = True

    def _chunked_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        self._send_100_continue()
        parts: list[bytes] = []
        while length is None or length > 0:
            if not self.chunk_left:
                if self.ended:
                    break
                self._next_chunk()
                continue
            size = self.chunk_left if length is None else min(length, self.chunk_left)
            data = self._take(size, use_readline)
            parts.append(data)
            self.chunk_left -= len(data)
            if length is not None:
                length -= len(data)
            if not self.chunk_left and self._take(2, False) != b"\r\n":
                raise self._invalid("no CRLF behind a chunk")
            if use_readline and data.endswith(b"\n"):
                break
        return b"".join(parts)


#: The content of a request that has none. It has no state, so that all requests share it.
NO_BODY: Final = RequestBody(None, None)  # type: ignore[arg-type]
