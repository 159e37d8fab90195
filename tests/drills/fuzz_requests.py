"""Mutated requests against the server's parser (`request`, `body`), with h11 and llhttp as judges.

Requests are made by mutating those of tests/server/test_torture.py, good and bad, and put through our parser
whole and cut at random places. What must hold for each:

- nothing but a refusal that has a status is ever raised;
- however the bytes are cut, the outcome is the same;
- what we accept, h11 and llhttp (httptools) accept, with the same method, target, content and, of h11, the
  same end. The other way round does not hold, for we are stricter; where they are, is in `DIFFERENCES` by
  name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import h11
import httptools
from gevent import pywsgi

from parked.server.body import NO_BODY, RequestBody
from parked.server.connection import Connection
from parked.server.limits import Limits
from parked.server.request import BadRequestError, HeadScan, RequestHead, parse_head
from parked.server.stream import ConnectionReader
from parked.server.turns import of_hub
from tests.drills import fuzzing
from tests.server import test_torture

LIMITS = Limits()
#: Longer ones are about bounds, which have tests of their own.
MOST_BYTES = 3000

#: What mutations insert: what parsers stumble over.
TOKENS = [
    *(bytes([number]) for number in range(256)),
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\n\n",
        b"\r\r\n",
        b" \r\n",
        b"\r\n ",
        b"\r\n\t",
        b": ",
        b" :",
        b";",
    ),
    *(
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length:+1\r\n",
        b"Content-Length: 1, 1\r\n",
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
    ),
    *(
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"transfer-encoding: x, chunked\r\n",
        b"chunked",
        b"identity",
    ),
    *(b"Host: other\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n"),
    *(
        b"0\r\n\r\n",
        b"3\r\nabc\r\n",
        b"0;a=b\r\n",
        b"ffffffffffffffff",
        b"0x1",
        b"-1",
        b"1_0",
        b"00",
        b"\xc2\xa0",
    ),
    *(
        b"HTTP/1.0",
        b"HTTP/1.1",
        b"HTTP/1.2",
        b"http://h/",
        b"*",
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"/ ",
        b"#",
        b"%00",
    ),
    b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
]


class Pieces:
    """A socket that delivers its bytes in the pieces given, and then the end."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def recv(self, _size: int, /) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


@dataclass(frozen=True)
class Accepted:
    method: bytes
    target: bytes
    content: bytes
    #: Bytes behind the request.
    rest: int

    def same(self, other: Accepted) -> bool:
        """But for what is behind it."""
        return (self.method, self.target, self.content) == (other.method, other.target, other.content)


#: The outcomes besides: a status, "incomplete".
Outcome = Accepted | int | str


def ours(pieces: list[bytes]) -> Outcome:
    pieces = [*pieces]
    received = b""
    head: RequestHead | None = None
    scan = HeadScan()
    try:
        while head is None:
            if not pieces:
                return "incomplete"
            received += pieces.pop(0)
            head = parse_head(received, LIMITS, scan)
    except BadRequestError as error:
        return error.status.value
    connection = Connection(Pieces(pieces), None)  # type: ignore[arg-type]
    connection.buffer = received[head.size :]
    body = NO_BODY
    if head.fields.content_length or head.fields.chunked:
        reader = ConnectionReader(connection, of_hub())
        body = RequestBody(reader, head.fields.content_length, None, head.fields.chunked)
    try:
        content = body.read()
    except pywsgi._InvalidClientInput:
        return 400
    except ConnectionResetError:
        return "incomplete"
    if body is not NO_BODY:
        reader.settle()
    rest = len(connection.buffer) + sum(map(len, pieces))
    return Accepted(head.method.encode(), head.target.encode("latin-1"), content, rest)


def of_h11(data: bytes) -> Outcome:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    stripped = data
    while stripped.startswith(b"\r\n"):  # h11 takes none of the empty lines that RFC 9112, 2.2 allows
        stripped = stripped[2:]
    connection.receive_data(stripped)
    connection.receive_data(b"")
    method = target = content = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                method, target = event.method, event.target
            elif isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                return Accepted(method, target, content, len(connection.trailing_data[0]))
            else:
                return "incomplete"
    except h11.RemoteProtocolError as error:
        return error.error_status_hint


