from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from parked.server import outgoing
from tests.server.desk import Desk, chunks, ended, head, pending_at
from tests.support import GET, eventually

NOW = GET.replace(b"/ ", b"/now ")


def test_a_stream_whose_reader_is_slow_is_closed_and_counted() -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        pending.start("200 OK", [])
        written = 0
        while pending.write(b"x" * 10_000):
            written += 10_000
            assert written < 50_000_000
        desk.wait_for_end("slow")
        assert ended(desk.server.pending) == {"slow": 1}
        eventually(lambda: desk.server.parking.count == 0)
        assert not client.rest().endswith(b"0\r\n\r\n")


def test_a_slow_reader_that_catches_up_gets_all() -> None:
    desk = Desk()
    with pending_at(desk) as (client, pending):
        desk.server.pending.max_outgoing_bytes = 50_000_000
        pending.start("200 OK", [])
        for number in range(100):
            assert pending.write(bytes([number]) * 100_000)
        head(client)
        assert chunks(client, 100) == b"".join(bytes([number]) * 100_000 for number in range(100))
        assert pending.write(b"more")
        assert chunks(client, 1) == b"more"
        pending.close()
        assert client.file.read(5) == b"0\r\n\r\n"
        assert client.ask(NOW).body == b"now"


def test_much_for_one_who_reads_as_fast_goes_in_pieces_and_is_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outgoing, "BYTES_A_TURN", 100_000)
    desk = Desk()
    body = random.randbytes(1_000_000)
    with pending_at(desk) as (client, pending):
        (connection,) = desk.server.parking.connections()
        sock, sent = connection.sock, list[int]()

        def send(data: Any) -> int:
            sent.append(len(data))
            return sock.send(data)

        real = {name: getattr(sock, name) for name in ("fileno", "recv", "close", "detach", "shutdown")}
        connection.sock = SimpleNamespace(send=send, **real)  # type: ignore[assignment]
        assert pending.send("200 OK", [], body)
        assert isinstance(pending._outgoing, memoryview)
        assert pending._outgoing.obj is body
        assert client.answer().body == body
        connection.sock = sock
        assert max(sent) == 100_000
        assert client.ask(NOW).body == b"now"


def test_a_client_that_reads_nothing_is_closed_after_the_write_timeout() -> None:
    desk = Desk()
    with pending_at(desk, write_timeout=0.1) as (_, pending):
        assert pending.send("200 OK", [], b"x" * 20_000_000)
        desk.wait_for_end("slow")
        assert desk.server.parking.count == 0
