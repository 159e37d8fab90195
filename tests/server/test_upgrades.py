"""WebSockets of libraries that look for the socket themselves: flask-sock, Flask-SocketIO."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import gevent
import pytest

from parked.server import lingering
from parked.server.handler import KeepAliveWSGIHandler
from tests.server.test_websocket import frame
from tests.support import GET, Client, ServerProcess, eventually, hello, serving

pytest.importorskip("flask_sock", reason="flask-sock is not installed")
pytest.importorskip("flask_socketio", reason="Flask-SocketIO is not installed")

KEY = base64.b64encode(bytes(16))
ACCEPT = base64.b64encode(
    hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
)
OFFER = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n"
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ("--app", "tests.server.upgrades:application", "--workers", "1", "--body-timeout", "1")
    with ServerProcess(*flags) as server:
        yield server


def upgraded(client: Client, path: bytes) -> None:
    client.send(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path, OFFER))
    assert client.file.readline().startswith(b"HTTP/1.1 101 ")
    assert ACCEPT in b"".join(iter(client.file.readline, b"\r\n"))


def message(client: Client) -> bytes:
    """The next text message; pings in between are left out."""
    while True:
        kind, size = client.file.read(2)
        if size == 126:
            size = int.from_bytes(client.file.read(2), "big")
        data: bytes = client.file.read(size)
        if kind == 0x81:
            return data


def test_flask_sock_talks_is_silent_for_longer_than_the_body_timeout_and_talks_on(
    server: ServerProcess,
) -> None:
    with Client(server.address) as client, Client(server.address) as plain:
        upgraded(client, b"/echo")
        client.send(frame(b"one"))
        assert message(client) == b"one"
        assert plain.ask().status == 200
        gevent.sleep(1.5)
        client.send(frame(b"two"))
        assert message(client) == b"two"
        client.send(frame(b"leave"))
        assert client.rest().startswith(b"\x88")  # a close frame, and no HTTP response behind it
        assert plain.ask().status == 200


@pytest.mark.parametrize("mode", [b"threading", b"gevent"])
def test_flask_socketio_talks_over_a_websocket(server: ServerProcess, mode: bytes) -> None:
    with Client(server.address) as client:
        upgraded(client, b"/%b/socket.io/?EIO=4&transport=websocket" % mode)
        assert message(client).startswith(b'0{"sid"')
        client.send(frame(b"40"))
        assert message(client).startswith(b'40{"sid"')
        client.send(frame(b'42["echo","hello"]'))
        assert message(client) == b'42["echo","hello"]'


@pytest.mark.parametrize(
    "fields",
    [
        b"Connection: upgrade\r\n",  # as a careless proxy says with every request
        b"Upgrade: websocket\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n",
    ],
)
@pytest.mark.parametrize("content", [b"", b"Content-Length: 3\r\n\r\nabc"])
def test_a_plain_request_is_none_whatever_its_fields_say(
    server: ServerProcess, fields: bytes, content: bytes
) -> None:
    with Client(server.address) as client:
        for _ in range(2):
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + fields + (content or b"\r\n"))
            assert client.answer().body == content[-3:] + b"b''[][]"


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_the_reference_validator_finds_nothing_in_a_request_that_offers_an_upgrade(version: bytes) -> None:
    def reads(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].readlines()
        return hello(environ, start_response)

    with serving(validator(reads)) as server, Client(server) as client:
        client.send(b"GET / HTTP/%b\r\nHost: x\r\n%b\r\n" % (version, OFFER))
        assert client.answer().body == b"hello"


def test_after_a_101_wsgi_input_is_what_the_client_sends_without_a_timeout() -> None:
    def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        assert environ["wsgi.input"].read() == b""
        write = start_response("101 Switching Protocols", [("Upgrade", "echo"), ("Connection", "Upgrade")])
        write(b"")
        yield from environ["wsgi.input"]

    offer = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    with serving(echo, body_timeout=0.1) as server, Client(server) as client:
        client.send(offer + b"early\n")
        assert client.file.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
        b"".join(iter(client.file.readline, b"\r\n"))
        assert client.file.readline() == b"early\n"
        gevent.sleep(0.3)
        client.send(b"late\n")
        assert client.file.readline() == b"late\n"


def test_the_socket_that_an_application_takes_is_counted_as_the_upgrade_that_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lingering, "LINGER_S", 0.5)
    log = io.StringIO()

    class Handler(KeepAliveWSGIHandler):
        """The usual one."""

    def takes(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        with environ["wsgi.input"].raw._sock.dup() as sock:
            sock.sendall(b"hello")
        return []

    offer = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: hello\r\n\r\n")
    with serving(takes, log=log, handler_class=Handler) as server, Client(server) as client:
        client.send(offer)
        assert client.rest() == b"hello"
        eventually(lambda: server.parking.count == 0)
    assert '" 101 ' in log.getvalue()


def test_an_application_that_fails_with_the_socket_it_took_leaves_no_answer_of_http_on_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].raw._sock.sendall(b"hello")
        raise KeyError("deliberate")

    offer = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: hello\r\n\r\n")
    with serving(fails) as server, Client(server) as client:
        client.send(offer)
        assert client.rest() == b"hello"
        assert server.faults == 0
    assert "KeyError: 'deliberate'" in capsys.readouterr().err