class _Message:
    """llhttp's callbacks: gathers the first request."""

    def __init__(self) -> None:
        self.target = self.content = b""
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        if not self.is_complete:
            self.target += url

    def on_body(self, body: bytes) -> None:
        if not self.is_complete:
            self.content += body

    def on_message_complete(self) -> None:
        self.is_complete = True


def of_llhttp(data: bytes) -> Outcome:
    message = _Message()
    parser = httptools.HttpRequestParser(message)
    method = b""
    try:
        for number in range(len(data)):  # a byte at a time, since it does not stop behind the first request
            parser.feed_data(data[number : number + 1])
            if message.is_complete:
                break
            method = parser.get_method() or method
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        if not message.is_complete:
            return 400
    if not message.is_complete:
        return "incomplete"
    return Accepted(method, message.target, message.content, 0)


_METHODS: Final = b"DELETE GET HEAD POST PUT OPTIONS TRACE COPY LOCK PATCH SEARCH".split()


class Difference(NamedTuple):
    """Where a judge reads otherwise what the RFC allows and we take."""

    name: str
    judges: tuple[Callable[[bytes], Outcome], ...]
    #: In the head, and in what is behind it.
    head: bytes
    behind: bytes = b""


DIFFERENCES: Final = (
    # RFC 9112, 7.1.1: they know chunk extensions without whitespace around them only.
    Difference("whitespace in chunk extensions", (of_h11, of_llhttp), b"", rb";"),
    # RFC 9112, 7.1.2: they check trailers as if they were header fields; we drop them.
    Difference("trailers", (of_h11, of_llhttp), b"", rb"(?:^|\r\n)0+\r\n[^\r]"),
    # RFC 9110, 2.5: a minor version above 1 is read as 1.
    Difference("minor versions", (of_h11, of_llhttp), rb" HTTP/1\.[2-9](?:\r|$)"),
    # RFC 9110, 9.1: llhttp knows the methods of a list, in capitals, and not even QUERY in every version.
    Difference("methods", (of_llhttp,), rb"\A(?!(?:%b) )" % b"|".join(_METHODS)),
    # RFC 9110, 7.8: llhttp takes what follows for the other protocol; for us the content comes first.
    Difference("upgrades", (of_llhttp,), rb"(?i)\r\nupgrade:"),
    # RFC 9110, 5.5: h11 takes no obs-text next to the ends of a value.
    Difference("obs-text", (of_h11,), rb"[\x80-\xff]"),
)


def difference(judge: Callable[[bytes], Outcome], data: bytes) -> str:
    """The name of the known one that *data* may show; empty if there is none."""
    head, _, behind = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    for known in DIFFERENCES:
        if judge in known.judges and (
            (known.head and re.search(known.head, head)) or (known.behind and re.search(known.behind, behind))
        ):
            return known.name
    return ""


class Requests:
    def __init__(self) -> None:
        cases = [*test_torture.GOOD, *test_torture.BAD, *test_torture.BAD_CHUNKS]
        self.seeds = [
            case.request + test_torture.SENTINEL for case in cases if len(case.request) < MOST_BYTES
        ]

    def mutate(self, generator: random.Random) -> bytes:
        return fuzzing.mutate_bytes(generator, self.seeds, TOKENS, MOST_BYTES)

    def examine(self, generator: random.Random, data: bytes) -> tuple[str, str]:
        try:
            whole = ours([data])
            for _ in range(2):
                pieces = fuzzing.cut(generator, data)
                in_pieces = ours(pieces)
                # Refused early or late, and an early refusal may see less: 400 or 414 instead of 431, say.
                if in_pieces != whole and not (isinstance(in_pieces, int) and isinstance(whole, int)):
                    return str(whole), f"cut into {pieces} it is {in_pieces}, whole {whole}"
        except Exception as error:
            return "raised", f"{type(error).__name__}: {error}"
        if not isinstance(whole, Accepted):
            return str(whole), ""
        for judge in (of_h11, of_llhttp):
            says = judge(data)
            if says == whole or (isinstance(says, Accepted) and judge is of_llhttp and says.same(whole)):
                continue
            if not difference(judge, data):
                return "accepted", f"we say {whole}, {judge.__name__} {says}"
        return "accepted", ""


TARGET = Requests()
