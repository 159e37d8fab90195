from __future__ import annotations

import ctypes
import gc
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import gevent.ssl
import pytest

from parked.server import tls, turns
from parked.server.handler import KeepAliveWSGIHandler
from parked.server.server import KeepAliveWSGIServer
from tests.support import GET, Client, eventually, serving


class TLSClient(Client):
    def __init__(self, server: KeepAliveWSGIServer) -> None:
        super().__init__(server)
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.file.close()
        self.sock = context.wrap_socket(self.sock)
        self.file = self.sock.makefile("rb")


def url_scheme(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    content = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [environ["wsgi.url_scheme"].encode(), content]


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(PROTOCOL_TLS|wrap_socket).* is deprecated:DeprecationWarning",
    "ignore:unclosed <socket object:ResourceWarning",  # gevent's SSLSocket, when its handshake fails
)


@pytest.fixture
def server(certificate: tuple[str, str]) -> Iterator[KeepAliveWSGIServer]:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serving(url_scheme, ssl_context=context, header_timeout=1) as server:
        yield server


def test_connections_are_kept_and_parked_over_tls(server: KeepAliveWSGIServer) -> None:
    clients = [TLSClient(server) for _ in range(20)]
    for _ in range(3):
        for client in clients:
            assert client.ask().body == b"https"
    eventually(lambda: not any(connection.busy for connection in server.parking.connections()))
    gc.collect()
    assert server.parking.count == 20
    for client in clients:
        client.__exit__()
    eventually(lambda: server.parking.count == 0)


def test_what_openssl_holds_decrypted_is_served_before_parking(server: KeepAliveWSGIServer) -> None:
    """100 requests in one TLS record of 16 KB: one edge of the socket, many reads."""
    request = GET.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 100 + b"\r\n\r\n")
    count = 16_000 // len(request)
    with TLSClient(server) as client:
        client.send(request * count)
        for _ in range(count):
            assert client.answer().status == 200


def test_a_request_in_records_of_a_byte_is_read_in_steps_and_served(
    server: KeepAliveWSGIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "MAX_RECORDS", 4)
    most: list[int] = []
    recv = tls.TLSSocket.recv
    monkeypatch.setattr(tls.TLSSocket, "recv", lambda *args: most.append(len(data := recv(*args))) or data)
    with TLSClient(server) as client:
        for byte in b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n" + b"x" * 50:
            client.send(bytes([byte]))
        assert client.answer().body == b"https" + b"x" * 50
        assert max(most) == 4
        assert client.ask().status == 200


@pytest.mark.skipif(tls.openssl is None, reason="OpenSSL cannot be called here")
def test_key_updates_are_read_in_steps_and_what_comes_behind_them_is_served(
    server: KeepAliveWSGIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "MAX_RECORDS", 4)
    steps: list[bool] = []
    recv = tls.TLSSocket.recv

    def noted(sock: tls.TLSSocket, size: int) -> bytes:
        try:
            return recv(sock, size)
        finally:
            steps.append(sock.is_behind)

    monkeypatch.setattr(tls.TLSSocket, "recv", noted)
    with TLSClient(server) as client:
        connection = client.sock._sslobj  # type: ignore[attr-defined]
        post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
        for piece in (GET, GET, post, b"abc"):
            for _ in range(20):
                assert tls.openssl.SSL_key_update(ctypes.c_void_p(tls.ssl_of(connection)), 0) == 1
                client.sock.do_handshake()  # type: ignore[attr-defined]
            client.send(piece)
            if piece != post:
                assert client.answer().status == 200
    assert sum(steps) > 10


