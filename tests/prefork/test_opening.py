from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Pair, make
from tests.commands import free_port
from tests.prefork.test_operations import load
from tests.support import GET, PATIENCE_S, ServerProcess, eventually, run_app

APP = ("--app", "tests.apps:pid")
#: Seconds for two trials of new code and a reload, on a machine that does other things too.
RELOAD_S = 4 * PATIENCE_S


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("opening")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return make(folder, "server")


@pytest.fixture
def port() -> int:
    return free_port()


def over_tls(
    port: int, session: ssl.SSLSession | None = None, **options: object
) -> tuple[ssl.SSLSocket, bytes]:
    """A connection, and what the first request on it is answered."""
    context: ssl.SSLContext = options.get("context") or trusting()  # type: ignore[assignment]
    bare = socket.create_connection(("127.0.0.77", port), timeout=PATIENCE_S)
    sock = context.wrap_socket(bare, session=session)
    sock.sendall(GET)
    answer = b""
    while b"\r\n\r\n" not in answer or not answer.rpartition(b"\r\n\r\n")[2]:
        answer += sock.recv(4096)
    return sock, answer.rpartition(b"\r\n\r\n")[2]


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # whose sessions are complete with the handshake
    return context


def test_tcp_unix_and_tls_are_served_at_once_by_all_workers_also_after_a_reload(
    folder: Path, pair: Pair, port: int
) -> None:
    path = folder / "sock"
    flags = ("--bind", f"https://127.0.0.77:{port},unix:{path}", "--workers", "2", "--reload-timeout", "1")
    files = ("--certfile", str(pair.certificate), "--keyfile", str(pair.key))
    with clear_server(*APP, *flags, *files) as server:
        for reload in (False, True):
            if reload:
                before = {worker.pid for worker in server.workers()}
                server.signal(signal.SIGHUP)
                eventually(replaced(server, before), "reloaded", RELOAD_S)
                eventually(lambda: len(server.workers()) == 2, "the old ones gone", RELOAD_S)
            workers = {str(worker.pid).encode() for worker in server.workers()}
            found: dict[str, set[bytes]] = {"tcp": set(), "unix": set(), "tls": set()}
            deadline = time.monotonic() + RELOAD_S
            while any(pids != workers for pids in found.values()):
                assert time.monotonic() < deadline, (found, workers)
                found["tcp"].add(in_clear(socket.create_connection(server.address, timeout=PATIENCE_S)))
                local = socket.socket(socket.AF_UNIX)
                local.settimeout(PATIENCE_S)
                local.connect(str(path))
                found["unix"].add(in_clear(local))
                sock, answer = over_tls(port)
                sock.close()
                found["tls"].add(answer)
    assert not path.exists()


def replaced(server: ServerProcess, before: set[int]) -> Callable[[], bool]:
    return lambda: not before & {worker.pid for worker in server.workers()}


def clear_server(*flags: str) -> ServerProcess:
    """With a certificate, the address that it has of itself would speak TLS as well."""
    return ServerProcess(*flags, first_bind="http://127.0.0.1:0")


def in_clear(sock: socket.socket) -> bytes:
    with sock:
        connection = http.client.HTTPConnection("x")
        connection.sock = sock
        connection.request("GET", "/")
        return connection.getresponse().read()


def test_a_session_is_resumed_with_every_worker(pair: Pair, port: int) -> None:
    flags = ("--bind", f"127.0.0.77:{port}", "--workers", "2")
    files = ("--certfile", str(pair.certificate), "--keyfile", str(pair.key))
    with clear_server(*APP, *flags, *files):
        context = trusting()
        first, pid = over_tls(port, context=context)
        pids = {pid}
        assert first.selected_alpn_protocol() is None
        deadline = time.monotonic() + PATIENCE_S
        while len(pids) < 2:
            assert time.monotonic() < deadline
            sock, pid = over_tls(port, first.session, context=context)
            assert sock.session_reused
            pids.add(pid)
            sock.close()
        first.close()


def test_a_certificate_is_changed_by_hup_under_load_and_no_request_fails(
    folder: Path, pair: Pair, port: int
) -> None:
    used = Pair(folder / "used.pem", folder / "used.key")
    successor = make(folder, "successor", "/CN=successor")
    for source, target in zip(pair, used, strict=True):
        target.write_bytes(source.read_bytes())
    flags = ("--bind", f"127.0.0.77:{port}", "--workers", "2")
    files = ("--certfile", str(used.certificate), "--keyfile", str(used.key))
    with (
        clear_server(*APP, *flags, *files) as server,
        load(server) as clients,
        contextlib.ExitStack() as stack,
    ):
        kept, _ = over_tls(port)
        stack.callback(kept.close)
        assert ssl.get_server_certificate(("127.0.0.77", port)) == pair.certificate.read_text()
        used.key.write_text("nonsense")
        server.signal(signal.SIGHUP)  # nothing changes
        for source, target in zip(successor, used, strict=True):
            target.write_bytes(source.read_bytes())
        new = successor.certificate.read_text()
        server.signal(signal.SIGHUP)
        eventually(lambda: ssl.get_server_certificate(("127.0.0.77", port)) == new, "changed", RELOAD_S)
        kept.sendall(GET)
        assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert clients.failures == []


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--keyfile", "x"), "--keyfile needs --certfile"),
        (("--ca-certs", "x"), "--ca-certs needs --certfile"),
        (("--cert-reqs", "required"), "--cert-reqs needs --certfile"),
        (("--bind", "https://127.0.0.1:0"), "https:// needs --certfile"),
        (("--certfile", "x", "--cert-reqs", "required"), "--ca-certs and --cert-reqs need each other"),
        (("--certfile", "/nowhere"), "cannot read /nowhere: No such file or directory"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(flags: tuple[str, ...], line: str) -> None:
    ended = run_app("--bind", "127.0.0.1:0", *flags)
    assert (ended.returncode, ended.stderr) == (2, f"run_server: {line}\n")
