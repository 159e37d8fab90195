"""Undoing the chunked transfer coding (RFC 9112, 7.1) of bytes as they come, without waiting for more."""

from __future__ import annotations

from parked.loadtest.client.errors import BadResponse

#: Bytes of a line with a chunk's size and its extensions, and of all trailer fields. Servers send 3 to 6, and
#: none.
MAX_LINE_BYTES = 4_096
#: Hexadecimal digits of the largest chunk: 64 bits.
MAX_DIGITS = 16


class Chunks:
    """One body. What is not the content of a chunk is kept only as far as a line of it is incomplete.

    :ivar complete: the last chunk and what follows it have come.
    """

    __slots__ = ("_left", "_line", "complete")

    def __init__(self) -> None:
        self._line = b""
        #: Bytes of the chunk that are still to come; 0 where its size is, -1 behind its content, -2 in the
        #: trailers.
        self._left = 0
        self.complete = False

    @property
    def between(self) -> bool:
        """Whether the next byte is that of a chunk's size, as at the beginning."""
        return not self._left and not self._line

    def feed(self, data: bytes) -> bytes:
        """The content in these bytes. Raises :class:`BadResponse`."""
        content: list[bytes] = []
        place = 0
        while place < len(data):
            if self.complete:
                raise BadResponse("bytes behind the last chunk")
            if self._left > 0:
                piece = data[place : place + self._left]
                content.append(piece)
                place += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._left = -1
                continue
            end = data.find(b"\n", place)
            self._line += data[place : len(data) if end < 0 else end + 1]
            if len(self._line) > MAX_LINE_BYTES:
                raise BadResponse("a malformed chunk: its size has too many bytes")
            if end < 0:
                break
            place = end + 1
            line, self._line = self._line, b""
            self._take(line)
        return b"".join(content)

    def _take(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise BadResponse("a malformed chunk: a line that does not end in CRLF")
        line = line[:-2]
        if self._left == -2:
            self.complete = not line
        elif self._left == -1:
            if line:
                raise BadResponse("a malformed chunk: longer than its size")
            self._left = 0
        else:
            digits = line.partition(b";")[0].rstrip(b" \t")
            if not 0 < len(digits) <= MAX_DIGITS or digits.strip(b"0123456789abcdefABCDEF"):
                raise BadResponse("a malformed chunk: its size is no number")
            self._left = int(digits, 16) or -2