def test_one_who_floods_a_socket_that_the_application_has_taken_shares_turns(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[turns.Turns] = []
    monkeypatch.setattr(turns.Turns, "share", lambda self: shared.append(self))

    def takes(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        sock = environ["wsgi.input"].raw._sock
        shared.clear()
        sock.send(b"go")
        for _ in range(5):
            assert sock.recv(2)
        assert len(shared) == 6
        return []

    cert, key = certificate
    offer = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: hello\r\n\r\n")
    with serving(takes, certfile=cert, keyfile=key) as server, TLSClient(server) as client:
        client.send(offer)
        assert client.file.read(2) == b"go"
        client.send(b"0123456789")
        assert client.closed()


def test_large_content_goes_both_ways(server: KeepAliveWSGIServer) -> None:
    content = b"z" * 3_000_000
    with TLSClient(server) as client:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content)
        sender = gevent.spawn(client.send, head + content)
        assert client.answer().body == b"https" + content
        sender.get()


def test_files_are_sent_over_tls(certificate: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4000)

    def download(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [("Content-Length", "1000000")])
        return environ["wsgi.file_wrapper"](path.open("rb"))

    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serving(download, ssl_context=context) as server, TLSClient(server) as client:
        for _ in range(2):
            assert client.ask().body == path.read_bytes()[:1_000_000]


def test_a_handler_may_use_the_socket_and_the_connection_is_kept(certificate: tuple[str, str]) -> None:
    class Speaking(KeepAliveWSGIHandler):
        def run_application(self) -> None:
            if self.environ["PATH_INFO"] == "/raw":
                self.start_response("101 Switching Protocols", [])
                self.write(b"")
                while line := self.rfile.readline():
                    self.socket.sendall(b"echo " + line)
            else:
                seen.append(self.socket.getpeername())
                super().run_application()

    seen: list[Any] = []
    cert, key = certificate
    with (
        serving(url_scheme, certfile=cert, keyfile=key, handler_class=Speaking) as server,
        TLSClient(server) as client,
    ):
        for _ in range(3):
            assert client.ask().body == b"https"
        assert seen == [client.sock.getsockname()] * 3
        client.send(b"GET /raw HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nearly\n")
        assert client.answer().status == 101
        assert client.file.readline() == b"echo early\n"
        client.send(b"late\n")
        assert client.file.readline() == b"echo late\n"


def test_half_a_request_over_tls_times_out(server: KeepAliveWSGIServer) -> None:
    with TLSClient(server) as client:
        client.send(GET[:10])
        assert client.answer().status == 408


def test_a_client_that_does_not_speak_tls_or_does_not_speak_is_closed(server: KeepAliveWSGIServer) -> None:
    with Client(server) as plain, Client(server) as silent:
        plain.send(GET)
        plain.rest()
        assert silent.closed()  # after the header timeout
    assert server.parking.count == 0
    with TLSClient(server) as client:
        assert client.ask().status == 200


def test_keyfile_and_certfile_work_as_in_pywsgi(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    with serving(url_scheme, certfile=cert, keyfile=key) as server, TLSClient(server) as client:
        assert client.ask().body == b"https"


def test_all_connections_share_one_context_also_by_certfile(certificate: tuple[str, str]) -> None:
    """One each would be 20 KB of the 35 that a connection took."""
    cert, key = certificate
    with serving(url_scheme, certfile=cert, keyfile=key) as server, ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(TLSClient(server)).ask()
        held = [connection.sock for connection in server.parking.connections()]
        assert all(isinstance(sock, tls.TLSSocket) for sock in held)
        assert len(held) == 3
        assert len({id(sock._ssl.context) for sock in held}) == 1  # type: ignore[attr-defined]


def test_the_server_says_in_tls_that_it_closes(certificate: tuple[str, str]) -> None:
    """RFC 9112, 9.8: else a client cannot tell the end from a connection that somebody has cut."""
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serving(url_scheme, ssl_context=context, idle_timeout=0.1) as server:
        for request in (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), GET, b"nonsense\r\n\r\n"):
            with TLSClient(server) as client:
                client.sock.context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
                client.sock.suppress_ragged_eofs = False  # a missing close_notify raises
                client.send(request)
                assert client.answer().status in (200, 400)
                assert client.sock.recv(1) == b""


def test_a_context_of_pythons_own_class_is_as_good_and_never_blocks(certificate: tuple[str, str]) -> None:
    """As a program has it that is not patched, or that made it before."""
    context: ssl.SSLContext = gevent.ssl.orig_SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert not isinstance(context, gevent.ssl.SSLContext)
    context.load_cert_chain(*certificate)

    with serving(url_scheme, ssl_context=context) as server, TLSClient(server) as client:
        assert client.ask().body == client.ask().body == b"https"
        (connection,) = server.parking.connections()
        assert isinstance(connection.sock, tls.TLSSocket)
        assert isinstance(connection.sock.cooperative(), gevent.ssl.SSLSocket)
        connection.sock.uncooperative()
