"""What an operator does to a running server: reload, scale, watch, and start it from a service manager."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from parked.prefork import settings
from parked.shared import listeners
from tests.commands import free_port
from tests.support import CHECKOUT, GET, PATIENCE_S, Client, ServerProcess, eventually, run_app

PID_APP = ("--app", "tests.apps:pid")


def get(server: ServerProcess) -> bytes:
    with Client(server.address) as client:
        return client.ask().body


class Load(threading.Thread):
    """Clients that ask all the time, reconnect when they are told to, and take note of every failure."""

    def __init__(self, address: tuple[str, int], clients: int) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.ended = threading.Event()
        self.failures: list[str] = []
        self.answered = 0
        self.bodies: set[bytes] = set()
        self._clients: list[socket.socket | None] = [None] * clients

    def run(self) -> None:
        while not self.ended.is_set():
            for number in range(len(self._clients)):
                try:
                    self._ask(number)
                except OSError as error:
                    self.failures.append(repr(error))
                    self._forget(number)
            self.ended.wait(0.005)  # the new workers need the processor, too
        for number in range(len(self._clients)):
            self._forget(number)

    def _ask(self, number: int) -> None:
        sock = self._clients[number]
        if sock is None:
            sock = self._clients[number] = socket.create_connection(self.address, timeout=PATIENCE_S)
        sock.sendall(GET)
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.rpartition(b"\r\n\r\n")[2]:
            data = sock.recv(4096)
            if not data:
                raise ConnectionError(f"closed after {answer!r}")
            answer += data
        if not answer.startswith(b"HTTP/1.1 200 "):
            self.failures.append(repr(answer))
        self.answered += 1
        self.bodies.add(answer.rpartition(b"\r\n\r\n")[2])
        if b"Connection: close" in answer:
            self._forget(number)

    def _forget(self, number: int) -> None:
        sock, self._clients[number] = self._clients[number], None
        if sock is not None:
            sock.close()


@contextlib.contextmanager
def load(server: ServerProcess, clients: int = 30) -> Iterator[Load]:
    thread = Load(server.address, clients)
    thread.start()
    try:
        eventually(lambda: thread.answered > 100)
        yield thread
    finally:
        thread.ended.set()
        thread.join(PATIENCE_S)


def write_app(folder: Path, answer: str) -> None:
    (folder / "versioned.py").write_text(
        f"def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'{answer}']\n"
    )


def test_hup_brings_new_code_and_not_one_request_fails(tmp_path: Path) -> None:
    write_app(tmp_path, "version 0")
    with ServerProcess("--app", "versioned:app", "--workers", "2", cwd=tmp_path) as server:
        supervisor = server.process.pid
        with load(server) as clients:
            for version in range(1, 4):
                write_app(tmp_path, f"version {version}.")  # another length: pyc files go by time and size
                (tmp_path / "versioned.py").touch()
                os.utime(tmp_path / "versioned.py", (version, version))
                server.signal(signal.SIGHUP)
                expected = f"version {version}.".encode()
                eventually(lambda expected=expected: expected in clients.bodies)
                before = clients.answered
                eventually(lambda before=before: clients.answered > before + 500)
        assert clients.failures == []
        assert server.process.pid == supervisor
        assert get(server) == b"version 3."
        eventually(lambda: len(server.workers()) == 2)
        server.signal(signal.SIGTERM)
        code, output = server.wait()
        assert code == 0
        assert output.count("listening on") == 3


def test_hup_with_broken_code_leaves_the_old_workers_at_work(tmp_path: Path) -> None:
    write_app(tmp_path, "fine")
    with ServerProcess("--app", "versioned:app", "--workers", "1", cwd=tmp_path) as server:
        workers = server.workers()
        (tmp_path / "versioned.py").write_text("import no_such_module_at_all")
        server.signal(signal.SIGHUP)
        assert server.process.stdout is not None
        assert "No module named 'no_such_module_at_all'" in server.process.stdout.readline()
        assert "not reloaded" in server.process.stdout.readline()
        assert get(server) == b"fine"
        assert server.workers() == workers


def test_after_a_hup_the_old_workers_go_when_their_time_is_up() -> None:
    with ServerProcess(*PID_APP, "--workers", "1", "--reload-timeout", "0.5") as server:
        with Client(server.address) as silent:
            old = silent.ask().body
            server.signal(signal.SIGHUP)
            assert silent.closed()
        eventually(lambda: len(server.workers()) == 1)
        eventually(lambda: get(server) != old)


def test_killing_the_supervisor_takes_the_workers_of_every_generation_along() -> None:
    with ServerProcess(*PID_APP, "--workers", "1") as server, Client(server.address) as silent:
        silent.ask()
        server.signal(signal.SIGHUP)
        eventually(lambda: len(server.workers()) == 2)
        workers = server.workers()
        server.process.kill()
        server.process.communicate()
        eventually(lambda: not any(worker.is_running() for worker in workers))


def test_ttin_adds_a_worker_and_ttou_retires_one_without_a_failure() -> None:
    with ServerProcess(*PID_APP, "--workers", "1") as server, load(server) as clients:
        server.signal(signal.SIGTTIN)
        eventually(lambda: len(server.workers()) == 2)
        # Connections stay where they are, so it takes new ones to see the new worker.
        eventually(lambda: len({get(server) for _ in range(10)}) == 2)
        server.signal(signal.SIGTTOU)
        eventually(lambda: len(server.workers()) == 1)
        before = clients.answered
        eventually(lambda: clients.answered > before + 200)
        server.signal(signal.SIGTTOU)  # the last one stays
        assert get(server).isdigit()
        assert clients.failures == []


def test_another_number_of_workers_comes_with_a_reload_and_what_ttin_did_stays_otherwise(
    tmp_path: Path,
) -> None:
    def listening(workers: int, connections: int | None = None) -> str:
        _, nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
        holds = connections or listeners.capacity(workers, nofile)
        return f"with {workers} worker{'s' * (workers > 1)} for {holds} connections"

    file = tmp_path / "parked.toml"
    write_app(tmp_path, "same")
    file.write_text("workers = 1\n")
    path = tmp_path / "unix"  # which all workers share
    flags = ("--app", "versioned:app", "--config", str(file), "--bind", f"unix:{path}")
    with ServerProcess(*flags, cwd=tmp_path) as server, load(server) as clients:
        assert server.process.stdout is not None
        for number, text, workers, connections in (
            (signal.SIGHUP, "workers = 3\n", 3, None),
            (signal.SIGTTIN, "workers = 3\n", 4, None),
            (signal.SIGHUP, "workers = 3\n", 4, None),
            (signal.SIGHUP, "workers = 2\nconnections = 77\n", 2, 77),
        ):
            file.write_text(text)
            server.signal(number)
            if number == signal.SIGHUP:
                line, expected = "", listening(workers, connections)
                while expected not in line:
                    line = server.process.stdout.readline()
                    assert line, f"the server ended without {expected}"
            eventually(lambda: len(server.workers()) == workers)  # noqa: B023
            assert get(server) == b"same"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                assert ask(client).startswith(b"HTTP/1.1 200 ")
        assert clients.failures == []


def test_a_killed_worker_costs_only_what_it_was_about() -> None:
    with ServerProcess(*PID_APP, "--workers", "2") as server, load(server, clients=20) as clients:
        server.workers()[0].kill()
        before = clients.answered
        eventually(lambda: clients.answered > before + 500)
    assert len(clients.failures) <= 20  # a connection each, and each at most once


def test_the_pid_file_lives_as_long_as_the_server(tmp_path: Path) -> None:
    file = tmp_path / "server.pid"
    file.write_text("999999999\n")  # left by one that died
    with ServerProcess("--pid", str(file), "--workers", "1") as server:
        assert int(file.read_text()) == server.process.pid
        second = run_app("--bind", "127.0.0.1:0", "--pid", str(file))
        assert second.returncode == settings.EXIT_USAGE
        assert second.stderr == f"run_server: process {server.process.pid} of {file} is running\n"
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == 0
    assert not file.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_server_becomes_the_user_and_group_once_it_listens() -> None:
    try:
        subprocess.run(
            [sys.executable, "-c", "import parked.server.server"],
            cwd=CHECKOUT,
            user="nobody",
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nobody may not read this Python or this checkout")
    account, group = pwd.getpwnam("nobody"), grp.getgrgid(pwd.getpwnam("nobody").pw_gid)
    with ServerProcess("--user", "nobody", "--group", group.gr_name, "--workers", "1") as server:
        for process in (server.workers()[0], *server.workers()[0].parents()[:1]):
            assert process.uids().effective == account.pw_uid
            assert process.gids().effective == account.pw_gid


def test_an_unknown_user_is_one_line() -> None:
    ended = run_app("--bind", "127.0.0.1:0", "--user", "no-such-user")
    assert ended.returncode == settings.EXIT_USAGE
    assert ended.stderr.count("\n") == 1


@contextlib.contextmanager
def started(*flags: str, **popen: object) -> Iterator[subprocess.Popen[str]]:
    """A server whose address is no TCP port of our choosing."""
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-m", "app", *flags],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def ask(sock: socket.socket) -> bytes:
    sock.settimeout(PATIENCE_S)
    sock.sendall(GET)
    return sock.recv(4096)


def test_a_unix_socket_is_served_by_all_workers_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # and never listened on: left by one that died
    with started("--bind", f"unix:{path}", "--workers", "2", *PID_APP) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"listening on unix:{path} with 2 workers")
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                assert ask(client).startswith(b"HTTP/1.1 200 ")
        second = run_app("--bind", f"unix:{path}")
        assert second.returncode == settings.EXIT_LISTEN
    assert not path.exists()


def test_sockets_of_a_service_manager_are_used() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        # Through a shell: LISTEN_PID has to be the server's own id.
        script = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "{sys.executable}" -m app --workers 2'
        process = subprocess.Popen(
            ["sh", "-c", script],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.dup2(listener.fileno(), 3) and None,
            pass_fds=(3,),
        )
        try:
            assert process.stdout is not None
            port = listener.getsockname()[1]
            assert f"127.0.0.1:{port} with 2 workers" in process.stdout.readline()
            with socket.create_connection(("127.0.0.1", port)) as client:
                assert ask(client).startswith(b"HTTP/1.1 200 ")
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_S)


def test_the_access_log_can_be_json(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ServerProcess("--access-log", str(log), "--access-log-format", "json") as server:
        with Client(server.address) as client:
            client.ask(b'GET /health?"x" HTTP/1.1\r\nHost: x\r\n\r\n')
        eventually(lambda: log.exists() and log.read_text().endswith("\n"))
    (line,) = log.read_text().splitlines()
    entry = json.loads(line)
    assert entry["target"] == '/health?"x"'
    assert (entry["method"], entry["status"], entry["client"]) == ("GET", 200, "127.0.0.1")
    assert entry["bytes"] > 3
    assert 0 <= entry["seconds"] < 10


def test_pending_responses_are_bounded_and_in_the_metrics() -> None:
    pytest.importorskip("prometheus_client")
    port = free_port()
    poll = b"GET /poll?seconds=100 HTTP/1.1\r\nHost: x\r\n\r\n"

    def metrics() -> str:
        with Client(("127.0.0.1", port)) as client:
            return client.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").body.decode()

    flags = ("--metrics", f"127.0.0.1:{port}", "--workers", "1", "--limit-pending", "1")
    with (
        ServerProcess(*flags) as server,
        Client(server.address) as waits,
        Client(server.address) as refused,
        Client(server.address) as idle,
    ):
        assert idle.ask().status == 200
        waits.send(poll)
        eventually(lambda: 'parked_connections{state="pending"} 1.0' in metrics())
        answer = refused.ask(poll)
        assert (answer.status, bool(answer.headers["Retry-After"])) == (503, True)
        eventually(lambda: 'parked_pending_ended_total{reason="limit"} 1.0' in metrics())
        seen = metrics()
        assert 'parked_connections{state="idle"} 2.0' in seen
        assert "parked_deferred_total 2.0" in seen
        server.signal(signal.SIGTERM)
        assert waits.answer().status == 200  # the demonstration has an answer for a server that ends
        assert server.wait()[0] == 0


def test_metrics_add_up_over_all_workers_and_over_a_replacement() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    port = free_port()

    def metrics() -> dict[str, float]:
        with Client(("127.0.0.1", port)) as client:
            text = client.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").body.decode()
        return {
            sample.name + "".join(sample.labels.values()): sample.value
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
        }

    flags = ("--metrics", f"127.0.0.1:{port}", "--workers", "2", *PID_APP)
    with ServerProcess(*flags) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(10)]
        for client in clients:
            client.ask()
        with Client(server.address) as bad:
            bad.ask(b"nonsense\r\n\r\n")
        eventually(lambda: metrics().get("parked_requests_total200") == 10)
        seen = metrics()
        assert seen["parked_connectionsopen"] == 10
        assert seen["parked_accepted_total"] == 11
        assert seen["parked_requests_total400"] == 1
        assert seen["parked_request_seconds_count"] == 10
        assert seen["parked_sent_bytes_total"] > 10 * 50
        assert seen["parked_worker_memory_bytes0"] > 1e6
        eventually(lambda: metrics()["parked_loop_lag_seconds_count"] >= 8)
        lag = metrics()
        assert 0 <= lag["parked_loop_lag_longest_seconds"] <= lag["parked_loop_lag_seconds_sum"] < 60
        assert lag["parked_gc_pause_longest_seconds"] <= lag["parked_gc_pause_seconds_sum"]
        busy = int(clients[0].ask().body)
        eventually(lambda: metrics()["parked_requests_total200"] == 11)
        time.sleep(1.1)  # what a worker has not yet reported dies with it
        os.kill(busy, signal.SIGKILL)
        eventually(lambda: get(server) and metrics()["parked_connectionsopen"] < 10)
        before = metrics()["parked_requests_total200"]
        assert before >= 11
        old = {worker.pid for worker in server.workers()}
        for client in clients:
            client.__exit__()
        server.signal(signal.SIGHUP)  # totals go on over a reload as well, and levels are of the living
        eventually(lambda: len(server.workers()) == 3 and not old & {w.pid for w in server.workers()})
        eventually(lambda: metrics()["parked_connectionsopen"] == 0)
        seen = metrics()
        assert seen["parked_requests_total200"] >= before
        assert sum(name.startswith("parked_worker_memory_bytes") for name in seen) == 2
        get(server)
        eventually(lambda: metrics()["parked_requests_total200"] > seen["parked_requests_total200"])


def test_what_a_worker_has_counted_last_is_in_the_metrics_when_it_has_retired() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    port = free_port()

    def answered() -> float:
        with Client(("127.0.0.1", port)) as client:
            text = client.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").body.decode()
        return sum(
            sample.value
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "parked_requests_total"
        )

    with ServerProcess("--metrics", f"127.0.0.1:{port}", "--workers", "1", *PID_APP) as server:
        eventually(lambda: answered() == 0)
        asked = 0
        for number in (signal.SIGHUP, signal.SIGTERM):  # one retires, one stops
            old = int(get(server))
            for _ in range(20):
                get(server)
            asked += 21
            os.kill(old, number)
            eventually(lambda: not Path(f"/proc/{old}").exists())  # noqa: B023
            eventually(lambda: answered() >= asked)  # noqa: B023
        assert answered() == asked


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_reload_says_which_addresses_take_a_restart_and_turns_metrics_off(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    port = free_port()
    metrics, other = f"metrics = '127.0.0.1:{port}'\n", f"metrics = '127.0.0.1:{free_port()}'\n"
    file = tmp_path / "parked.toml"
    file.write_text(metrics)
    bind = f"unix:{tmp_path}/unix"
    with started("--config", str(file), "--bind", bind, "--workers", "1", *PID_APP) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for text, told, is_there in (
            (other, f"run_server: --metrics {other[11:-2]} takes a restart\n", True),
            ("", "", False),
            (metrics, f"run_server: --metrics {metrics[11:-2]} takes a restart\n", False),
        ):
            file.write_text(text)
            process.send_signal(signal.SIGHUP)
            lines = [process.stdout.readline() for _ in range(2 if told else 1)]
            assert lines[-1].startswith(f"listening on {bind} with 1 worker ")
            assert "".join(lines[:-1]) == told
            eventually(lambda: listens(port) == is_there)  # noqa: B023
    file.write_text(f"bind = ['127.0.0.1:0', 'unix:{tmp_path}/one']\n")
    with started("--config", str(file), "--workers", "1", *PID_APP) as process:
        assert process.stdout is not None
        process.stdout.readline()
        file.write_text(f"bind = ['127.0.0.1:0', 'unix:{tmp_path}/two']\n")
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == f"run_server: --bind unix:{tmp_path}/two takes a restart\n"
        assert process.stdout.readline().startswith("listening on http://127.0.0.1:")


def test_metrics_without_the_client_library_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('hidden')")
    ended = run_app("--bind", "127.0.0.1:0", "--metrics", "127.0.0.1:0", PYTHONPATH=f"{tmp_path}:{CHECKOUT}")
    assert ended.returncode == settings.EXIT_USAGE
    assert ended.stderr == "run_server: --metrics needs prometheus_client: pip install 'parked[metrics]'\n"
