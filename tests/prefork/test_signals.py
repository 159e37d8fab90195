"""Signals do what docs/server.md says of them, and what the application starts sees none of that."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from parked.prefork import settings
from parked.prefork.signals import HARMLESS
from tests.commands import interrupted
from tests.support import CHECKOUT, GET, PATIENCE_S, Client, ServerProcess, eventually

PID_APP = ("--app", "tests.apps:pid")
#: Says what a program sees that the application starts: when it is imported, in a worker.
APP = """
import subprocess

STATUS = ["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"]
at_import = subprocess.check_output(STATUS)
def app(environ, start_response):
    start_response("200 OK", [])
    return [at_import, b"|", subprocess.check_output(STATUS)]
"""


def get(server: ServerProcess) -> bytes:
    with Client(server.address) as client:
        return client.ask().body


def masks(text: bytes) -> list[int]:
    """Signals that are blocked or ignored, but those that Python itself ignores (PIPE, XFSZ)."""
    python = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    return [int(value, 16) & ~python for value in re.findall(rb"Sig(?:Blk|Ign):\s*([0-9a-f]+)", text)]


def test_what_the_application_starts_sees_no_mask_and_nothing_ignored_also_after_a_reload(
    tmp_path: Path,
) -> None:
    (tmp_path / "starts.py").write_text(APP)
    with ServerProcess("--app", "starts:app", "--workers", "1", cwd=tmp_path) as server:
        assert masks(get(server)) == [0, 0, 0, 0]
        old = {worker.pid for worker in server.workers()}
        server.signal(signal.SIGHUP)
        eventually(lambda: len(server.workers()) == 1 and not old & {w.pid for w in server.workers()})
        assert masks(get(server)) == [0, 0, 0, 0]
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == 0


def test_an_interrupt_from_before_it_could_be_taken_is_a_stop() -> None:
    command = [sys.executable, "-P", "-m", "app", "--bind", "127.0.0.1:0"]
    assert interrupted(command, os.environ | {"PYTHONPATH": str(CHECKOUT)}) == (0, "")


def test_a_helper_that_is_started_at_import_ends_by_term_and_one_of_a_trial_with_it(tmp_path: Path) -> None:
    seconds = f"60.{os.getpid()}"
    (tmp_path / "helped.py").write_text(
        f"""
