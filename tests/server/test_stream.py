from __future__ import annotations

import _socket
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from parked.server import stream
from parked.server.connection import Connection
from parked.server.stream import ClientTimeoutError, ConnectionReader, WriteTimeoutError, send_all, send_file
from parked.server.turns import of_hub


class Pair:
    """A connection of ours and its client."""

    def __init__(self) -> None:
        ours, self.client = socket.socketpair()
        raw = _socket.socket(ours.family, ours.type, ours.proto, fileno=ours.detach())
        raw.setblocking(False)
        self.client.setblocking(False)
        self.connection = Connection(raw, "")

    def reader(self, buffered: bytes = b"", timeout: float = 5) -> ConnectionReader:
        self.connection.buffer = buffered
        return ConnectionReader(self.connection, of_hub(), timeout)

    def received(self) -> bytes:
        data = b""
        try:
            while part := self.client.recv(1 << 20):
                data += part
        except BlockingIOError:
            pass
        return data


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.client.close()
    pair.connection.sock.close()


class Encrypted:
    """A socket that is not the system's, so that files are read for it."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def test_much_for_one_who_reads_as_fast_goes_in_pieces_with_turns_between(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int | str] = []
    monkeypatch.setattr(stream, "MAX_SENT_BYTES", 1000)
    monkeypatch.setattr(of_hub(), "share", lambda: sent.append("turn"))
    sock = SimpleNamespace(send=lambda data: sent.append(len(data)) or len(data))
    pair.connection.sock, real = sock, pair.connection.sock  # type: ignore[assignment]
    try:
        send_all(pair.connection, bytes(2500))
    finally:
        pair.connection.sock = real
    assert sent == [1000, "turn", 1000, "turn", 500]


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(("offset", "count", "sent"), [(0, 10, 10), (3, 4, 4), (3, 100, 7), (10, 5, 0)])
def test_a_file_is_sent_from_where_to_where_it_was_asked_for_or_to_its_end(
    pair: Pair, tmp_path: Path, offset: int, count: int, sent: int, encrypted: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    if encrypted:
        pair.connection.sock = Encrypted(pair.connection.sock)
    fd = os.open(path, os.O_RDONLY)
    try:
        with gevent.Timeout(10):
            assert send_file(pair.connection, of_hub(), fd, offset, count) == sent
    finally:
        os.close(fd)
    assert pair.received() == b"0123456789"[offset : offset + count]


def test_what_the_socket_does_not_take_at_once_follows_in_order(pair: Pair) -> None:
    data = os.urandom(1 << 20)
    sending = gevent.spawn(send_all, pair.connection, data, 5)
    received = b""
    with gevent.Timeout(20):
        while len(received) < len(data):
            gevent.sleep(0)
            received += pair.received()
        sending.get()
    assert received == data


def test_a_client_that_does_not_read_for_too_long_counts_as_gone(pair: Pair) -> None:
    with gevent.Timeout(10), pytest.raises(WriteTimeoutError):
        send_all(pair.connection, b"x" * (8 << 20), 0.05)


def test_room_for_a_whole_piece_that_was_not_told_in_time_leaves_time_for_the_next(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    received = 0

    def wait(fd: int, timeout: float, error: Exception) -> None:
        nonlocal received
        received += len(pair.client.recv(65_536))
        told.append("room" if len(told) % 2 else "in vain")
        if told[-1] == "in vain":
            raise error

    monkeypatch.setattr(stream, "wait_write", wait)
    monkeypatch.setattr(stream, "MAX_SENT_BYTES", 1_000)
    send_all(pair.connection, bytes(2_000_000), 1)
    assert len(told) > 2
    assert received + len(pair.received()) == 2_000_000


LINES = [b"first\n", b"\n", b"a third one\n", b"the end"]


@pytest.mark.parametrize("as_file", [False, True])
def test_a_client_that_reads_too_little_for_the_kernel_to_tell_is_not_gone(
    pair: Pair, as_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is reported when a good part of the buffer is free: a client may read for longer than the timeout
    until then."""
    received = 0

    def wait_in_vain(fd: int, timeout: float, error: Exception) -> None:
        nonlocal received
        received += len(pair.client.recv(65_536)) if received < 500_000 else 0
        raise error

    monkeypatch.setattr(stream, "wait_write", wait_in_vain)
    (tmp_path / "file").write_bytes(bytes(2_000_000))
    with (tmp_path / "file").open("rb") as file:
        send: Callable[[], Any] = partial(send_all, pair.connection, bytes(2_000_000), 1)
        if as_file:
            send = partial(send_file, pair.connection, of_hub(), file.fileno(), 0, 2_000_000, 1)
        with pytest.raises(WriteTimeoutError):
            send()
    assert received >= 500_000


@pytest.mark.parametrize("size", [1, 2, 3, 6, 100])
def test_lines_are_the_same_however_they_arrive(pair: Pair, size: int) -> None:
    """All in the buffer; the rest behind the request's first bytes; nothing yet."""
    data = b"".join(LINES)
    for buffered in (len(data), 8, 0):
        pair = Pair()
        reader = pair.reader(data[:buffered])

        def send(client: socket.socket = pair.client, rest: bytes = data[buffered:]) -> None:
            for start in range(0, len(rest), size):
                client.sendall(rest[start : start + size])
                gevent.sleep(0)
            client.shutdown(socket.SHUT_WR)

        sender = gevent.spawn(send)
        with gevent.Timeout(10):
            assert [reader.readline() for _ in range(5)] == [*LINES, b""]
            sender.get()
        pair.client.close()
        pair.connection.sock.close()


def test_a_line_is_cut_at_the_size_and_goes_on_with_the_next_call(pair: Pair) -> None:
    reader = pair.reader(b"0123456789\nnext\n")
    assert [reader.readline(4), reader.readline(6), reader.readline(6), reader.readline(100)] == [
        b"0123",
        b"456789",
        b"\n",
        b"next\n",
    ]
    assert not reader.held


def test_reading_takes_as_much_as_was_asked_for_and_leaves_the_rest(pair: Pair) -> None:
    reader = pair.reader(b"0123")
    pair.client.sendall(b"456789")
    assert not reader.used
    with gevent.Timeout(10):
        assert reader.read(0) == b""
        assert reader.read(2) == b"01"
        assert reader.read(6) == b"234567"
    assert reader.used
    reader.settle()
    assert pair.connection.buffer == b"89"
    pair.client.shutdown(socket.SHUT_WR)
    with gevent.Timeout(10):
        assert (reader.read(), reader.read(), reader.read(None)) == (b"89", b"", b"")


def test_content_that_does_not_come_is_the_clients_fault(pair: Pair) -> None:
    reader = pair.reader(timeout=0.05)
    with gevent.Timeout(10), pytest.raises(ClientTimeoutError):
        reader.read(1)
