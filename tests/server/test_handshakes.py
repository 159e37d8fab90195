from __future__ import annotations

import _socket
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import gevent.ssl
import pytest
from gevent.event import Event

from parked.server import turns
from parked.server.handshakes import GRACE_S, Handshakes, hello_bytes
from tests.support import GET, Client, eventually, serving


class Shaking:
    """Clients that never say a word."""

    def __init__(self, limit: int) -> None:
        self.now = 0.0
        self.open: list[str] = []
        self.go_on = Event()
        self.faults: list[tuple[str, BaseException]] = []
        self.handshakes = Handshakes(
            self.shake, lambda *fault: self.faults.append(fault), limit, lambda: self.now
        )

    def shake(self, client: str, address: str) -> None:
        self.open.append(client)
        try:
            self.go_on.wait()
        except gevent.GreenletExit:
            pass
        finally:
            self.open.remove(client)

    def begin(self, client: str) -> None:
        assert self.handshakes.have_room()
        self.handshakes.begin(client, "")
        gevent.sleep(0)


@pytest.fixture
def full() -> Iterator[Shaking]:
    shaking = Shaking(limit=2)
    shaking.begin("first")
    shaking.begin("second")
    yield shaking
    shaking.go_on.set()


def test_a_newcomer_waits_while_all_handshakes_are_young(full: Shaking) -> None:
    full.now = GRACE_S / 2
    assert not full.handshakes.have_room()


def test_the_oldest_handshake_gives_way_when_it_has_had_its_time(full: Shaking) -> None:
    full.now = GRACE_S
    full.begin("third")
    eventually(lambda: full.open == ["second", "third"])
    assert full.handshakes.given_up == 1
    assert full.handshakes.count == 2


def test_a_finished_handshake_leaves_its_place(full: Shaking) -> None:
    full.go_on.set()
    eventually(lambda: full.handshakes.count == 0)
    assert full.handshakes.have_room()


@pytest.mark.filterwarnings(
    "ignore:unclosed <socket object:ResourceWarning"  # gevent's SSLSocket, when its handshake fails
)
def test_who_keeps_all_places_for_handshakes_keeps_nobody_out(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parked.server.handshakes.GRACE_S", 0.1)
    context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    log = io.StringIO()
    with serving(ssl_context=context, header_timeout=60, error_log=log) as server:
        server._handshakes = Handshakes(server._shake_hands, server._on_fault, limit=3)
        silent = [Client(server) for _ in range(5)]
        eventually(lambda: server.accepted >= 3)
        client = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = gevent.ssl.CERT_NONE
        with client.wrap_socket(
            gevent.socket.create_connection(("127.0.0.1", server.server_port), 5)
        ) as sock:
            sock.sendall(GET)
            assert sock.recv(12) == b"HTTP/1.1 200"
        assert server._handshakes.count <= 3
        assert "no TLS: 127.0.0.1: it gave way to a newcomer\n" in log.getvalue()
        for one in silent:
            one.__exit__()


def test_handshakes_that_are_asked_for_at_once_are_done_in_turns(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    turns.of_hub().ends = 0.0  # the test before may have left its turn, of 10 ms
    loop = gevent.get_hub().loop
    begun: Counter[int] = Counter()

    def wrap(client: Any, **_: Any) -> Any:
        client.recv(1)  # waits where nothing has come
        begun[loop.iteration] += 1
        raise OSError

    cert, key = certificate
    with serving(certfile=cert, keyfile=key, error_log=None) as server, ExitStack() as clients:
        server.wrap_socket = wrap
        for _ in range(20):
            client = _socket.socket()  # C's own: the hub has no turn until all of them ask
            clients.callback(client.close)
            client.connect(("127.0.0.1", server.server_port))
            client.send(b"hello")
        eventually(lambda: begun.total() == 20)
    assert max(begun.values()) <= 2


HELLO = b"\x01\x00\x02\x00" + bytes(0x200)


def records(data: bytes, size: int, kind: bytes = b"\x16") -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(kind + b"\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000])
def test_the_length_of_a_hello_is_told_however_it_is_cut(size: int) -> None:
    data = records(HELLO, size)
    assert hello_bytes(data) == hello_bytes(data[: 5 * 4 + 4]) == 0x200
    assert hello_bytes(data[:8]) is None
    assert hello_bytes(records(b"\x01", 1, b"\x14") + data) == 0x200


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", records(b"\x02\x28", 2, b"\x15")])
def test_what_is_no_hello_has_no_length(data: bytes) -> None:
    assert hello_bytes(data) == 0


def test_a_hello_that_says_to_be_very_long_is_not_read(certificate: tuple[str, str]) -> None:
    """OpenSSL would take 131 KB of it, as long as they come, whoever else waits."""
    cert, key = certificate
    errors = io.StringIO()
    with serving(certfile=cert, keyfile=key, error_log=errors) as server, Client(server) as client:
        client.send(records(b"\x01\x01\x00\x00", 1))
        assert client.closed()
    assert errors.getvalue() == "no TLS: 127.0.0.1: OSError: a ClientHello of 65536 bytes\n"


def test_a_handshake_that_fails_in_our_own_code_leaves_its_place_and_its_client() -> None:
    error, faults, closed = RuntimeError("on purpose"), [], []

    class Silent:
        def close(self) -> None:
            closed.append(self)

    def fail(client: Silent, address: str) -> None:
        raise error

    handshakes = Handshakes(fail, lambda *fault: faults.append(fault), 1)
    handshakes.begin(client := Silent(), "")
    eventually(lambda: faults == [("shaking hands", error)])
    assert closed == [client]
    assert handshakes.count == 0
    assert handshakes.have_room()
