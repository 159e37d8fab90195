from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from parked.server.proxy_protocol import MAX_HEADER_BYTES, ProxyError, ProxyProtocol, header_size, source
from parked.server.server import KeepAliveWSGIServer
from tests.support import GET, PATIENCE_S, Client, eventually, serving

V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
CLIENT = ("192.0.2.7", 4711)


def v2(command: int = 0x21, family: int = 0x11, addresses: bytes | None = None, notes: bytes = b"") -> bytes:
    if addresses is None:
        addresses = bytes([192, 0, 2, 7, 192, 0, 2, 1]) + struct.pack("!HH", 4711, 443)
    payload = addresses + notes
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", command, family, len(payload)) + payload


V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + struct.pack("!HH", 4711, 443)
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.7") * 2 + struct.pack("!HH", 4711, 443)


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (V1, CLIENT),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", ("2001:db8::7", 4711)),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 4711 443\r\n", CLIENT),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
        (v2(), CLIENT),
        (v2(family=0x21, addresses=V6), ("2001:db8::7", 4711)),
        (v2(family=0x21, addresses=MAPPED), CLIENT),
        (v2(notes=b"\x05\x00\x03abc\xea\x00\x00"), CLIENT),
        (v2(command=0x20), None),
        (v2(command=0x20, family=0, addresses=b""), None),
        (v2(command=0x20, addresses=b""), None),  # whose family and addresses are ignored
        (v2(command=0x20, family=0x41, addresses=b"anything"), None),
        (v2(family=0, addresses=b"anything"), None),
        (v2(family=0x31, addresses=b"/path".ljust(216, b"\0")), None),
    ],
)
def test_a_header_is_read_whole_byte_by_byte_and_with_what_follows(
    header: bytes, client: tuple[str, int] | None
) -> None:
    assert header_size(header) == len(header)
    assert header_size(header + b"\x16\x03\x01") == len(header)
    assert {header_size(header[:length]) for length in range(len(header))} <= {0, len(header)}
    assert source(header) == client


@pytest.mark.parametrize(
    "header",
    [
        GET,
        b"\x16\x03\x01",
        b"PROXX",
        b"proxy TCP4 192.0.2.7 192.0.2.1 4711 443\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 4711\r\n",
        b"PROXY TCP4 192.0.2.7  192.0.2.1 4711 443\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 04711 443\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 443\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.1 4711 443\r\n",
        b"PROXY TCP4 2001:db8::7 192.0.2.1 4711 443\r\n",
        b"PROXY TCP6 192.0.2.7 2001:db8::1 4711 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 2001:db8::1 4711 443\r\n",
        b"PROXY UDP4 192.0.2.7 192.0.2.1 4711 443\r\n",
        b"PROXY UNKNOWN" + b"x" * 100,
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        v2(command=0x11),
        v2(command=0x22),
        v2(family=0x41),
        v2(addresses=b"short"),
        v2(notes=b"\x05\x00"),
        v2(notes=b"\x05\x00\x04abc"),
        v2(notes=bytes(MAX_HEADER_BYTES)),
    ],
)
def test_what_is_no_header_or_malformed_is_refused(header: bytes) -> None:
    def read() -> None:
        assert header_size(header) == len(header)
        source(header)

    with pytest.raises(ProxyError):
        read()


def test_only_the_version_that_was_asked_for_is_taken() -> None:
    for header, versions in ((V1, (2,)), (v2(), (1,))):
        with pytest.raises(ProxyError, match="no PROXY header"):
            header_size(header, versions)


def test_a_setting_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="needs v1, v2 or auto"):
        ProxyProtocol("v3")
    with pytest.raises(ValueError, match="can be named"):
        ProxyProtocol("v1", "localhost")


def told(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [])
    return [f"{environ['REMOTE_ADDR']} {environ['REMOTE_PORT']}".encode()]


