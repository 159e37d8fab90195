"""What answers at a host: told by one request, whatever is there."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parked.loadtest.plan.probe import probe_host
from tests.commands import free_port

Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a peer that treats one connection as told; the value is its host:port."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(treat: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                treat(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        threads.append(thread)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join(5)
    for listener in listeners:
        listener.close()


def _answer(response: bytes) -> Callable[[socket.socket], None]:
    def treat(connection: socket.socket) -> None:
        request = connection.recv(65536)
        assert request.startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:"), request
        connection.sendall(response)

    return treat


def test_a_probe_tells_status_and_server_field(serve: Serve) -> None:
    host = serve(_answer(b"HTTP/1.1 404 Not Found\r\nDate: x\r\nserver:  thing/1 \r\n\r\nServer: no"))
    probe = probe_host(f"http://{host}/x?y=1")
    assert (probe.kind, probe.ok, probe.status, probe.server) == ("ok", True, 404, "thing/1")


def test_a_probe_reads_a_response_that_comes_byte_by_byte(serve: Serve) -> None:
    def drip(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.recv(65536)
        for byte in b"HTTP/1.0 200\r\nServer: slow\r\n\r\n":
            connection.sendall(bytes([byte]))

    probe = probe_host(f"http://{serve(drip)}/")
    assert (probe.status, probe.server) == (200, "slow")


def _close(connection: socket.socket) -> None:
    connection.recv(65536)


def _until_the_end(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/2 200\r\n\r\n", b"\x15\x03\x01"])
def test_another_protocol_is_not_http(serve: Serve, answer: bytes) -> None:
    assert probe_host(f"http://{serve(_answer(answer))}/x?y=1").kind == "not_http"


def test_a_connection_that_is_closed_without_an_answer_is_not_http(serve: Serve) -> None:
    assert probe_host(f"http://{serve(_close)}/").kind == "not_http"


def test_a_peer_that_never_answers_is_a_timeout_within_its_bound(serve: Serve) -> None:
    started = time.monotonic()
    assert probe_host(f"http://{serve(_until_the_end)}/", timeout_s=0.2).kind == "timeout"
    assert time.monotonic() - started < 2


def test_a_peer_that_drips_for_ever_is_cut_off(serve: Serve) -> None:
    def drip(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(b"x")
                time.sleep(0.01)
        except OSError:  # the probe has gone
            pass

    started = time.monotonic()
    assert probe_host(f"http://{serve(drip)}/", timeout_s=0.3).kind == "not_http"
    assert time.monotonic() - started < 2


def test_nobody_listening_is_refused() -> None:
    assert probe_host(f"http://127.0.0.1:{free_port()}/").kind == "refused"


def test_a_full_backlog_is_a_timeout() -> None:
    with socket.socket() as listener:  # a backlog of 0 takes one connection that nobody accepts
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):
            port = listener.getsockname()[1]
            assert probe_host(f"http://127.0.0.1:{port}/", timeout_s=0.2).kind == "timeout"


def test_an_address_that_takes_no_connections_is_unreachable() -> None:
    # The broadcast address of the loopback network: connect() refuses it without sending anything.
    assert probe_host("http://127.255.255.255:80/").kind == "unreachable"


def test_a_name_that_does_not_resolve_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    probe = probe_host("http://no.such.host/")
    assert probe.kind == "does_not_resolve"
    assert "no.such.host does not resolve" in probe.detail


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "ftp://127.0.0.1", "http://", "http://h:99999", "http://h:x", "http://[::1"]
)
def test_what_is_no_url_is_told_without_a_connection(url: str) -> None:
    assert probe_host(url).kind == "bad_url"


def test_plain_http_behind_https_is_a_tls_error(serve: Serve) -> None:
    def plain(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    assert probe_host(f"https://{serve(plain)}/").kind == "tls_error"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_has_to_be_valid_unless_any_will_do(serve: Serve, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
        f" -subj /CN=localhost -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
        timeout=20,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    def secure(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)
            tls.sendall(b"HTTP/1.1 200 OK\r\nServer: tls\r\n\r\n")

    probe = probe_host(f"https://{serve(secure)}/", verify=False)
    assert (probe.kind, probe.server) == ("ok", "tls")

    def refused(connection: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)

    probe = probe_host(f"https://{serve(refused)}/")
    assert (probe.kind, probe.ok) == ("bad_certificate", False)
    assert "self-signed" in probe.detail.replace("self signed", "self-signed")
    assert "--insecure" in probe.detail
