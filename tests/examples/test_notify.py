"""The notification services of docs/examples, in processes of their own and with a real Redis."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loadtest.browser import browser, missing
from tests.support import GET, PATIENCE_S, Client, ServerProcess, eventually

CHECKOUT = Path(__file__).resolve().parents[2]
#: Seconds that a reload may take, which tries the new version first.
RELOAD_S = 60.0
FRAMEWORKS = ["falcon_app", "flask_app", "django_app"]
needs_redis = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="no Redis: apt-get install redis-server"
)


def service(framework: str, workers: int = 1, **environment: str) -> ServerProcess:
    flags = ("--app", f"docs.examples.notify.{framework}:application", "--workers", str(workers))
    return ServerProcess(*flags, **environment)


@contextlib.contextmanager
def redis_server(folder: Path, port: int = 0) -> Iterator[str]:
    """The URL of a Redis that keeps nothing on disk."""
    with socket.create_server(("127.0.0.1", port)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: _answers(port), "Redis")
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def publish(server: ServerProcess, text: str) -> None:
    with Client(server.address) as client:
        content = text.encode()
        request = b"POST /messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content)
        assert client.ask(request + content).status == 204


def listen(client: Client, last: int | None = None) -> None:
    """Ask for the stream, and wait for its beginning."""
    field = b"Last-Event-ID: %d\r\n\r\n" % last if last is not None else b"\r\n"
    client.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n" + field)
    while not client.file.readline().startswith(b"retry"):
        pass


def heard(client: Client, count: int) -> list[tuple[int, str]]:
    """Numbers and texts of the next messages."""
    messages, number = [], 0
    while len(messages) < count:
        line = client.file.readline()
        assert line, "the stream has ended"
        if line.startswith(b"id: "):
            number = int(line[4:])
        elif line.startswith(b"data: "):
            messages.append((number, json.loads(line[6:])))
    return messages


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_worker_tells_streams_and_polls(framework: str) -> None:
    with service(framework) as server, Client(server.address) as stream, Client(server.address) as poll:
        assert b"EventSource" in poll.ask(GET).body
        listen(stream)
        poll.send(GET.replace(b"/ ", b"/poll?last=0 "))
        time.sleep(0.1)
        publish(server, "first é")
        assert heard(stream, 1) == [(1, "first é")]
        assert json.loads(poll.answer().body) == [{"id": 1, "text": "first é"}]
        publish(server, "second")
        assert json.loads(poll.ask(GET.replace(b"/ ", b"/poll?last=1 ")).body) == [
            {"id": 2, "text": "second"}
        ]
        with Client(server.address) as again:
            listen(again, last=0)
            assert heard(again, 2) == [(1, "first é"), (2, "second")]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_number_that_no_message_has_is_no_error(framework: str) -> None:
    """Python makes no number of so many digits, and an error behind `defer` leaves the client waiting."""
    number = "9" * 5_000
    with service(framework) as server, Client(server.address) as stream, Client(server.address) as poll:
        listen(stream, int("9" * 4_000))  # as many as it makes
        stream.file.readline()
        with Client(server.address) as other:
            other.send(f"GET /stream HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {number}\r\n\r\n".encode())
            assert other.file.readline() == b"HTTP/1.1 200 OK\r\n"
        poll.send(GET.replace(b"/ ", b"/poll?last=%b " % number[:4_500].encode()))
        time.sleep(0.1)
        publish(server, "told")
        assert heard(stream, 1) == [(1, "told")]
        assert json.loads(poll.answer().body) == [{"id": 1, "text": "told"}]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_single_worker_needs_no_package_redis(framework: str) -> None:
    """In an environment that has none: its import fails as if it were not installed."""
    code = f"import sys; sys.modules['redis'] = None; import docs.examples.notify.{framework}"
    environment = {name: text for name, text in os.environ.items() if name != "REDIS_URL"}
    subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env=environment, check=True, timeout=PATIENCE_S
    )


@needs_redis
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_many_workers_tell_the_same_with_redis_between_them(framework: str, tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as url,
        service(framework, workers=3, REDIS_URL=url) as server,
        contextlib.ExitStack() as stack,
    ):
        streams = [stack.enter_context(Client(server.address)) for _ in range(12)]
        for stream in streams:
            listen(stream)
        for number in range(3):
            publish(server, f"message {number}")
        expected = [(number + 1, f"message {number}") for number in range(3)]
        for stream in streams:
            assert heard(stream, 3) == expected


@needs_redis
def test_messages_are_told_when_redis_has_forgotten_its_numbers(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with redis_server(tmp_path) as url:
            server = stack.enter_context(service("falcon_app", workers=2, REDIS_URL=url))
            streams = [stack.enter_context(Client(server.address)) for _ in range(8)]
            for stream in streams:
                listen(stream)
            for text in ("one", "two"):
                publish(server, text)
            for stream in streams:
                assert heard(stream, 2) == [(1, "one"), (2, "two")]
        port = int(url.rpartition(":")[2])
        with redis_server(tmp_path, port):
            eventually(lambda: _listeners(port) == 2, "both workers")
            _redis(port, "PUBLISH", "notify", "somebody else's")
            publish(server, "three")
            for stream in streams:
                assert heard(stream, 1) == [(3, "three")]


def _redis(port: int, *words: str) -> str:
    command = ["redis-cli", "-p", str(port), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout


def _listeners(port: int) -> int:
    return int(_redis(port, "PUBSUB", "NUMSUB", "notify").split()[1])


@needs_redis
def test_over_a_reload_and_a_killed_worker_every_message_arrives_once(tmp_path: Path) -> None:
    """Clients come back with Last-Event-ID, as an EventSource does."""
    with redis_server(tmp_path) as url, service("falcon_app", workers=2, REDIS_URL=url) as server:
        last = dict.fromkeys(range(8), 0)
        clients: dict[int, Client] = {}

        def connect(number: int) -> None:
            def attempt() -> bool:
                client = Client(server.address)
                try:
                    listen(client, last[number])
                except (AssertionError, OSError):
                    client.__exit__()
                    return False
                clients[number] = client
                return True

            eventually(attempt)

        def follow(upto: int) -> None:
            for number in last:
                while last[number] < upto:
                    try:
                        following, _ = heard(clients[number], 1)[0]
                    except (AssertionError, OSError):  # ended in order, or cut off
                        clients[number].__exit__()
                        connect(number)
                        continue
                    assert following == last[number] + 1
                    last[number] = following

        for number in last:
            connect(number)
        publish(server, "before")
        follow(1)
        published = 1
        old = {worker.pid for worker in server.workers()}
        server.signal(signal.SIGHUP)
        deadline = time.monotonic() + RELOAD_S
        while not old.isdisjoint(worker.pid for worker in server.workers()) or published < 10:
            assert time.monotonic() < deadline, "no reload"
            publish(server, "meanwhile")
            published += 1
            follow(published)
        server.workers()[0].kill()
        for _ in range(10):
            eventually(lambda: _published(server, "afterwards"))
            published += 1
        follow(published)
        for client in clients.values():
            client.__exit__()


def _published(server: ServerProcess, text: str) -> bool:
    try:
        publish(server, text)
    except (OSError, ValueError):
        return False  # to the worker that is dead
    return True


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_page_listens_in_a_browser_and_comes_back_after_a_reload(tmp_path: Path) -> None:
    with service("falcon_app") as server, browser(tmp_path) as window:
        window.visit(f"http://127.0.0.1:{server.address[1]}/")

        def shown() -> list[str]:
            script = "return [...document.querySelectorAll('#messages li')].map(item => item.textContent)"
            texts: list[str] = window.run(script)
            return texts

        state = "return document.getElementById('state').textContent"
        eventually(lambda: window.run(state) == "listening")
        publish(server, "<b>hello</b>")
        eventually(lambda: shown() == ["<b>hello</b>"])
        before = {worker.pid for worker in server.workers()}
        server.signal(signal.SIGHUP)
        eventually(lambda: before.isdisjoint(worker.pid for worker in server.workers()), "a reload", RELOAD_S)
        eventually(lambda: window.run(state) == "listening")
        publish(server, "again")
        eventually(lambda: shown() == ["again", "<b>hello</b>"])
        assert window.console() == []
