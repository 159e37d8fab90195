"""Applications fork, when they are imported and in requests: the child lets go of what is the server's."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from pathlib import Path

import psutil
import pytest

from tests.commands import free_port
from tests.support import GET, Client, ServerProcess, eventually

#: /fork leaves a child behind that computes, /gevent one with an event loop, /thread one of a thread of the
#: kernel's, /both one that goes on as if it were the worker; each says its process id.
APP = """
import multiprocessing, os, time
import gevent
from gevent import monkey

fork = monkey.get_original("os", "fork")

def computes():
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pass

def waits():
    gevent.sleep(30)

def forks():
    pid = fork()
    if not pid:
        computes()
        os._exit(0)
    return pid

def app(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/thread":
        return [str(gevent.get_hub().threadpool.apply(forks)).encode()]
    if environ["PATH_INFO"] == "/both":
        return [str(fork()).encode()]
    work = {"/fork": computes, "/gevent": waits}.get(environ["PATH_INFO"])
    if work is None:
        return [str(os.getpid()).encode()]
    child = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    child.start()
    return [str(child.pid).encode()]

if os.environ.get("FORK_AT_IMPORT") and not os.fork():
    waits()
    os._exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "forking.py").write_text(APP)
    return tmp_path


def get(server: ServerProcess, path: str = "/") -> int:
    with Client(server.address) as client:
        return int(client.ask(GET.replace(b"/ ", path.encode() + b" ")).body)


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two
        return True


def forked(stack: contextlib.ExitStack, server: ServerProcess, path: str) -> psutil.Process:
    """The child of a request, killed at the end of *stack*: it has the server's output open."""
    child = psutil.Process(get(server, path))
    stack.callback(lambda: child.is_running() and child.kill())
    return child


def can_listen(address: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError:
            return False
        return True


@pytest.mark.parametrize("path", ["/fork", "/gevent", "/thread", "/both"])
def test_old_and_new_connections_are_served_beside_a_forked_child(folder: Path, path: str) -> None:
    flags = ("--app", "forking:app", "--workers", "1")
    with ServerProcess(*flags, cwd=folder) as server, contextlib.ExitStack() as stack:
        old = [stack.enter_context(Client(server.address, timeout=5)) for _ in range(10)]
        for client in old:
            client.ask()
        child = forked(stack, server, path)
        worker = server.workers()[0].pid
        for client in old:
            assert int(client.ask().body) == worker
        assert {get(server) for _ in range(20)} == {worker}
        if path != "/both":  # a child that has nothing to do ends by itself
            child.terminate()  # at its default: it ends, and the worker does not hear of it
        eventually(lambda: ended(child))
        for client in old:
            assert int(client.ask().body) == worker


@pytest.mark.parametrize("path", ["/fork", "/gevent", "/thread"])
def test_a_child_that_outlives_the_server_keeps_neither_its_address_nor_its_connections(
    folder: Path, path: str
) -> None:
    flags = ("--app", "forking:app", "--workers", "1")
    with ServerProcess(*flags, cwd=folder) as server, contextlib.ExitStack() as stack:
        child = forked(stack, server, path)
        with Client(server.address) as client:
            client.ask()
            server.process.kill()
            server.process.wait()
            assert client.closed()
        eventually(lambda: can_listen(server.address))
        assert child.is_running()


def test_a_child_from_the_import_does_not_keep_workers_of_a_killed_supervisor(folder: Path) -> None:
    with ServerProcess("--app", "forking:app", cwd=folder, FORK_AT_IMPORT="1") as server:
        ours = server.workers()
        child = next(process for process in ours if not process.net_connections())
        assert len(ours) > 1
        try:
            server.process.kill()
            server.process.wait()
            eventually(lambda: not any(worker.is_running() for worker in ours if worker != child))
            assert child.is_running()
            assert can_listen(server.address)
        finally:
            child.kill()


def test_a_childs_event_loop_does_not_count_for_its_worker(folder: Path) -> None:
    pytest.importorskip("prometheus_client")
    port = free_port()

    def requests() -> int:
        with Client(("127.0.0.1", port)) as client:
            text = client.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").body.decode()
        found = re.search(r'^parked_requests_total{status="200"} (\d+)', text, re.MULTILINE)
        return int(found[1]) if found else 0

    flags = ("--app", "forking:app", "--workers", "1", "--metrics", f"127.0.0.1:{port}")
    with ServerProcess(*flags, cwd=folder) as server, contextlib.ExitStack() as stack:
        forked(stack, server, "/gevent")
        for _ in range(10):
            get(server)
        eventually(lambda: requests() == 11)
        end = time.monotonic() + 2.5  # more than two reports of either
        while time.monotonic() < end:
            assert requests() == 11
            time.sleep(0.05)
