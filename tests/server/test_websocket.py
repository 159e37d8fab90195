"""gevent-websocket, whose handler is the usual one for pywsgi: as it is, and with parked connections."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from typing import Any

import pytest
from geventwebsocket.handler import WebSocketHandler

from parked.server.handler import KeepAliveWSGIHandler
from tests.support import GET, Client, eventually, serving

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:geventwebsocket")


class ParkingWebSocketHandler(WebSocketHandler, KeepAliveWSGIHandler):  # type: ignore[misc]
    """Ordinary requests as ours, upgrades as theirs."""


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    websocket = environ.get("wsgi.websocket")
    if websocket is None:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"plain"]
    while (message := websocket.receive()) is not None:
        websocket.send(message)
    return []


def frame(text: bytes) -> bytes:
    """A text frame of a client, masked with zeros (RFC 6455, 5.2)."""
    return b"\x81" + bytes([0x80 | len(text)]) + bytes(4) + text


@pytest.mark.parametrize("handler", [WebSocketHandler, ParkingWebSocketHandler])
def test_websockets_work_beside_ordinary_requests(handler: type) -> None:
    log = io.StringIO()
    with serving(echo, handler_class=handler, error_log=log) as server:
        with Client(server) as client:
            assert client.ask().body == b"plain"
            key = base64.b64encode(bytes(16))
            client.send(
                b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n" + frame(b"first")
            )
            assert client.file.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
            head = b"".join(iter(client.file.readline, b"\r\n"))
            accept = hashlib.sha1(
                key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False
            ).digest()
            assert base64.b64encode(accept) in head
            assert client.file.read(7) == b"\x81\x05first"
            client.send(frame(b"second"))
            assert client.file.read(8) == b"\x81\x06second"
            client.send(b"\x88\x82" + bytes(4) + b"\x03\xe8")  # close, 1000
            assert client.rest()[:1] == b"\x88"
        eventually(lambda: server.parking.count == 0)
        with Client(server) as client:
            assert client.ask(GET).body == b"plain"
            eventually(lambda: server.parking.count == (handler is ParkingWebSocketHandler))
    assert ("none is parked" in log.getvalue()) == (handler is WebSocketHandler)
