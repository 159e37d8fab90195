"""Reading server-sent events (WHATWG HTML, 9.2.6) out of bytes as they come, up to a bound.

What a stream brings is the same for each of a process' many clients, byte by byte. A piece of a stream that
begins and ends between two events is remembered with what it means (:class:`Pieces`), and read once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from parked.loadtest.client.chunks import Chunks
from parked.loadtest.client.errors import TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

#: Milliseconds that a server may ask its clients to wait before they come back, in digits.
MAX_RETRY_DIGITS = 9
#: Pieces that are remembered: an event, a heartbeat, and what came before them.
PIECES = 8
#: Bytes of an id that is one, and of data that is kept.
LARGEST_ID, LARGEST_KEPT = 1_024, 4_096
#: Bytes of a piece that is worth it.
LARGEST_PIECE = 65_536
_TIME = re.compile(rb'"sent"\s*:\s*(\d{1,12}(?:\.\d{1,9})?)(?=\s*[,}])')
#: An id that counts, and is no more than a number.
_NUMBER = re.compile(rb"\d{1,18}")


class Event(NamedTuple):
    """One event, as all who get it have it.

    :ivar id: as it stands in the event itself; None if it has none, or one that is too long to go back in a
        field of the next request.
    :ivar data: empty where it is large: each user keeps its last event.
    :ivar number: the id, where it is one.
    :ivar sent: when it was sent, Unix time; None if it does not say.
    """

    id: bytes | None
    data: bytes
    number: int | None
    sent: float | None


class Piece(NamedTuple):
    """What a piece of a stream has brought."""

    events: tuple[Event, ...]
    comments: int = 0
    retry_ms: int | None = None
    complete: bool = False  #: the end of the body is in it


def sent_at(data: bytes) -> float | None:
    """When it was sent, by what it says, `{"sent": 1795600000.5}` in JSON, as the demo application does."""
    found = _TIME.search(data)
    return float(found[1]) if found else None


class EventReader:
    """Reads one stream. Needed only in the middle of an event: see :attr:`between`."""

    __slots__ = (
        "_chunks",
        "_comments",
        "_data",
        "_event",
        "_id",
        "_line",
        "_most",
        "_retry_ms",
        "_sent_at",
        "_skips",
    )

    def __init__(
        self, chunked: bool, most_bytes: int, when: Callable[[bytes], float | None] = sent_at
    ) -> None:
        self._chunks = Chunks() if chunked else None
        self._most = most_bytes
        self._sent_at = when
        self._line = b""
        #: The last byte was CR: a LF that follows belongs to it.
        self._skips = False
        self._data: list[bytes] = []
        self._event = 0  # bytes of the event at hand
        self._id: bytes | None = None
        self._comments = 0
        self._retry_ms: int | None = None

    @property
    def between(self) -> bool:
        """Whether it stands where a new one would: between two events, and two chunks."""
        inside = self._line or self._event or self._skips
        return not inside and (self._chunks is None or self._chunks.between)

    def feed(self, data: bytes) -> Piece:
        """What these bytes bring.

        :raises BadResponse: a malformed chunk.
        :raises TooLarge: a line or an event of more than `most_bytes`.
        """
        chunks = self._chunks
        if chunks is not None:
            data = chunks.feed(data)
        self._comments, self._retry_ms = 0, None
        events = self._events(data)
        complete = chunks is not None and chunks.complete
        return Piece(tuple(events), self._comments, self._retry_ms, complete)

    def _events(self, data: bytes) -> list[Event]:
        if self._skips and data:
            self._skips = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._skips = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        events = []
        if lines:
            lines[0] = self._line + lines[0]
            for line in lines:
                if not line:
                    if self._data:
                        events.append(self._made())
                    self._data, self._event, self._id = [], 0, None
                else:
                    self._field(line)
            self._line = rest
        else:
            self._line += rest
        if self._event + len(self._line) > self._most:
            raise TooLarge(f"an event of more than {self._most:,} bytes")
        return events

    def _made(self) -> Event:
        data, id_ = b"\n".join(self._data), self._id
        number = int(id_) if id_ is not None and _NUMBER.fullmatch(id_) else None
        sent = self._sent_at(data)
        return Event(id_, data if len(data) <= LARGEST_KEPT else b"", number, sent)

    def _field(self, line: bytes) -> None:
        name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
        value = value.removeprefix(b" ")
        if not name:
            self._comments += 1
            return
        self._event += len(line)
        if name == b"data":
            self._data.append(value)
        elif name == b"id":
            if b"\0" not in value and len(value) <= LARGEST_ID:
                self._id = value
        elif name == b"retry" and value.isdigit() and len(value) <= MAX_RETRY_DIGITS:
            self._retry_ms = int(value)


class Pieces:
    """The last pieces of a process' streams that stood between two events, and what they have brought."""

    def __init__(self) -> None:
        self._known: dict[bytes, Piece] = {}
        self.get = self._known.get

    def keep(self, data: bytes, piece: Piece) -> None:
        if len(data) <= LARGEST_PIECE and not piece.complete:
            if len(self._known) >= PIECES:
                del self._known[next(iter(self._known))]
            self._known[data] = piece
