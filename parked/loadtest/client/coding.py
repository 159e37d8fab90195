"""Undoing content codings (RFC 9110, 8.4.1) piece by piece, and no further than a bound.

A megabyte of zeros is a kilobyte on the wire, so what comes out is counted while it comes, before memory is
spent on the rest.
"""

from __future__ import annotations

import zlib
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent.lock import BoundedSemaphore

from parked.loadtest.client.errors import BadResponse, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

#: Most that a decoder is asked for at a time, in bytes, and what one is fed at a time: zlib copies what it
#: leaves.
STEP_BYTES = 1 << 20
FEED_BYTES = 1 << 16
#: Decoded bytes, some 8 ms of work, after which other users have their turn, and seconds that they get at
#: least: 256 MB would keep them for a second.
BYTES_A_TURN, PAUSE_S = 1 << 21, 0.0001
#: What a member of gzip, and a piece fed to zstandard, take of a turn also where nothing comes out.
MEMBER_BYTES, PIECE_BYTES = 512, 256
#: Held while more than that is decoded for one user: all of them at once would take the memory of all.
_LARGE = BoundedSemaphore()
#: What one that can't be asked for less is fed: a block of 128 KB takes 4 bytes at least (RFC 8878, 3.1.1.2).
ZSTANDARD_FEED_BYTES = 1 << 6
#: Memory that a frame may ask for (RFC 9659, 3).
ZSTANDARD_WINDOW_BYTES = 1 << 23
#: Codings of one body. Servers use one; each takes memory of its own.
MOST_CODINGS = 5
#: Those in use (IANA has a list) that a failure may name: others are the server's to invent, one each time.
KNOWN = ("compress", "x-compress", "br", "zstd", "dcb", "dcz", "aes128gcm", "exi", "pack200-gzip")


def _optional(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        return None


brotli, zstandard = _optional("brotli"), _optional("zstandard")


class Decoder(Protocol):
    """Undoes a coding. Raises :class:`BadResponse`, or :class:`TooLarge` past the bound."""

    def feed(self, data: bytes) -> bytes: ...

    def end(self) -> bytes: ...


class _IsLarge(Exception):
    """More than a turn's worth of it has come out."""


def _give_way() -> None:
    gevent.sleep(PAUSE_S)


def _give_up() -> None:
    raise _IsLarge


def decoder(codings: str, most_bytes: int, pause: Callable[[], None] = _give_way) -> Decoder:
    """For the value of a Content-Encoding field; raises :class:`BadResponse` for one that can't be undone.

    :param pause: called whenever `BYTES_A_TURN` have come out.
    """
    names = [name.strip().lower() for name in codings.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > MOST_CODINGS:
        raise BadResponse(f"more than {MOST_CODINGS} content codings")
    if unknown := [name for name in names if name not in _KINDS]:
        named = f" {unknown[0]!r}" if unknown[0] in KNOWN else ""
        raise BadResponse(f"a content coding{named} that was not asked for")
    return _Chain([_KINDS[name](name, most_bytes, pause) for name in reversed(names)])


def decoded(body: bytes, codings: str, most_bytes: int) -> bytes:
    """A whole body without its codings."""
    whole = _decoded_at_once(body, codings, most_bytes)
    if whole is None:
        with _LARGE:
            one = decoder(codings, most_bytes)
            whole = one.feed(body) + one.end()
    return whole


def _decoded_at_once(body: bytes, codings: str, most_bytes: int) -> bytes | None:
    """The same; None if it is large, and nothing of it is kept then."""
    one = decoder(codings, most_bytes, _give_up)
    try:
        return one.feed(body) + one.end()
    except _IsLarge:
        return None


class _Chain:
    """Codings in the order in which they were applied, undone from the last to the first."""

    def __init__(self, decoders: list[Decoder]) -> None:
        self._decoders = decoders

    def feed(self, data: bytes) -> bytes:
        return _in_pieces(self._feed, data)

    def _feed(self, data: bytes) -> bytes:
        for one in self._decoders:
            data = _in_pieces(one.feed, data)  # what came out of the one before may be very much more
        return data

    def end(self) -> bytes:
        data = b""
        for one in self._decoders:
            data = (_in_pieces(one.feed, data) if data else b"") + one.end()
        return data


def _in_pieces(feed: Callable[[bytes], bytes], data: bytes) -> bytes:
    if len(data) <= FEED_BYTES:
        return feed(data)
    return b"".join([feed(data[at : at + FEED_BYTES]) for at in range(0, len(data), FEED_BYTES)])


class _Bounded:
    """Counts what comes out."""

    def __init__(self, name: str, most_bytes: int, pause: Callable[[], None]) -> None:
        self._name = name
        self._pause = pause
        self._left = most_bytes
        self._turn = BYTES_A_TURN
        self._parts: list[bytes] = []

    def _take(self, part: bytes) -> None:
        self._left -= len(part)
        if self._left < 0:
            raise TooLarge("the decoded body is larger than max_body_bytes")
        self._parts.append(part)
        self._spend(len(part))

    def _spend(self, size_bytes: int) -> None:
        self._turn -= size_bytes
        if self._turn < 0:
            self._turn = BYTES_A_TURN
            self._pause()

    def _taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)

    def _wrong(self) -> BadResponse:
        return BadResponse(f"body is not {self._name}")


class _Zlib(_Bounded):
    """gzip (also several members one behind the other) and deflate."""

    def __init__(self, name: str, most_bytes: int, pause: Callable[[], None]) -> None:
        super().__init__(name, most_bytes, pause)
        self._object: Any = None

    def feed(self, data: bytes) -> bytes:
        more = bool(data)
        while more:
            if self._object is None:
                self._object = self._begin(data)
                self._spend(MEMBER_BYTES)
            try:
                part = self._object.decompress(data, STEP_BYTES)
            except zlib.error:
                raise self._wrong() from None
            self._take(part)
            data = self._object.unconsumed_tail
            more = bool(data) or len(part) == STEP_BYTES
            if self._object.eof:
                data, self._object = self._object.unused_data.lstrip(b"\0"), None
                if self._name == "deflate" and data:
                    raise self._wrong()
                more = bool(data)
        return self._taken()

    def _begin(self, data: bytes) -> Any:
        if self._name != "deflate":
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        # Some servers leave the zlib header away (RFC 9110, 8.4.1.2, note).
        has_header = data[0] & 0x0F == 8 and (len(data) < 2 or (data[0] << 8 | data[1]) % 31 == 0)
        return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)

    def end(self) -> bytes:
        if self._object is not None:  # the coding's own end has not come
            raise self._wrong()
        return b""


