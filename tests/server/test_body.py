from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import pywsgi

from parked.server import body
from parked.server.body import RequestBody
from parked.server.connection import Connection
from parked.server.stream import ConnectionReader
from parked.server.turns import of_hub


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield theirs, Connection(ours._sock if hasattr(ours, "_sock") else ours, "")  # type: ignore[arg-type]


def chunked(connection: Connection, limit: int = 0) -> RequestBody:
    return RequestBody(ConnectionReader(connection, of_hub(), 5), None, None, True, limit)


def test_content_is_the_same_however_it_is_cut_and_delivered(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    chance = random.Random(1)
    for _ in range(30):
        content = chance.randbytes(chance.randrange(3000))
        wire, at = b"", 0
        while at < len(content):
            size = chance.choice((1, 1, 2, 15, 16, 17, 300))
            piece = content[at : at + size]
            form, extension = chance.choice(("%x", "%X", "%05x")), chance.choice((b"", b"", b"", b";a=b"))
            wire += (form % len(piece)).encode() + extension + b"\r\n" + piece + b"\r\n"
            at += size
        wire += b"0\r\nX: y\r\n\r\n"

        def deliver(data: bytes = wire) -> None:
            while data:
                size = chance.choice((1, 7, 500, 5000))
                theirs.sendall(data[:size])
                data = data[size:]
                gevent.sleep(0)

        sender = gevent.spawn(deliver)
        body = chunked(connection)
        read = b""
        while data := chance.choice((body.read, body.readline))(chance.choice((1, 10, 1000))):
            read += data
        sender.join()
        body.rfile.settle()
        assert read == content
        assert not body.unread
        assert connection.buffer == b""


def test_what_is_behind_the_content_stays_with_the_connection(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    theirs.sendall(b"3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n")
    body = chunked(connection)
    assert body.read() == b"abc"
    body.rfile.settle()
    assert connection.buffer == b"GET / HTTP/1.1\r\n"


def test_a_line_is_no_longer_than_asked_for_wherever_it_ends(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    theirs.sendall(b"9\r\nabc\ndefg\n\r\n0\r\n\r\n")
    body = chunked(connection)
    lines = [body.readline(size) for size in (2, 0, 2, 3, None, 5)]
    assert lines == [b"ab", b"", b"c\n", b"def", b"g\n", b""]


def test_good_content_before_a_malformed_chunk_is_read_first(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    theirs.sendall(b"3\r\nabc\r\nnonsense\r\n")
    body = chunked(connection)
    assert body.read(3) == b"abc"
    with pytest.raises(pywsgi._InvalidClientInput, match="malformed chunk size"):
        body.read(1)
    assert body.abandoned


def test_small_chunks_count_against_the_limit(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    theirs.sendall(b"1\r\nx\r\n" * 11)
    body = chunked(connection, limit=10)
    with pytest.raises(pywsgi._InvalidClientInput, match="too long"):
        body.read()
    assert body.too_long


def test_many_trailers_at_hand_are_no_reason_to_wait(pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    theirs.sendall(b"0\r\n" + b"a:\r\n" * 2000 + b"\r\n")
    with gevent.Timeout(5):
        assert chunked(connection).read() == b""


@pytest.mark.parametrize("line", [b"5;" + b"a" * 9000, b"0\r\nA: " + b"a" * 9000])
def test_a_line_that_never_ends_is_refused(line: bytes, pair: tuple[socket.socket, Connection]) -> None:
    theirs, connection = pair
    theirs.sendall(line)
    with pytest.raises(pywsgi._InvalidClientInput, match="line too long"):
        chunked(connection).read()


def test_a_chunk_line_that_drips_is_read_once(
    pair: tuple[socket.socket, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, connection = pair
    looks: list[Any] = []
    line = body._CHUNK_LINE

    def match(*args: Any) -> re.Match[bytes] | None:
        looks.append(args)
        return line.match(*args)

    monkeypatch.setattr(body, "_CHUNK_LINE", SimpleNamespace(match=match))

    def drip() -> None:
        for byte in b"2;name=value\r\nok\r\n0\r\n\r\n":
            theirs.sendall(bytes([byte]))
            gevent.sleep(0)

    dripping = gevent.spawn(drip)
    assert chunked(connection).read() == b"ok"
    dripping.join()
    assert len(looks) == 2
