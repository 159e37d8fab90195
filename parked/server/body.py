"""Request content: the bytes behind a request head, as `wsgi.input`.

pywsgi's `Input`, with chunked coding read strictly (RFC 9112, 7.1), with bounds, and with the knowledge
whether some of the content is still on its way, since what is left unread must never become the next request.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from errno import ECONNRESET
from typing import Any, Final

import gevent
from gevent import pywsgi

from parked.server.stream import ConnectionReader, Whole

#: Bytes of unread content thrown away to keep a connection; beyond that closing it is cheaper (and a client
#: that waits for the answer before it sends 10 GB learns it sooner).
MAX_DISCARD_BYTES: Final = 262144
#: Bytes of one chunk-size line, extensions included, and of all trailer lines. RFC 9112, 7.1.1: a server
#: ought to limit them; nobody uses them for more than a signature. pywsgi's numbers. Extensions together may
#: be that long and as long again as the content so far, or 8 KB could be sent with each byte of it.
MAX_CHUNK_LINE_BYTES: Final = 8192
MAX_TRAILER_BYTES: Final = 8192

#: Chunks of one block of decoded content, 1.5 us each.
MAX_CHUNKS_A_BLOCK: Final = 512
#: Bytes of small chunks that are decoded in one go, in 1 ms.
MAX_RUN_BYTES: Final = 16384

# What comes next in chunked content.
_SIZE, _CONTENT, _CHUNK_END, _TRAILER = range(4)

# With ECONNRESET, by which WSGIHandler knows that a client has left.
_CLOSED_EARLY: Final = "the client closed before the end of its request"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

# Possessive, all of it: whatever comes next is none of what was taken, and to go back takes a millisecond.
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
# RFC 9112, 7.1 and 7.1.1: chunk-size [ chunk-ext ] CRLF; 15 digits stay below 2**60.
_CHUNK_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,15})(?:[ \t]*+;[ \t]*+"
    + _TOKEN
    + rb"(?:[ \t]*+=[ \t]*+(?:"
    + _TOKEN
    + rb"|"
    + _QUOTED
    + rb"))?+)*+\r\n"
)
# Whole chunks of up to 15 bytes, without extensions: in one go, for a line of Python costs as much for one
# byte as for a thousand. 0.3 us per chunk instead of 1.2.
_SMALL_CHUNK: Final = b"|".join(b"[%x%X]\r\n.{%d}\r\n" % (size, size, size) for size in range(1, 16))
_SMALL_CHUNKS: Final = re.compile(b"(?:%b)+" % _SMALL_CHUNK, re.DOTALL)
_EACH_SMALL_CHUNK: Final = re.compile(_SMALL_CHUNK, re.DOTALL)
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
        "at",
        "block",
        "broken",
        "chunk_left",
        "ended",
        "extension_bytes",
        "limit",
        "phase",
        "reason",
        "received",
        "send_continue",
        "too_long",
        "trailer_bytes",
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
        self.reason = "reading on after an error"
        if chunked:
            self.phase = _SIZE
            self.chunk_left = 0
            self.ended = False
            self.extension_bytes = 0
            self.trailer_bytes = 0
        #: Bytes of content taken from the connection, or announced by the chunks begun.
        self.received = 0
        #: Content that the application gets next, and how much of it it has got.
        self.block = b""
        self.at = 0
        #: It was refused for its length.
        self.too_long = False

    @property
    def unread(self) -> bool:
        """Whether content is left on the connection, behind what was taken for the application."""
        return not self.ended if self.chunked_input else self.received < (self.content_length or 0)

    @property
    def ends_connection(self) -> bool:
        """Whether, as it stands, the connection cannot be used again after the response."""
        if self.broken or not self.unread:
            return self.abandoned
        left = (self.content_length or 0) - self.received
        if self.send_continue is not None:
            # The client waits for 100 Continue, which will not come: after the final answer it may send its
            # content or not (RFC 9110, 10.1.1), and nobody can tell what comes next. Unless it has not
            # waited.
            return bool(self.chunked_input) or self.rfile.held < left
        return not self.chunked_input and left > MAX_DISCARD_BYTES

    def _discard(self) -> None:
        if self.broken or not self.unread:
            return
        if self.ends_connection:
            self.abandoned = True
            return
        self.send_continue = None
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

    def read(self, length: int | None = None) -> bytes:
        """*length* bytes, fewer only at the end of the content; all of it if None or negative."""
        size = self.content_length
        if size and not self.received and self.send_continue is None and not self.broken:
            at = self.rfile.at
            data: bytes = self.rfile.connection.buffer[at : at + size]
            # Nearly all content comes with its head, and is read at once.
            if len(data) == size and (length is None or length < 0 or length >= size):
                self.rfile.at = at + size
                self.received = size
                self.position += size
                return data
        missing = sys.maxsize if length is None or length < 0 else length
        whole = Whole()
        while missing > 0 and (self.at < len(self.block) or self._next_block()):
            data = self.block[self.at : self.at + missing]
            self.at += len(data)
            missing -= len(data)
            whole.add(data)
        return self._handed_out(whole.taken())

    def readline(self, size: int | None = None) -> bytes:
        """One line with its LF, at most *size* bytes of it unless that is None or negative."""
        if size is None and (end := self.block.find(b"\n", self.at) + 1):  # nearly all lines: twice as fast
            data = self.block[self.at : end]
            self.at = end
            self.position += len(data)
            self.rfile.turns.share()
            return data
        missing = sys.maxsize if size is None or size < 0 else size
        whole = Whole()
        while missing > 0 and (self.at < len(self.block) or self._next_block()):
            end = self.block.find(b"\n", self.at, self.at + missing) + 1
            data = self.block[self.at : end or self.at + missing]
            self.at += len(data)
            missing -= len(data)
            whole.add(data)
            if end:
                break
        return self._handed_out(whole.taken())

    def _handed_out(self, data: bytes) -> bytes:
        self.position += len(data)
        if self.rfile is not None:
            self.rfile.turns.share()  # an application may read a byte at a time
        return data

    def _next_block(self) -> bool:
        """Take some content from the connection; false if there is no more."""
        if not self.unread:
            return False
        if self.broken:
            raise self._invalid(self.reason)
        self._send_100_continue()
        try:
            if self.chunked_input:
                self.block = self._decode()
            else:
                self.block = self.rfile.take((self.content_length or 0) - self.received)
                self.received += len(self.block)
                if not self.block:
                    raise self._left_early()
        except BaseException:  # too slow, gone, or the application's own timeout: what came is lost
            self.abandoned = self.broken = True
            raise
        self.at = 0
        return bool(self.block)

    def _invalid(self, reason: str) -> Exception:
        self.abandoned = self.broken = True
        self.reason = reason
        error: Exception = pywsgi._InvalidClientInput(reason)
        return error

    def _left_early(self) -> OSError:
        error = self.rfile.failure = ConnectionResetError(ECONNRESET, _CLOSED_EARLY)
        return error

    def _decode(self) -> bytes:
        """Content of the chunks that are there, waiting for some; empty only behind the last chunk."""
        parts: list[bytes] = []
        self.rfile.turns.share()
        while not parts and not self.ended:
            try:
                lacks_input = self._decode_held(parts)
            except pywsgi._InvalidClientInput:
                if not parts:
                    raise
                break  # what came before the fault is good; the next call raises
            if lacks_input and not parts and not self.rfile.more():
                if self.phase != _CONTENT:
                    raise self._invalid("end of input in chunked content")
                raise self._left_early()
        return b"".join(parts)

    def _decode_held(self, parts: list[bytes]) -> bool:
        """Append to *parts* the content of the chunks at hand; whether only more input can help."""
        rfile = self.rfile
        data = rfile.connection.buffer
        at = rfile.at
        try:
            for _ in range(MAX_CHUNKS_A_BLOCK):
                if self.phase == _CONTENT:
                    part = data[at : at + self.chunk_left]
                    if not part:
                        return True
                    parts.append(part)
                    at += len(part)
                    self.chunk_left -= len(part)
                    if self.chunk_left:
                        return True
                    self.phase = _CHUNK_END
                if self.phase == _CHUNK_END:
                    if not data.startswith(b"\r\n", at):
                        if data[at : at + 2] in (b"", b"\r"):
                            return True
                        raise self._invalid("no CRLF behind a chunk")
                    at += 2
                    self.phase = _SIZE
                if self.phase == _SIZE:
                    run = _SMALL_CHUNKS.match(data, at, at + MAX_RUN_BYTES)
                    if run is not None:
                        content = b"".join([chunk[3:-2] for chunk in _EACH_SMALL_CHUNK.findall(run[0])])
                        self._count(len(content))
                        parts.append(content)
                        at = run.end()
                        return False
                    # Once it is there: a line that drips is not read for each of its bytes.
                    if self._lacks_line(data, at, MAX_CHUNK_LINE_BYTES):
                        return True
                    line = _CHUNK_LINE.match(data, at, at + MAX_CHUNK_LINE_BYTES)
                    if line is None:
                        raise self._invalid("malformed chunk size")
                    self._begin_chunk(int(line[1], 16), line.end() - line.end(1) - 2)
                    at = line.end()
                if self.phase == _TRAILER:
                    if self._lacks_line(data, at, MAX_TRAILER_BYTES - self.trailer_bytes):
                        return True
                    end = data.index(b"\n", at) + 1
                    self._take_trailer(data[at:end])
                    at = end
                    if self.ended:
                        return False
            return False
        finally:
            rfile.at = at

    def _lacks_line(self, data: bytes, at: int, limit: int) -> bool:
        """Whether the rest of a line of at most *limit* bytes is still on its way."""
        if data.find(b"\n", at, at + limit) >= 0:
            return False
        if len(data) - at >= limit:
            raise self._invalid("line too long in chunked content")
        return True

    def _count(self, content_bytes: int) -> None:
        self.received += content_bytes
        if self.limit and self.received > self.limit:
            self.too_long = True
            raise self._invalid("chunked content too long")

    def _begin_chunk(self, size: int, extension_bytes: int) -> None:
        self.extension_bytes += extension_bytes
        if self.extension_bytes > MAX_CHUNK_LINE_BYTES + self.received:
            raise self._invalid("more chunk extensions than content")
        self._count(size)
        self.chunk_left = size
        self.phase = _CONTENT if size else _TRAILER

    def _take_trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.ended = True
            return
        if not _TRAILER_LINE.fullmatch(line):
            raise self._invalid("malformed trailer")
        self.trailer_bytes += len(line)


class UpgradeInput:
    """`wsgi.input` of a request that offers another protocol, and so has no content (RFC 9110, 7.8).

    Until the offer is taken there is nothing to read; afterwards it is what the client sends. Libraries that
    talk on the socket look for it here, in `raw._sock`, where `io.BufferedReader` has it.

    :param reader: what the client sends, once the connection is upgraded; None before.
    :param take: hands over the socket, with the connection.
    """

    def __init__(self, reader: Callable[[], ConnectionReader | None], take: Callable[[], Any]) -> None:
        self._reader = reader
        self._take = take

    @property
    def raw(self) -> UpgradeInput:
        return self

    @property
    def _sock(self) -> Any:
        return self._take()

    def read(self, size: int | None = -1) -> bytes:
        reader = self._reader()
        return reader.read(size) if reader is not None else b""

    def readline(self, size: int | None = -1) -> bytes:
        reader = self._reader()
        return reader.readline(size) if reader is not None else b""

    def readlines(self, _hint: int | None = -1) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


#: The content of a request that has none. It has no state, so that all requests share it.
NO_BODY: Final = RequestBody(None, None)  # type: ignore[arg-type]
