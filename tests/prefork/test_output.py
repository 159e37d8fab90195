"""Lines that cannot be written end nothing: a full disk, a pipe without a reader or with one that sleeps."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import CHECKOUT, GET, PATIENCE_S, Client, eventually

APP = """
import os, sys

def app(environ, start_response):
    if environ["PATH_INFO"] == "/error":
        print("an application's own line", file=sys.stderr)
        raise ValueError("on purpose")
    if environ["PATH_INFO"] == "/exit":
        raise {"s": SystemExit, "k": KeyboardInterrupt, "e": SystemError}[environ["QUERY_STRING"]]
    if environ["PATH_INFO"] == "/die":
        os._exit(9)
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
"""


class Server:
    """Its output goes to *output*, or nowhere with None; where it listens is read from its sockets."""

    def __init__(self, folder: Path, output: int | None, *flags: str) -> None:
        (folder / "app_.py").write_text(APP)
        closed = ">&- 2>&- <&-" if output is None else ""
        words = f'exec "$0" -m app --bind 127.0.0.1:0 --app app_:app --workers 1 "$@" {closed}'
        self.process = subprocess.Popen(
            ["sh", "-c", words, sys.executable, *flags],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(CHECKOUT), "GEVENT_TRACK_GREENLET_TREE": "0"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        self.address = ("", 0)

    def wait(self) -> None:
        self.address = eventually(self._listens)

    def _listens(self) -> tuple[str, int] | None:
        found = psutil.Process(self.process.pid).net_connections()
        addresses = [tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN]
        return addresses[0] if addresses and self.workers() else None

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def get(self, path: str = "/") -> int:
        with Client(self.address, timeout=5) as client:
            return client.ask(GET.replace(b"/ ", path.encode() + b" ")).status


@contextlib.contextmanager
def running(folder: Path, output: int | None, *flags: str) -> Iterator[Server]:
    server = Server(folder, output, *flags)
    try:
        server.wait()
        yield server
        server.process.terminate()
        assert server.process.wait(PATIENCE_S) == 0
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(params=["a full disk", "a pipe without a reader", "closed"])
def output(request: pytest.FixtureRequest) -> Iterator[int | None]:
    if request.param == "closed":
        yield None
        return
    reader, fd = os.pipe() if "pipe" in request.param else (-1, os.open("/dev/full", os.O_WRONLY))
    if reader >= 0:
        os.close(reader)
    yield fd
    os.close(fd)


def test_whatever_there_is_to_say_the_service_goes_on(tmp_path: Path, output: int | None) -> None:
    with running(tmp_path, output, "--access-log", "-") as server:
        (worker,) = workers = server.workers()
        descriptors = 0
        for _ in range(3):
            for path in ("/error", "/exit?s", "/exit?k", "/exit?e"):  # gevent ends the process by these
                assert server.get(path) == 500
            assert server.get() == 200
            descriptors = descriptors or worker.num_fds()
        assert server.workers() == workers
        eventually(lambda: worker.num_fds() <= descriptors, "no socket is left behind")
        with Client(server.address) as client:
            client.send(GET.replace(b"/ ", b"/die "))
            assert client.closed()
        assert server.get() == 200  # of another worker, whose coming could not be told
        os.kill(server.process.pid, signal.SIGTTIN)
        eventually(lambda: len(server.workers()) == 2)
        os.kill(server.process.pid, signal.SIGTTOU)
        eventually(lambda: len(server.workers()) == 1)
        (old,) = server.workers()
        os.kill(server.process.pid, signal.SIGHUP)
        eventually(lambda: not old.is_running())
        assert server.get() == 200


def test_a_reader_that_sleeps_holds_nobody_up(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with running(tmp_path, writer, "--access-log", "-") as server:
        with Client(server.address, timeout=5) as client:
            for _ in range(1500):
                assert client.ask().status == 200
        told = b""
        deadline = time.monotonic() + PATIENCE_S
        while not (lost := re.search(rb"(\d+) lines could not be written here", told)):
            assert time.monotonic() < deadline
            assert server.get() == 200
            with contextlib.suppress(BlockingIOError):
                told += os.read(reader, 1 << 16)
        assert int(lost[1]) > 100
    os.close(reader)
    os.close(writer)
