"""Chunks: the coding undone, whole, byte by byte, and with what is wrong with it named."""

from __future__ import annotations

import pytest

from parked.loadtest.client.chunks import MAX_LINE_BYTES, Chunks
from parked.loadtest.client.errors import BadResponse

BODY = b"5\r\nhello\r\n1;name=value\r\n \r\nA\r\n0123456789\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_content_is_the_same_in_pieces_of_any_size(size: int) -> None:
    chunks = Chunks()
    came = b"".join(chunks.feed(BODY[at : at + size]) for at in range(0, len(BODY), size))
    assert came == b"hello 0123456789"
    assert chunks.between
    assert not chunks.complete


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"000\r\nField: value\r\nOther: 1\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 1000])
def test_the_last_chunk_and_its_trailers_complete_it(end: bytes, size: int) -> None:
    chunks = Chunks()
    data = BODY + end
    for at in range(0, len(data), size):
        assert not chunks.complete
        chunks.feed(data[at : at + size])
    assert chunks.complete


@pytest.mark.parametrize(
    "wrong",
    [
        b"x\r\n",
        b"\r\n",
        b"-1\r\na\r\n",
        b"0x5\r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhello world\r\n",
        b"5\r\nhello\n",
        b"11111111111111111\r\n",
        b"5" * (MAX_LINE_BYTES + 1),
        b"5;" + b"a" * MAX_LINE_BYTES,
        b"0\r\n\r\nmore",
    ],
)
@pytest.mark.parametrize("size", [1, 100_000])
def test_what_is_malformed_is_a_bad_response(wrong: bytes, size: int) -> None:
    chunks = Chunks()
    pieces = [wrong[at : at + size] for at in range(0, len(wrong), size)]
    with pytest.raises(BadResponse, match="chunk"):
        list(map(chunks.feed, pieces))
