from __future__ import annotations

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


def test_a_client_that_reads_nothing_is_closed_after_the_write_timeout() -> None:
    desk = Desk()
    with pending_at(desk, write_timeout=0.1) as (_, pending):
        assert pending.send("200 OK", [], b"x" * 20_000_000)
        desk.wait_for_end("slow")
        assert desk.server.parking.count == 0