import subprocess
helper = subprocess.Popen(["sleep", "{seconds}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
def app(environ, start_response):
    start_response("200 OK", [])
    return [str(helper.pid).encode()]
"""
    )
    with ServerProcess("--app", "helped:app", "--workers", "1", cwd=tmp_path) as server:
        helpers = {int(get(server))}
        server.signal(signal.SIGHUP)

        def has_reloaded() -> bool:  # the old worker may answer once more afterwards
            helpers.add(int(get(server)))
            return len(helpers) == 2

        eventually(has_reloaded)
        for pid in helpers:
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: not [p for p in psutil.process_iter() if running(p) == ["sleep", seconds]])


def running(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_what_means_nothing_to_the_supervisor_does_nothing() -> None:
    with ServerProcess(*PID_APP, "--workers", "1") as server:
        before = get(server)
        for number in HARMLESS:
            server.signal(number)
        time.sleep(0.05)
        assert get(server) == before
        server.signal(signal.SIGTERM)
        assert server.wait() == (0, "")


def test_what_means_nothing_to_a_worker_does_nothing() -> None:
    with ServerProcess(*PID_APP, "--workers", "1") as server:
        (worker,) = server.workers()
        for number in (*HARMLESS, signal.SIGINT, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU):
            worker.send_signal(number)
        time.sleep(0.05)
        assert get(server) == str(worker.pid).encode()


def test_a_worker_that_gets_term_finishes_and_is_replaced() -> None:
    with ServerProcess(*PID_APP, "--workers", "1") as server, Client(server.address) as client:
        (worker,) = server.workers()
        client.send(GET.replace(b"/ ", b"/sleep "))
        time.sleep(0.2)
        worker.terminate()
        assert client.answer().body == str(worker.pid).encode()
        eventually(lambda: server.workers() and get(server) != str(worker.pid).encode())


def test_a_worker_that_gets_quit_ends_at_once_and_is_replaced() -> None:
    with ServerProcess(*PID_APP, "--workers", "1") as server, Client(server.address) as client:
        (worker,) = server.workers()
        client.send(GET.replace(b"/ ", b"/stuck "))
        time.sleep(0.2)
        worker.send_signal(signal.SIGQUIT)
        assert client.closed()
        assert get(server) != str(worker.pid).encode()


def test_quit_stops_the_server_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with (
        ServerProcess(*PID_APP, "--workers", "2", "--pid", str(pid)) as server,
        Client(server.address) as client,
    ):
        workers = server.workers()
        client.send(GET.replace(b"/ ", b"/stuck "))
        time.sleep(0.2)
        began = time.monotonic()
        server.signal(signal.SIGQUIT)
        assert server.wait() == (settings.EXIT_KILLED, "")
        assert time.monotonic() - began < 5
        assert not pid.exists()
        assert not any(worker.is_running() for worker in workers)


def test_usr1_moves_on_to_a_new_log_in_all_workers_without_losing_a_line(tmp_path: Path) -> None:
    log, rotated = tmp_path / "log", []
    flags = (*PID_APP, "--workers", "3", "--access-log", str(log))
    with ServerProcess(*flags) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(20)]
        asked = 0
        for number in range(10):
            for client in clients:
                client.ask(GET.replace(b"/ ", b"/%d " % asked))
                asked += 1
            rotated.append(tmp_path / f"log.{number}")
            log.rename(rotated[-1])
            server.signal(signal.SIGUSR1)
            eventually(log.exists)
        eventually(lambda: sum(file.stat().st_size > 0 for file in rotated) == 10)
        server.signal(signal.SIGTERM)
        assert server.wait() == (0, "")
    text = "".join(file.read_text() for file in (*rotated, log))
    assert sorted(map(int, re.findall(r'"GET /(\d+) ', text))) == list(range(asked))


def test_a_log_that_cannot_be_opened_again_goes_on_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with ServerProcess(*PID_APP, "--workers", "1", "--access-log", str(folder / "log")) as server:
        get(server)
        folder.rename(tmp_path / "moved")
        server.signal(signal.SIGUSR1)
        assert server.process.stdout is not None
        assert "cannot open" in server.process.stdout.readline()
        get(server)
        eventually(lambda: (tmp_path / "moved" / "log").read_text().count("\n") == 2)


def test_a_stop_in_the_midst_of_a_long_import_is_in_order_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)")
    pid = tmp_path / "pid"
    flags = ("--app", "slow:app", "--bind", f"unix:{tmp_path}/sock", "--pid", str(pid))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *flags],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        assert pid.exists()
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE_S) == ("", None)
        assert process.returncode == 0
        assert not pid.exists()
        assert not (tmp_path / "sock").exists()


def test_the_supervisor_hears_beside_threads_and_handlers_of_the_application(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "import signal, gevent\n"
        "gevent.get_hub().threadpool.apply(str)\n"  # a thread of the kernel's, with an open mask
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: print('mine', flush=True))\n"
        "from tests.apps import pid as app\n"
    )
    with ServerProcess("--app", "odd:app", "--workers", "1", cwd=tmp_path) as server:
        before = get(server)
        server.signal(signal.SIGUSR2)
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == "mine\n"
        server.signal(signal.SIGHUP)
        eventually(lambda: get(server) != before)
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == 0


def test_the_table_in_the_docs_has_every_signal_that_is_taken() -> None:
    table = (CHECKOUT / "docs" / "server.md").read_text().partition("## Signals")[2].partition("\n## ")[0]
    named = set(
        re.findall(r"\b[A-Z]{2,}[0-9]?\b", " ".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)))
    )
    taken = {"TERM", "INT", "QUIT", "HUP", "USR1", "TTIN", "TTOU", "CHLD", "RTMIN", "RTMAX"}
    taken |= {signal.Signals(number).name[3:] for number in HARMLESS if number < signal.SIGRTMIN}
    assert taken - named == set()


def test_a_graceful_timeout_longer_than_poll_can_wait_is_as_good_as_any() -> None:
    with (
        ServerProcess("--workers", "1", "--graceful-timeout", "1000h") as server,
        Client(server.address) as client,
    ):
        assert client.ask().status == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == (0, "")
