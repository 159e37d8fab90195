"""Content codings: undone whole and byte by byte, and no further than the bound."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from parked.loadtest.client.coding import ACCEPTED, decoded, decoder
from parked.loadtest.client.errors import BadResponse, TooLarge

MUCH = 1 << 30
BODY = b"hello" * 1000
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "Deflate": zlib.compress,
    "deflate": lambda body: zlib.compress(body, wbits=-15),
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("coding", ENCODERS)
def test_a_body_is_decoded_whole_and_byte_by_byte(coding: str) -> None:
    body = ENCODERS[coding](BODY)
    assert decoded(body, coding, MUCH) == BODY
    one = decoder(coding, MUCH)
    assert b"".join(one.feed(body[at : at + 1]) for at in range(len(body))) + one.end() == BODY


def test_codings_are_undone_from_the_last_to_the_first() -> None:
    assert decoded(brotli.compress(gzip.compress(BODY)), "gzip, identity, br", MUCH) == BODY


def test_members_of_gzip_follow_each_other() -> None:
    assert decoded(gzip.compress(b"one ") + gzip.compress(b"two"), "gzip", MUCH) == b"one two"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("change", [lambda body: b"hello", lambda body: body[:-3]], ids=["other", "cut"])
def test_a_body_that_is_not_of_its_coding_is_a_failure(coding: str, change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadResponse, match=f"not {coding}"):
        decoded(change(ENCODERS[coding](BODY)), coding, MUCH)


def test_a_coding_that_nobody_asked_for_is_a_failure() -> None:
    with pytest.raises(BadResponse, match="'compress', which was not asked for"):
        decoded(b"x", "compress", MUCH)
    assert ACCEPTED == "gzip, deflate, br, zstd", "what is asked for, with both packages there"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_of_a_thousand_times_its_size_is_given_up_before_it_takes_the_memory(coding: str) -> None:
    bomb = ENCODERS[coding](bytes(100_000_000))
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="max_body_bytes"):
            decoded(bomb, coding, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert len(decoded(ENCODERS[coding](bytes(1_000_000)), coding, 1_000_000)) == 1_000_000
