"""Reading responses: each fed whole, byte by byte and in every split, and with more bytes behind it."""

from __future__ import annotations

from typing import Any

import pytest

from parked.loadtest.client.errors import BadResponse, ClosedByPeer, CutOff, TimedOut, TooLarge
from parked.loadtest.client.wire import MAX_HEAD_BYTES, MAX_INTERIM, RawResponse, read_response

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Wire:
    """Stands for a connection that brings these pieces and then ends."""

    def __init__(self, *pieces: bytes, end: type[ClosedByPeer] = ClosedByPeer) -> None:
        self._pieces = list(pieces)
        self._end = end

    def receive(self, _timeout_s: float, _deadline: float = 0.0) -> bytes:
        if not self._pieces:
            raise self._end("end")
        return self._pieces.pop(0)


def read(*pieces: bytes, to_head: bool = False, end: type[ClosedByPeer] = ClosedByPeer) -> RawResponse:
    return read_response(Wire(*pieces, end=end), 1.0, to_head)  # type: ignore[arg-type]


#: name: (bytes, status, body, connection stays, ends with the connection)
GOOD: dict[str, tuple[bytes, int, bytes, bool, bool]] = {
    "plain": (OK + b"Content-Length: 5\r\n\r\nhello", 200, b"hello", True, False),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", 200, b"", True, False),
    "odd case": (OK + b"CONTENT-length:5\r\n\r\nhello", 200, b"hello", True, False),
    "padded length": (OK + b"Content-Length: \t 5 \r\n\r\nhello", 200, b"hello", True, False),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True, False),
    "keep-alive": (OK + b"Connection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True, False),
    "close": (OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nok", 200, b"ok", False, False),
    "Close": (OK + b"Content-Length: 2\r\ncOnnection:CLOSE\r\n\r\nok", 200, b"ok", False, False),
    "close in a list": (
        OK + b"Connection: keep-alive\r\nContent-Length: 2\r\nConnection: x ,Close\r\n\r\nok",
        200,
        b"ok",
        False,
        False,
    ),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False, False),
    "1.0 kept": (
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok",
        200,
        b"ok",
        True,
        False,
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True, False),
    "304 with a length": (b"HTTP/1.1 304 N\r\nContent-Length: 99\r\n\r\n", 304, b"", True, False),
    "100 before": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        + OK
        + b"Content-Length: 2\r\n\r\nok",
        200,
        b"ok",
        True,
        False,
    ),
    "chunked": (CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", 200, b"hello world", True, False),
    "chunked, all of it": (
        CHUNKED + b'005;name="v;a"\r\nhello\r\n0;last\r\nTrailer: x\r\nX-Sum: 1\r\n\r\n',
        200,
        b"hello",
        True,
        False,
    ),
    "chunked, close": (
        OK + b"Connection: close\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        200,
        b"ok",
        False,
        False,
    ),
    "close-delimited": (OK + b"\r\nhello", 200, b"hello", False, True),
    "1.0 close-delimited": (b"HTTP/1.0 404 Not Found\r\n\r\nhello", 404, b"hello", False, True),
}
cases = pytest.mark.parametrize("case", GOOD.values(), ids=list(GOOD))


def check(raw: RawResponse, case: tuple[bytes, int, bytes, bool, bool]) -> None:
    message, status, body, stays, _ = case
    assert (raw.status, raw.body, raw.keep_alive) == (status, body, stays)
    assert raw.received_bytes == len(message)


@cases
def test_a_response_is_read_whole(case: Any) -> None:
    check(read(case[0]), case)


@cases
def test_a_response_is_read_byte_by_byte(case: Any) -> None:
    check(read(*(case[0][at : at + 1] for at in range(len(case[0])))), case)


@cases
def test_a_response_is_read_in_every_split(case: Any) -> None:
    for at in range(1, len(case[0])):
        check(read(case[0][:at], case[0][at:]), case)


@cases
def test_bytes_behind_a_response_are_a_failure(case: Any) -> None:
    if case[4]:
        pytest.skip("its end is the connection's")
    for more in (b"x", OK + b"Content-Length: 0\r\n\r\n"):
        with pytest.raises(BadResponse):
            read(case[0] + more)


@cases
def test_half_a_response_is_a_failure_of_the_kind_closed_by_peer(case: Any) -> None:
    for at in range(1, len(case[0])):
        if case[4] and at >= case[0].index(b"\r\n\r\n") + 4:
            continue  # the end of the connection is the end of the body
        with pytest.raises(ClosedByPeer):
            read(case[0][:at])


