"""What the server's tests share: a server in this process or in its own, and a client that hides nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import gevent.socket
import psutil

from parked.server.server import KeepAliveWSGIServer
from tests.commands import run

CHECKOUT = Path(__file__).parents[1]
#: Seconds in which anything that should happen has happened, on a machine that does other things too.
PATIENCE_S = 60.0

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The plainest application."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def eventually(true: Callable[[], Any], what: str = "", timeout: float = PATIENCE_S) -> Any:
    """Wait until *true()* is, at most *timeout* seconds; returns what it returned."""
    deadline = time.monotonic() + timeout
    while not (result := true()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or true}"
        gevent.sleep(0.005)
    return result


@contextlib.contextmanager
def serving(application: Any = hello, **options: Any) -> Iterator[KeepAliveWSGIServer]:
    """A server in this process, on a port of its own, or at the *listener* among its options."""
    options.setdefault("log", None)
    options.setdefault("environ", {"SERVER_NAME": "test"})
    listener = options.pop("listener", ("127.0.0.1", 0))
    server = KeepAliveWSGIServer(listener, application, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Client:
    """One connection to a server in this process. Cooperative, since the server shares our thread."""

    def __init__(self, server: Any, timeout: float = PATIENCE_S) -> None:
        address = server if isinstance(server, tuple) else ("127.0.0.1", server.server_port)
        self.sock = gevent.socket.create_connection(address, timeout=timeout)
        self.sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, method: str = "GET") -> Answer:
        """Read one response from the connection, and not a byte more."""
        response = http.client.HTTPResponse(_Kept(self.file), method=method)  # type: ignore[arg-type]
        response.begin()
        return Answer(response.status, response.headers, response.read())

    def ask(self, data: bytes = GET) -> Answer:
        self.send(data)
        return self.answer(data.partition(b" ")[0].decode("latin-1"))

    def rest(self) -> bytes:
        """All until the server closes; a reset counts as the end."""
        try:
            return bytes(self.file.read())
        except ConnectionResetError:
            return b""

    def closed(self) -> bool:
        """Whether the server closes without another byte."""
        return self.rest() == b""


class _Kept:
    """A socket for HTTPResponse whose file outlives the response."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def makefile(self, *_: Any) -> Any:
        return _Unclosed(self._file)


class _Unclosed:
    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None:
        pass

    def flush(self) -> None:  # of a response that was never read, when the connection is closed already
        pass


class ServerProcess:
    """`python -m app` in a process of its own, with its output."""

    def __init__(
        self, *flags: str, cwd: Path = CHECKOUT, first_bind: str = "127.0.0.1:0", **environment: str
    ) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", "--bind", first_bind, *flags],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "GEVENT_TRACK_GREENLET_TREE": "0", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+) ", self.first_line)
        if not found:
            self.process.kill()
            raise AssertionError(f"not ready: {self.first_line}{self.process.communicate()[0]}")
        self.address = ("127.0.0.1", int(found[1]))

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Its exit code and the rest of its output."""
        output = self.process.communicate(timeout=PATIENCE_S)[0]
        return self.process.returncode, output

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                for worker in self.workers():
                    worker.kill()
                self.process.kill()
                self.process.communicate()
                raise
        else:
            self.process.communicate(timeout=PATIENCE_S)


def run_app(*flags: str, cwd: Path = CHECKOUT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m app` to its end, which should be near."""
    return run(
        [sys.executable, "-m", "app", *flags],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        timeout=PATIENCE_S,
    )
