from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from parked.prefork import settings, supervisor
from parked.prefork.scoreboard import Scoreboard
from tests.support import GET, PATIENCE_S, Client, ServerProcess, eventually, run_app

PID_APP = ("--app", "tests.apps:pid")


def get(server: ServerProcess, path: str = "/") -> bytes:
    with Client(server.address) as client:
        return client.ask(GET.replace(b"/ ", path.encode() + b" ")).body


def only_worker(server: ServerProcess) -> psutil.Process:
    (worker,) = server.workers()
    return worker


def test_one_line_says_where_with_how_many_workers_and_for_how_many_connections() -> None:
    with ServerProcess("--workers", "2", "--connections", "1000") as server:
        port = server.address[1]
        assert (
            server.first_line == f"listening on http://127.0.0.1:{port} with 2 workers for 1000 connections\n"
        )
        assert len(server.workers()) == 2
        server.signal(signal.SIGTERM)
        assert server.wait() == (0, "")


def test_all_workers_serve() -> None:
    with ServerProcess(*PID_APP, "--workers", "3") as server:
        answered = {get(server) for _ in range(60)}
        assert answered == {str(worker.pid).encode() for worker in server.workers()}


def test_the_soft_limit_of_files_is_raised_to_the_hard_one() -> None:
    with ServerProcess("--workers", "1") as server:
        soft, hard = only_worker(server).rlimit(psutil.RLIMIT_NOFILE)
        assert soft == hard


def test_a_killed_worker_is_replaced_and_its_queued_connections_are_served() -> None:
    with ServerProcess(*PID_APP, "--workers", "1") as server:
        worker = only_worker(server)
        assert get(server) == str(worker.pid).encode()
        worker.suspend()  # so that what connects now stays in the queue
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(server.address)) for _ in range(20)]
            for client in clients:
                client.send(GET)
            worker.kill()
            answers = {client.answer().body for client in clients}
        assert answers == {str(only_worker(server).pid).encode()}
        assert only_worker(server).pid != worker.pid
        server.signal(signal.SIGTERM)
        code, output = server.wait()
        assert code == 0
        assert output == f"run_server: worker {worker.pid} was killed by signal 9; replacing it\n"


def test_a_worker_that_dies_again_and_again_is_replaced_ever_more_slowly() -> None:
    with ServerProcess(*PID_APP, "--workers", "1") as server:
        for _ in range(3):
            with Client(server.address) as client:
                client.send(GET.replace(b"/ ", b"/die "))
                assert client.closed()
        eventually(lambda: server.workers())
        assert get(server).isdigit()
        server.signal(signal.SIGTERM)
        _, output = server.wait()
        assert output.count("exited with code 9; replacing it\n") == 1
        assert output.count("exited with code 9; replacing it in 0.2 s\n") == 1
        assert output.count("exited with code 9; replacing it in 0.4 s\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_requests_in_flight_finish_and_exits_0(number: signal.Signals) -> None:
    with ServerProcess(*PID_APP, "--workers", "2") as server, Client(server.address) as idle:
        idle.ask()
        with Client(server.address) as busy:
            busy.send(GET.replace(b"/ ", b"/sleep "))
            eventually(lambda: any(worker.num_fds() for worker in server.workers()))
            time.sleep(0.2)
            server.signal(number)
            assert idle.closed()
            answer = busy.answer()
            assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert server.wait() == (0, "")


def test_a_stop_right_after_the_start_is_in_order_too() -> None:
    for delay in (0.0, 0.002, 0.01):
        with ServerProcess("--workers", "2") as server:
            server.signal(signal.SIGTTIN)  # so that a worker is just starting
            time.sleep(delay)
            server.signal(signal.SIGTERM)
            assert server.wait()[0] == 0


def test_the_graceful_timeout_bounds_a_stop() -> None:
    with ServerProcess(*PID_APP, "--graceful-timeout", "0.3") as server, Client(server.address) as client:
        client.send(GET.replace(b"/ ", b"/stuck "))
        time.sleep(0.2)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == settings.EXIT_KILLED
        assert time.monotonic() - began < 5


def test_a_second_signal_ends_at_once() -> None:
    with ServerProcess(*PID_APP) as server, Client(server.address) as client:
        client.send(GET.replace(b"/ ", b"/stuck "))
        time.sleep(0.2)
        server.signal(signal.SIGINT)
        time.sleep(0.7)
        assert server.process.poll() is None
        server.signal(signal.SIGINT)
        began = time.monotonic()
        assert server.wait()[0] == settings.EXIT_KILLED
        assert time.monotonic() - began < 2


def test_workers_do_not_outlive_a_killed_supervisor() -> None:
    with ServerProcess("--workers", "2") as server:
        workers = server.workers()
        server.process.kill()
        server.process.communicate()
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
        assert not alive


def test_a_busy_port_is_one_line_and_its_own_code() -> None:
    with ServerProcess("--workers", "2") as server:
        port = server.address[1]
        ended = run_app("--bind", f"127.0.0.1:{port}")
        assert ended.returncode == settings.EXIT_LISTEN
        assert ended.stderr == f"run_server: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize("bind", ["no.such.host.invalid:80", "192.0.2.1:80"])
def test_an_address_that_is_not_ours_is_one_line(bind: str) -> None:
    ended = run_app("--bind", bind)
    assert ended.returncode == settings.EXIT_LISTEN
    assert ended.stderr.count("\n") == 1
    assert bind in ended.stderr


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        ("import nonexistent_module", "broken:app", "No module named 'nonexistent_module'"),
        ("1 / 0", "broken:app", "ZeroDivisionError"),
        ("raise KeyboardInterrupt", "broken:app", "KeyboardInterrupt"),
        ("raise SystemExit(3)", "broken:app", "exits"),
        ("syntax error", "broken:app", "SyntaxError"),
        ("app = 5", "broken:app", "not callable"),
        ("", "broken:app", "no attribute 'app'"),
        ("", "missing:app", "No module named 'missing'"),
    ],
)
def test_an_application_that_cannot_be_imported_is_one_line(
    tmp_path: Path, source: str, name: str, said: str
) -> None:
    (tmp_path / "broken.py").write_text(source)
    ended = run_app("--bind", "127.0.0.1:0", "--app", name, cwd=tmp_path)
    assert ended.returncode == settings.EXIT_APP
    assert ended.stderr.count("\n") == 1
    assert name in ended.stderr
    assert said in ended.stderr