@cases
def test_a_head_request_has_no_body_to_wait_for(case: Any) -> None:
    if b"100 Continue" in case[0]:
        pytest.skip("more than one head")
    head = case[0][: case[0].index(b"\r\n\r\n") + 4]
    for at in range(1, len(head)):
        raw = read(head[:at], head[at:], to_head=True)
        assert (raw.status, raw.body) == (case[1], b"")
    if case[2]:
        with pytest.raises(BadResponse):
            read(head + case[2], to_head=True)


def test_the_end_of_a_response_to_head_is_told_by_its_fields() -> None:
    assert read(OK + b"\r\n", to_head=True).keep_alive
    assert not read(OK + b"Connection: foo,close\r\n\r\n", to_head=True).keep_alive
    assert not read(b"HTTP/1.0 200 OK\r\n\r\n", to_head=True).keep_alive


def test_a_reset_does_not_end_a_body_without_a_length() -> None:
    with pytest.raises(CutOff):
        read(OK + b"\r\n", b"half of", end=CutOff)


def test_a_large_body_in_many_pieces_is_put_together() -> None:
    body = bytes(range(256)) * 4096
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    assert read(OK + b"Content-Length: %d\r\n\r\n" % len(body), *pieces).body == body
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    assert read(CHUNKED, *chunks, b"0\r\n\r\n").body == body


@pytest.mark.parametrize(
    "message",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"<html>no head</html>",
        b"\r\n\r\n",
        b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
        OK + b"no colon\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\nab",
        OK + b"Content-Length: 2, 2\r\n\r\nab",
        OK + b"Content-Length: -2\r\n\r\nab",
        OK + b"Content-Length: +2\r\n\r\nab",
        OK + b"Content-Length: 0x2\r\n\r\nab",
        OK + b"Content-Length: two\r\n\r\nab",
        OK + b"Content-Length: 99999999999999999999\r\n\r\nab",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nab",
        OK + b"Content-Length: 2\r\nContent-Length : 3\r\n\r\nab",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nab",
        OK + b"Content-Length: 2\r\nTransfer-Encoding : chunked\r\n\r\nab",
        CHUNKED + b"zz\r\nab\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"2\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"f" * 17 + b"\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM + 1),
    ],
    ids=lambda message: repr(message[:60]),
)
def test_what_is_no_response_is_a_failure_of_the_kind_protocol(message: bytes) -> None:
    with pytest.raises(BadResponse) as caught:
        read(message, b"")
    assert caught.value.kind == "protocol"


def test_an_endless_header_is_given_up() -> None:
    with pytest.raises(BadResponse, match="too large"):
        read(OK, *[b"A: " + b"x" * 60_000 + b"\r\n"] * (MAX_HEAD_BYTES // 60_000 + 2))


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(TooLarge):
        read_response(Wire(OK + b"Content-Length: 11\r\n\r\n"), 1.0, most_bytes=10)  # type: ignore[arg-type]


def test_chunks_that_add_up_to_too_much_are_refused() -> None:
    pieces = [CHUNKED, b"6\r\n123456\r\n", b"6\r\n123456\r\n", b"0\r\n\r\n"]
    with pytest.raises(TooLarge):
        read_response(Wire(*pieces), 1.0, most_bytes=10)  # type: ignore[arg-type]
    assert read_response(Wire(*pieces), 1.0, most_bytes=12).body == b"123456123456"  # type: ignore[arg-type]


@pytest.mark.parametrize("head", [OK + b"Content-Length: 9\r\n\r\n", CHUNKED], ids=["length", "chunked"])
def test_a_response_that_drips_past_its_deadline_is_given_up(head: bytes) -> None:
    with pytest.raises(TimedOut, match="whole response"):
        read_response(Wire(head, b"1", b"2"), 1.0, deadline=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "flood", [b"0\r\nX: " + b"x" * 1000, b"1;a=" + b"x" * 1000], ids=["trailers", "chunk extensions"]
)
def test_framing_without_an_end_is_given_up(flood: bytes) -> None:
    pieces = [CHUNKED + b"2\r\nok\r\n" + flood, *[b"x" * 65536] * (MAX_HEAD_BYTES // 65536 + 1)]
    with pytest.raises(BadResponse, match="too large"):
        read(*pieces)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\n", OK + b"Content-Length: 2\n", OK + b"A: b\r\n\n"])
def test_a_head_with_bare_line_feeds_is_refused_at_once(head: bytes) -> None:
    for pieces in ([head], [head[place : place + 1] for place in range(len(head))]):
        wire = Wire(*pieces, end=CutOff)  # what is waited for never comes
        with pytest.raises(BadResponse, match="not an HTTP/1 response"):
            read_response(wire, 1.0)  # type: ignore[arg-type]
