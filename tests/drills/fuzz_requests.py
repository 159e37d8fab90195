"""Mutated requests against the parser boundary (`request`, `body` of parked.server), with h11 as the judge.

Requests are made by mutating those of tests/server/test_torture.py, good and bad, and put through our parser
whole and cut at random places. What must hold for each:

- nothing but a refusal that has a status is ever raised;
- however the bytes are cut, the outcome is the same;
- what we accept, h11 accepts, with the same method, target, content and end. The other way round does not
  hold, for we are stricter; the exceptions where h11 is, are listed in the code with their reason.

Needs h11, which comes with Locust. A run is repeated exactly by its --seed. Findings are printed as Python
literals, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import h11
from gevent import pywsgi

from parked.server.body import NO_BODY, RequestBody
from parked.server.connection import Connection
from parked.server.limits import Limits
from parked.server.request import BadRequestError, HeadScan, RequestHead, parse_head
from parked.server.stream import ConnectionReader
from parked.server.turns import of_hub
from tests.server import test_torture

LIMITS = Limits()
#: Longer ones are about bounds, which have tests of their own.
MOST_BYTES = 3000
MOST_FINDINGS = 10

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


#: The outcomes besides: a status, "incomplete".
Outcome = Accepted | int | str


def ours(data: bytes, cuts: list[int]) -> Outcome:
    bounds = [0, *cuts, len(data)]
    pieces = [data[start:end] for start, end in pairwise(bounds) if start < end]
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


def theirs(data: bytes) -> Outcome:
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


def is_known_difference(data: bytes, theirs_says: Outcome) -> bool:
    """Where h11 refuses what the RFC allows and we take."""
    if not isinstance(theirs_says, int | str):
        return False
    head, _, behind = data.partition(b"\r\n\r\n")
    return bool(
        # RFC 9112, 7.1.1: h11 knows chunk extensions without whitespace around them only.
        b";" in behind
        # RFC 9112, 7.1.2: h11 checks trailers as if they were header fields; we drop them.
        or re.search(rb"\r\n0+\r\n[^\r]", data)
        # RFC 9110, 2.5: a minor version above 1 is read as 1.
        or re.search(rb" HTTP/1\.[2-9]\r", head)
        # RFC 9110, 5.5: h11 takes no obs-text next to the ends of a value; RFC 9112, 5: nor spaces alone.
        or re.search(rb"[\x80-\xff]", head)
    )


def mutate(generator: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(generator.choice(seeds))
    for _ in range(generator.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        place = generator.randrange(len(data) + 1)
        kind = generator.randrange(6)
        if kind == 0:
            data[place:place] = generator.choice(TOKENS)
        elif kind == 1:
            data[place : place + generator.choice((1, 1, 2, 4, 16))] = b""
        elif kind == 2:
            data[place : place + 1] = generator.choice(TOKENS)
        elif kind == 3:  # a field line or chunk of another request
            lines = bytes(generator.choice(seeds)).split(b"\r\n")
            data[place:place] = generator.choice(lines) + b"\r\n"
        elif kind == 4 and len(data) > 1:
            data[place : place + 1] = bytes([generator.randrange(256)])
        else:
            end = place + generator.randrange(1, 40)
            data[place:place] = data[place:end]
    return bytes(data[:MOST_BYTES])


def examine(generator: random.Random, data: bytes) -> tuple[Outcome, str]:
    """Our outcome, and what is wrong with it; empty if nothing is."""
    try:
        whole = ours(data, [])
        for _ in range(2):
            cuts = sorted(generator.randrange(len(data) + 1) for _ in range(generator.randrange(1, 6)))
            cut = ours(data, cuts)
            # Refused early or late, and an early refusal may see less: 400 or 414 instead of 431, say.
            if cut != whole and not (isinstance(cut, int) and isinstance(whole, int)):
                return whole, f"cut at {cuts} it is {cut}, whole {whole}"
    except Exception as error:
        return "raised", f"{type(error).__name__}: {error}"
    if isinstance(whole, Accepted):
        judge = theirs(data)
        if judge != whole and not is_known_difference(data, judge):
            return whole, f"we say {whole}, h11 {judge}"
    return whole, ""


def run(seconds: float, seed: int, say: Callable[[str], None]) -> int:
    generator = random.Random(seed)
    cases = [*test_torture.GOOD, *test_torture.BAD, *test_torture.BAD_CHUNKS]
    seeds = [case.request + test_torture.SENTINEL for case in cases if len(case.request) < MOST_BYTES]
    outcomes: Counter[str] = Counter()
    findings = 0
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline and findings < MOST_FINDINGS:
        for _ in range(100):
            data = mutate(generator, seeds)
            count += 1
            outcome, wrong = examine(generator, data)
            outcomes["accepted" if isinstance(outcome, Accepted) else str(outcome)] += 1
            if wrong:
                findings += 1
                say(f"FOUND {wrong}\n      {data!r}")
                if findings >= MOST_FINDINGS:
                    break
    say(f"{count:,} requests, seed {seed}: {dict(outcomes.most_common())}, {findings} findings")
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/drills/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="length [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers [%(default)s]")
    options = parser.parse_args()
    return 1 if run(options.seconds, options.seed, lambda text: print(text, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
