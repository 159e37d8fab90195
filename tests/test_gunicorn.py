"""parked.gunicorn, in the real gunicorn: the version that is pinned, and the oldest that is supported."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gunicorn import config, glogging
from gunicorn.instrument.statsd import Statsd

from parked.gunicorn import KeepAliveWorker, Server
from parked.prefork.settings import Settings
from tests.support import CHECKOUT, GET, PATIENCE_S, Client, eventually

OLDEST = "21.2"
WORKER = "parked.gunicorn.KeepAliveWorker"
APPLICATION = """
import os, time
from gevent import monkey

def application(environ, start_response):
    name = environ["PATH_INFO"]
    if name == "/slow":
        time.sleep(0.5)
    if name == "/stuck":
        monkey.get_original("time", "sleep")(600)
    keys = "wsgi.url_scheme", "RAW_URI", "REMOTE_ADDR", "SERVER_NAME", "wsgi.multiprocess"
    body = repr([environ[key] for key in keys]).encode() if name == "/environ" else b"%d" % os.getpid()
    start_response("200 OK", [("X-B", "b"), ("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture(scope="module", params=["pinned", "oldest"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with gunicorn and gevent."""
    if request.param == "pinned":
        return Path(sys.executable)
    folder = tmp_path_factory.mktemp("gunicorn")
    uv = [str(Path(sys.executable).with_name("uv"))]
    made = folder / "bin/python"
    subprocess.run(
        [*uv, "venv", "-q", "--allow-existing", "--python", sys.executable, str(folder)], check=True
    )
    packages = [f"gunicorn=={OLDEST}.0", "gevent", "greenlet"]
    subprocess.run([*uv, "pip", "install", "-q", "--python", str(made), *packages], check=True)
    return made


class Gunicorn:
    """A running one, and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, port: int) -> None:
        self.process = process
        self.log = log
        self.port = port
        self.clients: list[http.client.HTTPConnection] = []

    def connect(self) -> http.client.HTTPConnection:
        self.clients.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S))
        return self.clients[-1]

    def workers(self) -> set[int]:
        return {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.log.read_text())}


def within(true: Callable[[], Any], what: object = "") -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (result := true()):
        assert time.monotonic() < deadline, what or true
        time.sleep(0.02)
    return result


@contextlib.contextmanager
def gunicorn(python: Path, folder: Path, *flags: str, worker: str = WORKER) -> Iterator[Gunicorn]:
    (folder / "served.py").write_text(APPLICATION)
    log = folder / "gunicorn.log"
    command = [str(python), "-m", "gunicorn", "-k", worker, "-b", "127.0.0.1:0", "--graceful-timeout", "6"]
    command += [*flags, "served:application"]
    environ = os.environ | {"PYTHONPATH": str(CHECKOUT), "HOME": str(folder)}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=file, stderr=subprocess.STDOUT)
    try:
        listening = re.compile(r"Listening at: https?://127\.0\.0\.1:(\d+)")
        found = within(lambda: listening.search(log.read_text()) or process.poll() is not None, log.read_text)
        assert isinstance(found, re.Match), log.read_text()
        running = Gunicorn(process, log, int(found[1]))
        try:
            yield running
        finally:
            for client in running.clients:
                client.close()
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()


def ask(connection: http.client.HTTPConnection, path: str = "/", **fields: str) -> tuple[int, str, str]:
    """Status, body, and what the server says of the connection."""
    connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in fields.items()})
    response = connection.getresponse()
    return response.status, response.read().decode(), response.getheader("Connection", "")


def test_connections_are_parked_and_worker_connections_bounds_requests_alone(
    python: Path, tmp_path: Path
) -> None:
    with gunicorn(python, tmp_path, "--worker-connections", "2", "--keep-alive", "1") as running:
        began = time.monotonic()
        clients = [running.connect() for _ in range(200)]
        answers = {ask(client) for client in clients}
        assert len(answers) == 1, answers  # one process, none of them told to go
        assert answers.pop()[2] != "close"
        time.sleep(max(0.0, 1.5 - (time.monotonic() - began)))  # idle for longer than --keep-alive says
        assert [ask(client)[0] for client in clients] == [200] * 200
        threads = [threading.Thread(target=ask, args=(client, "/slow")) for client in clients[:4]]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert time.monotonic() - began > 0.95  # two at a time, half a second each


def test_a_connection_is_not_kept_where_gunicorn_would_not_keep_it(python: Path, tmp_path: Path) -> None:
    with gunicorn(python, tmp_path, "--keep-alive", "0") as running:
        assert ask(running.connect())[2] == "close"


def test_the_access_log_has_every_atom_that_gunicorns_own_worker_has(python: Path, tmp_path: Path) -> None:
    form = "%(h)s %(l)s %(u)s '%(r)s' %(m)s %(U)s %(q)s %(H)s %(s)s %(b)s %(B)s %(f)s %(a)s %({x-a}i)s"
    form += " %({x-b}o)s %({wsgi.url_scheme}e)s %(T)s"
    lines = []
    for worker in (WORKER, "gevent"):
        folder = tmp_path / worker
        folder.mkdir()
        access = folder / "access.log"
        flags = ("--access-logfile", str(access), "--access-logformat", f"{form} %(L)s")
        with gunicorn(python, folder, *flags, worker=worker) as running:
            connection = running.connect()
            ask(connection, "/environ?a=1", X_A="a", User_Agent="test", Referer="/from")
            ask(connection, "/environ")
            written = within(lambda: (text := access.read_text()).count("\n") == 2 and text, access)  # noqa: B023
            lines.append([line.rpartition(" ") for line in written.splitlines()])
    assert [line[0] for line in lines[0]] == [line[0] for line in lines[1]]
    assert all(re.fullmatch(r"\d+\.\d{6}", line[2]) for line in lines[0])


def test_max_requests_replaces_workers_and_fails_no_request(python: Path, tmp_path: Path) -> None:
    flags = ("--workers", "2", "--max-requests", "20", "--max-requests-jitter", "10")
    with gunicorn(python, tmp_path, *flags) as running:
        connections = [running.connect() for _ in range(4)]
        for number in range(160):
            assert ask(connections[number % 4])[0] == 200  # http.client connects anew after a close
        assert len(running.workers()) >= 4


def test_a_reload_lets_requests_finish_and_parked_connections_leave_with_their_next_response(
    python: Path, tmp_path: Path
) -> None:
    with gunicorn(python, tmp_path) as running:
        parked, busy = running.connect(), running.connect()
        _, first, _ = ask(parked)
        busy.request("GET", "/slow")
        running.process.send_signal(signal.SIGHUP)
        assert busy.getresponse().read().decode() == first
        within(lambda: len(running.workers()) == 2)
        within(lambda: ask(parked)[2] == "close")
        assert within(lambda: (answer := ask(parked)[1]) != first and answer)


@pytest.mark.parametrize(
    ("allowed", "told"),
    [
        ("127.0.0.1", {"X_Forwarded_Proto=https": "https", "X_Forwarded_Proto=http": "http", "": "http"}),
        ("10.0.0.0/8,127.0.0.0/8", {"X_Forwarded_Ssl=on": "https"}),
        ("10.0.0.1", {"X_Forwarded_Proto=https": "http"}),
    ],
)
def test_the_scheme_is_that_which_a_trusted_proxy_says(
    allowed: str, told: dict[str, str], tmp_path: Path
) -> None:
    with gunicorn(Path(sys.executable), tmp_path, "--forwarded-allow-ips", allowed) as running:
        for field, scheme in told.items():
            fields = dict([field.split("=")]) if field else {}
            expected = repr([scheme, "/environ?a=b", "127.0.0.1", "127.0.0.1", False])
            assert ask(running.connect(), "/environ?a=b", **fields)[:2] == (200, expected)
        if allowed == "127.0.0.1":
            contradiction = ask(running.connect(), X_Forwarded_Proto="https", X_Forwarded_Ssl="off")
            assert contradiction[0] == 400


HOOKS = """
def worker_abort(worker):
    worker.log.info("aborted")

def pre_request(worker, req):
    worker.log.info("before %s %s %s", req.method, req.path, dict(req.headers)["X-A"])

def post_request(worker, req, environ, resp):
    worker.log.info("after %s %s %s %s", req.uri, environ["QUERY_STRING"], resp.status, resp.status_code)

def worker_exit(server, worker):
    server.log.info("exit after %s", worker.nr)
"""


def test_hooks_are_called(python: Path, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    with gunicorn(python, tmp_path, "-c", "hooks.py") as running:
        ask(running.connect(), "/environ?a=1", X_A="a")
    lines = re.findall(r"\[INFO\] (before|after|exit)(.*)", running.log.read_text())
    expected = [
        ("before", " GET /environ a"),
        ("after", " /environ?a=1 a=1 200 OK 200"),
        ("exit", " after 1"),
    ]
    assert lines == expected


def test_a_worker_whose_loop_stands_still_is_replaced_with_its_stack_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    with gunicorn(Path(sys.executable), tmp_path, "-c", "hooks.py", "--timeout", "3") as running:
        running.connect().request("GET", "/stuck", headers={"X-A": "a"})
        told = re.compile(r"aborted$.*ERROR\] Error handling request GET /stuck$.*\(600\)$", re.M | re.S)
        within(
            lambda: told.search(running.log.read_text()) and len(running.workers()) > 1, running.log.read_text
        )


def test_of_a_short_timeout_there_are_several_signs_of_life() -> None:
    signs: list[float] = []
    with worker(seen, timeout=1) as (made, _):
        made.notify = lambda: signs.append(time.monotonic())
        made._ending = Event()
        serving = gevent.spawn(made.run)
        gevent.sleep(1)
        made.handle_exit(signal.SIGTERM, None)
        serving.get(timeout=PATIENCE_S)
    assert len(signs) >= 3  # one a second would be as old as it may be when it is looked at


def test_tls_is_gunicorns(python: Path, tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(make, check=True, capture_output=True)
    with gunicorn(python, tmp_path, "--certfile", certificate, "--keyfile", key) as running:
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        context.set_alpn_protocols(["h2", "http/1.1"])
        connection = http.client.HTTPSConnection(
            "127.0.0.1", running.port, context=context, timeout=PATIENCE_S
        )
        for _ in range(2):
            assert ask(connection, "/environ")[1].startswith("['https', ")
        assert connection.sock.selected_alpn_protocol() == "http/1.1"
        connection.close()


def test_what_is_no_request_is_refused_and_logged(python: Path, tmp_path: Path) -> None:
    access = tmp_path / "access.log"
    with gunicorn(python, tmp_path, "--access-logfile", str(access)) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S) as client:
            client.sendall(b"GET /a HTTP/1.1\r\n\r\n")  # without Host
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
        line = within(access.read_text)
    assert '"GET /a HTTP/1.1" 400 ' in line


def test_a_client_that_leaves_before_there_is_a_status_is_in_the_log_and_counted(tmp_path: Path) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].read()
        raise AssertionError("it has come after all")

    after: list[str] = []
    log = tmp_path / "access.log"
    told = tmp_path / "error.log"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(PATIENCE_S)
        settings = {
            "post_request": lambda worker, request, environ, response: after.append(response.status),
            "statsd_host": f"127.0.0.1:{statsd.getsockname()[1]}",
            "accesslog": str(log),
            "errorlog": str(told),
        }
        with worker(application, logger=Statsd, **settings) as (made, server), made.log.sock:
            with Client(server) as client:
                client.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            eventually(lambda: after)
            assert server.faults == 0
        while statsd.recv(4096) != b"gunicorn.request.status.0:1|c|@1.0":
            pass
    assert after == ["000"]
    assert '"POST /a HTTP/1.1" 000 0 ' in log.read_text()
    assert "Traceback" not in told.read_text()


def test_a_logger_that_fails_costs_its_line_alone(tmp_path: Path) -> None:
    class Failing(glogging.Logger):  # type: ignore[misc] # gunicorn has no type hints
        def access(self, *_: Any) -> None:
            raise ValueError("of a logger")

    after: list[str] = []
    told = tmp_path / "error.log"
    settings = {
        "logger_class": Failing,
        "errorlog": str(told),
        "post_request": lambda worker, request, environ, response: after.append(response.status),
    }
    with worker(seen, logger=Failing, **settings) as (_, server), Client(server) as client:
        assert client.ask().status == client.ask().status == 200
        assert server.faults == 0
    assert after == ["200 OK"] * 2
    assert told.read_text().count("ValueError: of a logger") == 2


def test_connections_of_a_balancer_are_their_clients(python: Path, tmp_path: Path) -> None:
    value = "'auto'" if python == Path(sys.executable) else "True"  # as gunicorn has it now, and had it
    (tmp_path / "proxied.py").write_text(f"proxy_protocol = {value}\nproxy_allow_ips = '127.0.0.0/8,::1'\n")
    with gunicorn(python, tmp_path, "-c", "proxied.py") as running:
        connection = running.connect()
        connection.connect()
        connection.sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
        assert "'192.0.2.7'" in ask(connection, "/environ")[1]


@contextlib.contextmanager
def worker(
    application: Any, listener: Any = None, logger: Any = glogging.Logger, **settings: Any
) -> Iterator[tuple[KeepAliveWorker, Server]]:
    """One in this process, with its server; of gunicorn are settings, log and base class."""
    cfg = config.Config()
    for name, value in settings.items():
        cfg.set(name, value)
    made = KeepAliveWorker(1, os.getppid(), [], None, 30, cfg, logger(cfg))
    made.wsgi = application
    sock = listener or gevent.socket.socket()
    if listener is None:
        sock.bind(("127.0.0.1", 0))
    sock.listen()
    server = made._serve(sock)
    try:
        yield made, server
    finally:
        server.stop()
        made.tmp.close()
        for log in (made.log.error_log, made.log.access_log):
            for handler in log.handlers[:]:
                log.removeHandler(handler)
                handler.close()


def seen(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [])
    keys = "REMOTE_ADDR", "wsgi.url_scheme", "SCRIPT_NAME", "PATH_INFO"
    return [" ".join(environ[key] for key in keys).encode()]


def with_fields(*lines: bytes) -> bytes:
    return b"\r\n".join([GET.removesuffix(b"\r\n\r\n"), *lines, b"", b""])


def test_an_application_that_fails_or_exits_is_in_gunicorns_log_and_costs_one_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/exit":
            sys.exit("of a command")
        raise ValueError("of a request")

    with worker(application) as (_, server):
        for path in (b"/exit", b"/fail"):
            with Client(server) as client:
                assert client.ask(GET.replace(b"/ ", path + b" ")).status == 500
    log = capsys.readouterr().err
    assert re.findall(r"\[ERROR\] (.*)", log) == [
        f"Error handling request GET {p}" for p in ("/exit", "/fail")
    ]
    assert re.findall(r"^(?:SystemExit|ValueError): (.*)", log, re.M) == ["of a command", "of a request"]


HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"


@pytest.mark.parametrize(("allowed", "scheme"), [("127.0.0.1", b"https"), ("192.0.2.7", b"http")])
def test_who_says_the_scheme_behind_a_proxy_header_is_the_balancer(allowed: str, scheme: bytes) -> None:
    settings = {"proxy_protocol": "auto", "forwarded_allow_ips": allowed}
    with worker(seen, **settings) as (_, server), Client(server) as client:
        asked = with_fields(b"X-Forwarded-Proto: https")
        assert client.ask(HEADER + asked).body == b"192.0.2.7 %b  /" % scheme
        assert client.ask(asked).body == b"192.0.2.7 %b  /" % scheme


def test_a_balancer_on_a_unix_socket_may_send_proxy_headers(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with gevent.socket.socket(socket.AF_UNIX) as listener, gevent.socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        with worker(seen, listener, proxy_protocol="v1"):
            client.settimeout(PATIENCE_S)
            client.connect(path)
            client.sendall(HEADER + GET)
            assert client.recv(65536).endswith(b"192.0.2.7 http  /")


@pytest.mark.parametrize("proxy_protocol", ["off", "v1"])
@pytest.mark.parametrize(
    ("host", "fields", "expected"),
    [
        (b"example.org", [b"X-Forwarded-Proto: https"], b"example.org 443 https"),
        (b"example.org:8443", [b"X-Forwarded-Proto: https"], b"example.org 8443 https"),
        (b"example.org", [b"X-Forwarded-Proto: http"], b"example.org 80 http"),
    ],
)
def test_the_port_of_a_unix_socket_is_that_of_the_scheme_that_its_proxy_says(
    tmp_path: Path, proxy_protocol: str, host: bytes, fields: list[bytes], expected: bytes
) -> None:
    def named(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [" ".join(environ[key] for key in ("SERVER_NAME", "SERVER_PORT", "wsgi.url_scheme")).encode()]

    path = str(tmp_path / "socket")
    request = b"\r\n".join([b"GET / HTTP/1.1", b"Host: " + host, *fields, b"", b""])
    with gevent.socket.socket(socket.AF_UNIX) as listener, gevent.socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        with worker(named, listener, proxy_protocol=proxy_protocol):
            client.settimeout(PATIENCE_S)
            client.connect(path)
            client.sendall((HEADER if proxy_protocol == "v1" else b"") + request)
            assert client.recv(65536).partition(b"\r\n\r\n")[2] == expected


def test_a_scheme_that_two_proxies_say_is_as_one_says_it() -> None:
    with worker(seen) as (_, server), Client(server) as client:
        for second, scheme in ((b"https", b"https"), (b"http", b"http")):
            lines = b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: " + second
            assert client.ask(with_fields(*lines)).body == b"127.0.0.1 %b  /" % scheme


def test_the_application_is_mounted_at_the_script_name_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/at/")
    with worker(seen) as (_, server):
        for path, status, rest in (
            ("/at/b", 200, "/b"),
            ("/at", 200, ""),
            ("/attic", 500, ""),
            ("/", 500, ""),
        ):
            with Client(server) as client:
                answer = client.ask(GET.replace(b"/ ", f"{path} ".encode()))
                assert answer.status == status
                assert status == 500 or answer.body == f"127.0.0.1 http /at {rest}".encode()


def test_no_limit_of_fields_is_as_many_as_gunicorn_takes() -> None:
    with worker(seen, limit_request_fields=0) as (_, server), Client(server) as client:
        assert client.ask(with_fields(*[b"a:"] * 200)).status == 200


def test_libraries_find_gevent_by_the_name_of_the_software() -> None:
    """simple-websocket does, and with it flask-sock and Flask-SocketIO."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["SERVER_SOFTWARE"].encode()]

    with worker(application) as (_, server), Client(server) as client:
        assert re.fullmatch(rb"gevent/\S+ gunicorn/\S+", client.ask().body)


Hints = Callable[[list[tuple[Any, Any]]], None]
LINK = "</style.css>; rel=preload; as=style"


@contextlib.contextmanager
def hinting(hint: Callable[[Hints], Any], **settings: Any) -> Iterator[Client]:
    """A client of an application that gives hints before its response."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        hint(environ["wsgi.early_hints"])
        start_response("200 OK", [("X-Kind", "final"), ("Content-Length", "4")])
        return [b"last"]

    with worker(application, **settings) as (_, server), Client(server) as client:
        yield client


def test_early_hints_are_sent_before_the_response(capfd: pytest.CaptureFixture[str]) -> None:
    def hint(hints: Hints) -> None:
        hints([("Link", LINK), ("Link", " </b.js>; rel=preload ")])
        hints([(b"Link", b"</c.js>; rel=preload")])

    with hinting(hint, accesslog="-", access_log_format="sent %(B)s") as client:
        for _ in range(2):  # the connection is kept
            client.send(GET)
            assert [client.file.readline() for _ in range(4)] == [
                b"HTTP/1.1 103 Early Hints\r\n",
                b"Link: %b\r\n" % LINK.encode(),
                b"Link: </b.js>; rel=preload\r\n",
                b"\r\n",
            ]
            assert client.file.readline() == b"HTTP/1.1 103 Early Hints\r\n"
            assert [client.file.readline() for _ in range(2)] == [b"Link: </c.js>; rel=preload\r\n", b"\r\n"]
            answer = client.answer()
            assert (answer.status, answer.headers["X-Kind"], answer.body) == (200, "final", b"last")
    assert capfd.readouterr().out.count("sent 4\n") == 2, "hints are no content"


def test_http_1_0_gets_no_early_hints() -> None:
    with hinting(lambda hints: hints([("Link", LINK)])) as client:
        assert client.ask(GET.replace(b"1.1", b"1.0")).status == 200


@pytest.mark.parametrize(
    "field",
    [
        ("Link", "</a>\r\nSet-Cookie: a=b"),
        ("Li nk", "</a>"),
        ("Content-Length", "5"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
    ],
)
def test_a_field_that_early_hints_cannot_have_sends_nothing(field: tuple[str, str]) -> None:
    with hinting(lambda hints: hints([("Link", LINK), field])) as client:
        assert client.ask().status == 500


def test_early_hints_behind_the_final_head_are_left_out() -> None:
    kept: list[Hints] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        kept.append(environ["wsgi.early_hints"])
        start_response("200 OK", [("Content-Length", "4")])
        yield b"la"
        kept[-1]([("Link", LINK)])
        yield b"st"

    with worker(application) as (_, server), Client(server) as client:
        assert client.ask().body == b"last"
        kept[0]([("Link", LINK)])  # nor into the next response
        assert client.ask().body == b"last"


def test_early_hints_to_a_client_that_has_left_are_no_error_of_the_application(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed: list[BaseException] = []

    def hint(hints: Hints) -> None:
        try:
            for _ in range(1000):
                gevent.sleep(0.001)
                hints([("Link", LINK)])
        except BaseException as error:
            failed.append(error)
            raise

    with hinting(hint) as client:
        client.send(GET)
        client.sock.close()
        client.file.close()
        eventually(lambda: failed)
    assert isinstance(failed[0], OSError)
    assert "Error handling request" not in capsys.readouterr().err


def test_with_reload_idle_connections_are_not_waited_for() -> None:
    settings = {"reload": True, "graceful_timeout": int(10 * PATIENCE_S)}
    with worker(seen, **settings) as (made, server), Client(server) as client:
        client.ask()
        with gevent.Timeout(PATIENCE_S):
            made._end([server])
        assert client.closed()


def rows() -> dict[str, str]:
    """By setting of gunicorn: what docs/from-gunicorn.md says of it."""
    text = (CHECKOUT / "docs/from-gunicorn.md").read_text()
    told = {}
    for names, meaning in re.findall(r"^\| (`[^|]+`) \| (.+) \|$", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            assert name not in told, f"{name} has two rows"
            told[name] = meaning
    return told


def test_the_page_has_every_setting_of_gunicorn_and_no_other() -> None:
    assert rows().keys() == {setting.name for setting in config.KNOWN_SETTINGS}


def test_the_page_names_no_flag_of_ours_that_is_not_there() -> None:
    ours = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Settings)}
    named = {flag for meaning in rows().values() for flag in re.findall(r"`(--[a-z-]+)", meaning)}
    assert named <= ours
