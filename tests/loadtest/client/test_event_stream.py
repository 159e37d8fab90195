"""EventReader: what an EventSource would make of the same bytes, whole and in pieces, and its bounds."""

from __future__ import annotations

import time

import pytest

from parked.loadtest.client.errors import BadResponse, TooLarge
from parked.loadtest.client.event_stream import (
    LARGEST_ID,
    LARGEST_KEPT,
    PIECES,
    Event,
    EventReader,
    Piece,
    Pieces,
    sent_at,
)

STREAM = (
    b"\xef\xbb\xbf: hello\n\n"
    b"id: 1\ndata: one\n\n"
    b"event: news\nid:2\ndata: two\ndata:  lines\n\n"
    b"data\n\n"
    b"id: 3\n\n"
    b"retry: 250\n:beat\n\n"
    b"id: x y\nunknown: field\ndata: last\n\n"
)
EVENTS = [
    (b"1", b"one", 1),
    (b"2", b"two\n lines", 2),
    (None, b"", None),
    (b"x y", b"last", None),
]


def read(data: bytes, size: int = 1 << 20, chunked: bool = False) -> tuple[list[Event], int, list[int]]:
    """All events, the number of comments, and what was said of retrying."""
    reader = EventReader(chunked, 1000)
    pieces = [reader.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert reader.between
    events = [event for piece in pieces for event in piece.events]
    retries = [piece.retry_ms for piece in pieces if piece.retry_ms is not None]
    return events, sum(piece.comments for piece in pieces), retries


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_are_the_same_in_pieces_of_any_size_and_with_any_line_end(size: int, end: bytes) -> None:
    data = STREAM.replace(b"\n", end)
    if end == b"\r":
        data += b":"  # only the next byte says whether a CR was all of a line's end
        reader = EventReader(False, 1000)
        events = [
            event for at in range(0, len(data), size) for event in reader.feed(data[at : at + size]).events
        ]
    else:
        events, comments, retries = read(data, size)
        assert (comments, retries) == (2, [250])
    assert [(event.id, event.data, event.number) for event in events] == EVENTS


@pytest.mark.parametrize("size", [1, 4, 1 << 20])
def test_chunks_may_cut_events_anywhere(size: int) -> None:
    chunks = b"".join(b"7\r\n%b\r\n" % STREAM[at : at + 7] for at in range(0, len(STREAM) - 7, 7))
    rest = STREAM[(len(STREAM) - 1) // 7 * 7 :]
    chunks += b"%x\r\n%b\r\n" % (len(rest), rest)
    events, _, _ = read(chunks, size, chunked=True)
    assert [(event.id, event.data, event.number) for event in events] == EVENTS


def test_the_end_of_the_chunks_is_the_end_of_the_stream() -> None:
    reader = EventReader(True, 1000)
    assert not reader.feed(b"9\r\ndata: a\n\n\r\n").complete
    assert reader.feed(b"0\r\n\r\n").complete


def test_a_malformed_chunk_is_a_bad_response() -> None:
    with pytest.raises(BadResponse, match="malformed chunk"):
        EventReader(True, 1000).feed(b"nonsense\r\n")


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 99, b"x" * 99, b": " + b"x" * 99, b"data: x\n" * 12])
def test_a_line_or_event_without_end_is_given_up_at_the_bound(endless: bytes) -> None:
    reader = EventReader(False, 10_000)
    with pytest.raises(TooLarge, match="10,000 bytes"):
        list(map(reader.feed, [endless] * 200))


def test_a_flood_of_comments_is_counted_and_not_kept() -> None:
    reader = EventReader(False, 1000)
    assert reader.feed(b":\n" * 100_000) == Piece((), 100_000)
    assert reader.between


def test_the_time_of_sending_is_found_in_the_data() -> None:
    now = round(time.time(), 6)
    assert sent_at(b'{"number": 7, "sent": %.6f}' % now) == now
    assert sent_at(b'{"sent":%.6f,"number":7}' % now) == now
    assert sent_at(b'{"sent": "yesterday"}') is None
    assert sent_at(b'{"sent": 1795600000000.5}') is None
    assert sent_at(b"no JSON") is None
    (event,) = EventReader(False, 1000).feed(b'id: 7\ndata: {"sent": 1.5}\n\n').events
    assert event == (b"7", b'{"sent": 1.5}', 7, 1.5)


def test_only_a_few_pieces_are_remembered() -> None:
    pieces = Pieces()
    for number in range(100):
        pieces.keep(b"%d" % number, Piece((), number))
    assert pieces.get(b"99") == Piece((), 99)
    assert sum(pieces.get(b"%d" % number) is not None for number in range(100)) == PIECES


def test_what_each_user_would_keep_is_bounded() -> None:
    large = b"id: %b\ndata: %b\n\n" % (b"7" * (LARGEST_ID + 1), b"x" * (LARGEST_KEPT + 1))
    (event,) = EventReader(False, 1 << 20).feed(large).events
    assert (event.id, event.data) == (None, b"")
    (event,) = EventReader(False, 1 << 20, lambda data: float(len(data))).feed(large).events
    assert event.sent == LARGEST_KEPT + 1, "looked at before"