@pytest.mark.parametrize("header", [V1, v2(), v2(notes=b"\x05\x00\x03abc")])
def test_connections_of_a_trusted_peer_are_their_clients(header: bytes) -> None:
    with serving(told, proxy_protocol="auto") as server:
        for pieces in ([header + GET], [header, GET], [bytes([byte]) for byte in header + GET]):
            with Client(server) as client:
                for piece in pieces:
                    client.send(piece)
                    gevent.sleep(0)
                assert client.answer().body == b"192.0.2.7 4711"
                assert client.ask().body == b"192.0.2.7 4711"  # for all its life
                eventually(lambda: not any(c.busy for c in server.parking.connections()), "parked")
        assert server.faults == server.failed_handshakes == 0


def test_a_server_behind_a_balancer_on_a_unix_socket_has_a_name(tmp_path: Path) -> None:
    """PEP 3333: never empty."""

    def named(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']} {environ['REMOTE_ADDR']}".encode()]

    path = str(tmp_path / "socket")
    with gevent.socket.socket(socket.AF_UNIX) as listener, gevent.socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        server = KeepAliveWSGIServer(listener, named, log=None, proxy_protocol="v1", proxy_allow_from="unix:")
        server.start()
        try:
            client.settimeout(PATIENCE_S)
            client.connect(path)
            client.sendall(V1 + GET)
            assert client.recv(65536).endswith(b"\r\n\r\nlocalhost:80 192.0.2.7")
        finally:
            server.stop()


def test_connections_count_against_the_bound_before_and_behind_their_header() -> None:
    options: dict[str, Any] = {"proxy_protocol": "v1", "max_connections": 2, "error_log": None}
    with serving(told, **options) as server, Client(server) as first, Client(server) as second:
        assert first.ask(V1 + GET).status == 200
        with Client(server) as third:
            assert third.answer().status == 503
        assert second.ask(V1 + GET).status == 200
        with Client(server) as third:
            assert third.answer().status == 503


def test_a_request_behind_the_header_is_served_by_one_greenlet_only() -> None:
    """It comes as an event of epoll, too; who came second would let the next request in before its time."""
    began: list[str] = []
    second = gevent.event.Event()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        began.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/":
            client.send(GET.replace(b"/ ", b"/second "))
            assert not second.wait(0.1)
        else:
            second.set()
        return told(environ, start_response)

    with serving(application, proxy_protocol="auto") as server, Client(server) as client:
        client.send(V1 + GET)
        assert client.answer().status == client.answer().status == 200
    assert began == ["/", "/second"]


def test_a_balancer_that_speaks_for_itself_is_the_client() -> None:
    with serving(told, proxy_protocol="v2") as server, Client(server) as client:
        local = client.sock.getsockname()
        assert client.ask(v2(command=0x20) + GET).body == f"127.0.0.1 {local[1]}".encode()


@pytest.mark.parametrize("sent", [GET, b"PROXY TCP4 nonsense\r\n", V1[:20], b""])
def test_a_trusted_peer_without_a_header_is_closed_and_said(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("errors")
    with serving(told, proxy_protocol="auto", error_log=log) as server, Client(server) as client:
        client.send(sent)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
        eventually(lambda: server.failed_handshakes == 1)
        assert server.faults == server.parking.count == 0
        assert [message[:28] for message in caplog.messages] == ["no PROXY header: 127.0.0.1: P"[:28]]


def test_a_header_that_drips_has_the_header_timeout_and_no_longer() -> None:
    with serving(told, proxy_protocol="auto", header_timeout=0.2) as server, Client(server) as client:
        dripping = gevent.spawn(drip, client)
        assert client.closed()
        dripping.kill()
        assert server.failed_handshakes == 1


def drip(client: Client) -> None:
    for byte in V1:
        try:
            client.send(bytes([byte]))
        except OSError:
            return
        gevent.sleep(0.05)


@pytest.mark.parametrize("header", [V1, v2()])
def test_the_header_of_an_untrusted_peer_is_a_bad_request_and_its_requests_are_served(header: bytes) -> None:
    with serving(told, proxy_protocol="auto", proxy_allow_from="192.0.2.1") as server:
        with Client(server) as client:
            assert client.ask().body.startswith(b"127.0.0.1 ")
        with Client(server) as client:
            client.send(header + GET)
            assert client.answer().status == 400
            assert client.closed()
