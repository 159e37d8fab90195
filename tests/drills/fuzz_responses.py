"""Mutated responses against the load test's client (`parked.loadtest.client.wire`), with h11 as the judge.

What must hold for each:

- nothing but a failure of a request is ever raised, also where the content coding is undone;
- however the bytes are cut, the outcome is the same, but for bytes behind a response that are not there yet;
- what the client accepts, h11 accepts, with the same status and content.

Where either does not hold, is in `DIFFERENCES` by name.
"""

from __future__ import annotations

import gzip
import random
import re
import zlib
from dataclasses import dataclass
from typing import Any, Final

import h11

from parked.loadtest.client.errors import ClosedByPeer, RequestFailure
from parked.loadtest.client.wire import read_response
from tests.drills import fuzzing

MOST_BYTES: Final = 2000
#: What a content coding may make of it.
DECODED_BYTES: Final = 1000
_TEXT: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
_CHUNKS: Final = b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\nX: y\r\n\r\n"
SEEDS: Final = (
    _TEXT,
    b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\nServer: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + _CHUNKS,
    b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end",
    b"HTTP/1.0 404 Not Found\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: x\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + _TEXT,
    b"HTTP/1.1 302 Found\r\nLocation: /x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 25\r\n\r\n"
    + gzip.compress(b"hello", mtime=0),
    b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: 13\r\n\r\n" + zlib.compress(b"hello"),
)
TOKENS: Final = [
    *(bytes([number]) for number in range(256)),
    *(b"\r\n", b"\n", b"\r\n\r\n", b"\r\n ", b": ", b" :", b";", b","),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
    ),
    *(b"content-length:\t5\r\n", b"Content-Length : 5\r\n", b"X-Content-Length: 1\r\n", b"5" * 30),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"transfer-encoding: x\r\n",
    ),
    *(
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Connection: upgrade\r\n",
        b"connection:x\r\n",
    ),
    *(b"Content-Encoding: gzip\r\n", b"Content-Encoding: br\r\n", b"Upgrade: websocket\r\n"),
    *(
        b"HTTP/1.1 ",
        b"HTTP/1.0 ",
        b"HTTP/2 ",
        b"100 ",
        b"101 ",
        b"204 ",
        b"304 ",
        b"999 ",
        b"0\r\n\r\n",
        b"ffffffff",
    ),
]


_STATUS_LINE: Final = rb"HTTP/1\.[01] %b[0-9]{2} [\t\x20-\x7e\x80-\xff]*\r\n"
_FIELD_LINES: Final = rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
_INTERIM: Final = _STATUS_LINE % b"1" + _FIELD_LINES
_FINAL: Final = _STATUS_LINE % b"[02-9]" + _FIELD_LINES


class Peer:
    """A connection that delivers its bytes in the pieces given, and then its end."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = [*pieces]

    def receive(self, _timeout_s: float, _deadline: float = 0.0) -> bytes:
        if not self.pieces:
            raise ClosedByPeer("the end")
        return self.pieces.pop(0)


@dataclass(frozen=True)
class Accepted:
    status: int
    content: bytes


Outcome = Accepted | str


def ours(pieces: list[bytes], to_head: bool) -> tuple[Outcome, bool]:
    """The outcome, and whether there is more behind the response, which was not looked at."""
    peer: Any = Peer(pieces)
    try:
        response = read_response(peer, 1.0, to_head)
        accepted = Accepted(response.status, response.body)
    except RequestFailure as failure:
        return failure.kind, False
    try:
        response.decode(DECODED_BYTES)
    except RequestFailure:
        pass  # the framing is what is compared
    else:
        assert len(response.body) <= max(DECODED_BYTES, len(accepted.content))
    return accepted, bool(peer.pieces)


def of_h11(data: bytes, to_head: bool) -> Outcome:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    request = h11.Request(method="HEAD" if to_head else "GET", target="/", headers=[("Host", "test")])
    connection.send(request)
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    connection.receive_data(b"")
    status, content = 0, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                return Accepted(status, content)
            elif not isinstance(event, h11.InformationalResponse):
                return "incomplete"
    except h11.RemoteProtocolError as error:
        return f"refused: {error}"


#: Where outcomes may differ, by name, as a pattern of the whole response.
DIFFERENCES: Final = {
    # A head that comes in one piece is searched for what matters, and not checked (2.2 us instead of 6.2); in
    # pieces it goes to llhttp, which refuses such lines.
    "malformed fields": rb"\A(?!(?:%b)*%b)" % (_INTERIM, _FINAL),
    # llhttp passes over empty lines before a response and behind it; RFC 9112, 2.2 speaks of requests only.
    "empty lines": rb"\r\n\r\n[\r\n]|[\r\n]\Z",
    # RFC 9112, 6.1: h11 knows no other coding than chunked; the client takes chunked behind any.
    "transfer codings": rb"(?i)transfer-encoding:(?![\t ]*chunked[\t ]*\r\n)",
}


def difference(data: bytes) -> str:
    return next((name for name, pattern in DIFFERENCES.items() if re.search(pattern, data)), "")


class Responses:
    seeds = SEEDS

    def mutate(self, generator: random.Random) -> tuple[bytes, bool]:
        return fuzzing.mutate_bytes(generator, SEEDS, TOKENS, MOST_BYTES), generator.random() < 0.1

    def examine(self, generator: random.Random, case: tuple[bytes, bool]) -> tuple[str, str]:
        data, to_head = case
        if not data:
            return "empty", ""
        try:
            whole, _ = ours([data], to_head)
            for _ in range(2):
                pieces = fuzzing.cut(generator, data)
                in_pieces, more = ours(pieces, to_head)
                if in_pieces != whole and not (more and whole == "protocol") and not difference(data):
                    return "cut", f"cut into {pieces} it is {in_pieces}, whole {whole}"
        except Exception as error:
            return "raised", f"{type(error).__name__}: {error}"
        if not isinstance(whole, Accepted):
            return whole, ""
        judge = of_h11(data, to_head)
        if judge != whole and not difference(data):
            return "accepted", f"we say {whole}, h11 {judge}"
        return "accepted", ""


TARGET = Responses()