def test_workers_that_cannot_start_end_it_with_their_own_code(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(
        "import os\nos.register_at_fork(after_in_child=lambda: os._exit(9))\ndef app(*_): pass\n"
    )
    ended = run_app("--bind", "127.0.0.1:0", "--workers", "2", "--app", "dies:app", cwd=tmp_path)
    assert ended.returncode == settings.EXIT_WORKERS
    assert "giving up" in ended.stderr


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    ended = run_app("--bind", "127.0.0.1:0", "--access-log", str(tmp_path / "no" / "log"))
    assert ended.returncode == settings.EXIT_USAGE
    assert ended.stderr == f"run_server: cannot open {tmp_path}/no/log: No such file or directory\n"


def test_more_connections_than_the_workers_can_open_are_refused_at_the_start() -> None:
    ended = run_app("--workers", "1", "--connections", "100000000")
    assert ended.returncode == settings.EXIT_USAGE
    assert ended.stderr.count("\n") == 1


def test_the_application_is_found_in_the_current_directory_and_may_block(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\n"
        "def app(environ, start_response):\n"
        "    time.sleep(0.5)\n"
        "    start_response('200 OK', [])\n"
        "    return [b'mine']\n"
    )
    with (
        ServerProcess("--app", "mine:app", "--workers", "1", cwd=tmp_path) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(Client(server.address)) for _ in range(10)]
        began = time.monotonic()
        for client in clients:
            client.send(GET)
        assert [client.answer().body for client in clients] == [b"mine"] * 10
        assert time.monotonic() - began < 3  # one after the other would take 5


def test_the_access_log_gets_a_line_a_request(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with ServerProcess("--access-log", str(log), "--workers", "2") as server:
        for _ in range(5):
            get(server, "/health")
        eventually(lambda: log.read_text().count('"GET /health HTTP/1.1" 200') == 5)


def test_ipv6_can_be_listened_on() -> None:
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):  # noqa: PTH110
        pytest.skip("this machine has no IPv6")
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no ::1")
        port = probe.getsockname()[1]
    with ServerProcess("--bind", f"[::1]:{port}") as server:
        assert f" and http://[::1]:{port} with " in server.first_line
        with Client(("::1", port)) as client:
            assert client.ask().status == 200


def test_a_worker_that_is_removed_while_it_is_dead_leaves_its_row_for_others() -> None:
    board = Scoreboard()
    rows = [board.claim(), board.claim()]
    removing = object.__new__(supervisor.Supervisor)  # what is asked of it needs no sockets and no processes
    removing._scoreboard, removing._retiring, removing._groups, removing._own = board, set(), [], []
    removing._slots = [supervisor._Slot([], row=row, pid=pid) for row, pid in zip(rows, (1, 0), strict=True)]
    for row, pid in zip(rows, (1, 2), strict=True):
        board.set(row, "owner", pid)
    removing._remove_worker()
    assert board.column("owner") == [1, 0]
    assert board.claim() == rows[1]
