"""Content codings: undone whole and byte by byte, and no further than the bound."""

from __future__ import annotations

import gc
import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import brotli
import gevent
import pytest
import zstandard

from parked.loadtest.client import coding as codings
from parked.loadtest.client.coding import ACCEPTED, decoded, decoder
from parked.loadtest.client.errors import BadResponse, TooLarge

MUCH = 1 << 30
BODY = b"hello" * 1000
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "Deflate": zlib.compress,
    "deflate": lambda body: zlib.compress(body, wbits=-15),
    "br": lambda body: brotli.compress(body, quality=5),
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
    with pytest.raises(BadResponse, match="'compress' that was not asked for"):
        decoded(b"x", "compress", MUCH)
    assert ACCEPTED == "gzip, deflate, br, zstd", "what is asked for, with both packages there"


def test_a_name_that_a_server_has_made_up_is_not_told() -> None:
    with pytest.raises(BadResponse, match="a content coding that was not"):
        decoded(b"x", "x-1234", MUCH)


def test_codings_are_bounded_in_number() -> None:
    with pytest.raises(BadResponse, match="more than 5"):
        decoded(b"x", "gzip, " * 1000, MUCH)


def test_layers_of_codings_are_bounded_each() -> None:
    with pytest.raises(TooLarge):
        decoded(gzip.compress(gzip.compress(bytes(10_000_000))), "gzip, gzip", 1_000_000)


def test_very_many_members_take_a_time_in_proportion_to_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What zlib leaves is copied for each of them, so that it must not be all of the body."""
    left: list[int] = []
    begin = zlib.decompressobj

    class Watched:
        def __init__(self, wbits: int) -> None:
            self._object = begin(wbits)

        def decompress(self, data: bytes, most: int) -> bytes:
            left.append(len(data))
            return self._object.decompress(data, most)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._object, name)

    monkeypatch.setattr(codings, "zlib", SimpleNamespace(**vars(zlib) | {"decompressobj": Watched}))
    members = gzip.compress(b"") * 10_000
    assert decoded(members, "gzip", MUCH) == decoded(gzip.compress(members), "gzip, gzip", MUCH) == b""
    assert max(left) <= codings.FEED_BYTES


def test_others_have_their_turns_where_nothing_comes_out() -> None:
    pauses: list[None] = []
    one = codings.decoder("gzip", MUCH, lambda: pauses.append(None))
    assert one.feed(gzip.compress(b"") * 10_000) == b""
    assert pauses


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_others_have_their_turns_while_a_large_body_is_decoded(coding: str) -> None:
    turns = 0

    def other() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0)
            turns += 1

    body = ENCODERS[coding](bytes(10 * codings.BYTES_A_TURN))
    beside = gevent.spawn(other)
    decoded(body, coding, MUCH)
    beside.kill()
    assert turns >= 5


def test_large_bodies_are_decoded_one_after_the_other() -> None:
    """All at once would have the memory of all."""

    def under_way() -> int:
        return sum(isinstance(one, codings._Zlib) for one in gc.get_objects())

    body = gzip.compress(bytes(4 * codings.BYTES_A_TURN))
    gc.collect()  # what other tests have left
    before = under_way()
    large = [gevent.spawn(decoded, body, "gzip", MUCH) for _ in range(3)]
    gevent.sleep(0)
    most = 0
    while not all(one.ready() for one in large):
        most = max(most, under_way() - before)
        gevent.sleep(0.0001)
    assert most == 1
    assert {len(one.get()) for one in large} == {4 * codings.BYTES_A_TURN}


def test_a_frame_that_asks_for_more_memory_than_it_may_is_a_failure() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = compressor.compress(bytes(100)) + compressor.flush()
    with pytest.raises(BadResponse, match="not zstd"):
        decoded(body, "zstd", MUCH)


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
    assert len(decoded(ENCODERS[coding](bytes(5_000_000)), coding, MUCH)) == 5_000_000