class _Brotli(_Bounded):
    def __init__(self, name: str, most_bytes: int, pause: Callable[[], None]) -> None:
        super().__init__(name, most_bytes, pause)
        self._object = brotli.Decompressor()

    def feed(self, data: bytes) -> bytes:
        more = bool(data)
        while more:
            try:
                part = self._object.process(data, output_buffer_limit=STEP_BYTES)
            except brotli.error:
                raise self._wrong() from None
            self._take(part)
            # It may say that it can take more while it has more to give.
            data, more = b"", bool(part) and not self._object.is_finished()
        return self._taken()

    def end(self) -> bytes:
        if not self._object.is_finished():
            raise self._wrong()
        return b""


class _Zstandard(_Bounded):
    def __init__(self, name: str, most_bytes: int, pause: Callable[[], None]) -> None:
        super().__init__(name, most_bytes, pause)
        self._object = zstandard.ZstdDecompressor(max_window_size=ZSTANDARD_WINDOW_BYTES).decompressobj()

    def feed(self, data: bytes) -> bytes:
        for start in range(0, len(data), ZSTANDARD_FEED_BYTES):
            try:
                self._take(self._object.decompress(data[start : start + ZSTANDARD_FEED_BYTES]))
            except zstandard.ZstdError:
                raise self._wrong() from None
            self._spend(PIECE_BYTES)
        return self._taken()

    def end(self) -> bytes:
        if not self._object.eof:
            raise self._wrong()
        return b""


_KINDS: dict[str, Any] = {"gzip": _Zlib, "x-gzip": _Zlib, "deflate": _Zlib}
# One before brotli 1.2 would put out whatever it is fed.
if brotli is not None and hasattr(brotli.Decompressor, "can_accept_more_data"):
    _KINDS["br"] = _Brotli
if zstandard is not None:
    _KINDS["zstd"] = _Zstandard

#: What a request says that it accepts: all that is undone here.
ACCEPTED = ", ".join(name for name in _KINDS if not name.startswith("x-"))
