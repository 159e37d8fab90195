"""Clients in processes of their own, one epoll loop each: those that behave and those that drip.

A client process sends what it has seen through a pipe when its time is up.
"""

from __future__ import annotations

import errno
import multiprocessing
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

#: Seconds behind the end in which answers still count; a request without one by then has failed.
PATIENCE_S = 10.0


class Process(Generic[Result]):
    """Run *work* in a process of its own; `result` waits for what it returns."""

    def __init__(self, work: Callable[[], Result]) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=lambda: theirs.send(work()), daemon=True)
        self._process.start()
        theirs.close()

    def result(self) -> Result:
        result: Result = self._ours.recv()
        self._process.join()
        return result


@dataclass
class Seen:
    """What steady clients have seen."""

    connected: int = 0
    answered: int = 0
    reconnects: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    #: Kind of failure, worker that had answered before on that connection (0: none), moment of its request.
    failures: list[tuple[str, int, float]] = field(default_factory=list)
    #: Answers a worker, if the application tells its process id.
    workers: Counter[int] = field(default_factory=Counter)

    @property
    def kinds(self) -> str:
        return ", ".join(f"{kind} {n}" for kind, n in Counter(kind for kind, *_ in self.failures).items())


class _Client:
    __slots__ = ("data", "due", "sent", "sock", "worker")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.data = b""
        self.due = 0.0  # of the request in flight; 0 if there is none
        self.sent = 0.0
        self.worker = 0


class SteadyClients:
    """*count* keep-alive connections that send *rate* requests a second together, evenly, for *seconds*.

    Latency runs from the moment at which a request was due. A connection that the server closes between two
    requests, or whose answer says `Connection: close`, is opened again and is no failure.
    """

    def __init__(
        self, address: tuple[str, int], count: int, rate: float, seconds: float, path: str = "/"
    ) -> None:
        self._address = address
        self._rate = rate
        self._seconds = seconds
        self._request = f"GET {path} HTTP/1.1\r\nHost: drill\r\n\r\n".encode()
        self._clients = [_Client() for _ in range(count)]
        self._by_fd: dict[int, _Client] = {}
        self._epoll = select.epoll()
        self.seen = Seen()

    def run(self) -> Seen:
        for client in self._clients:
            self._connect(client)
        self.seen.connected = len(self._by_fd)
        began = time.monotonic()
        number = 0
        busy = 0.0
        while True:
            now = time.monotonic()
            if now < began + self._seconds:
                while (due := began + number / self._rate) <= now:
                    self._send(self._clients[number % len(self._clients)], due)
                    number += 1
                wait = max(0.0, due - now)
            else:
                busy = busy or now
                if now > busy + PATIENCE_S or not any(client.due for client in self._clients):
                    break
                wait = 0.1
            for fd, _ in self._epoll.poll(wait, 1000):
                if client := self._by_fd.get(fd):
                    self._receive(client)
        for client in self._clients:
            if client.due:
                self._fail(client, "no answer")
            self._close(client)
        return self.seen

    def _connect(self, client: _Client) -> None:
        try:
            client.sock = socket.create_connection(self._address, timeout=PATIENCE_S)
        except OSError as error:
            self.seen.failures.append((f"connect {_name(error)}", 0, time.monotonic()))
            return
        client.sock.setblocking(False)
        client.worker = 0
        client.data = b""
        self._by_fd[client.sock.fileno()] = client
        self._epoll.register(client.sock.fileno(), select.EPOLLIN)

    def _close(self, client: _Client) -> None:
        if client.sock is not None:
            self._by_fd.pop(client.sock.fileno(), None)
            client.sock.close()
            client.sock = None

    def _fail(self, client: _Client, kind: str) -> None:
        self.seen.failures.append((kind, client.worker, client.sent))
        client.due = 0.0
        self._close(client)

    def _send(self, client: _Client, due: float) -> None:
        if client.due:  # still busy with the last one, which will show in its latency
            return
        if client.sock is None:
            self.seen.reconnects += 1
            self._connect(client)
        if client.sock is None:
            return
        client.due, client.sent = due, time.monotonic()
        try:
            client.sock.send(self._request)
        except OSError as error:
            self._fail(client, f"send {_name(error)}")

    def _receive(self, client: _Client) -> None:
        assert client.sock is not None
        try:
            data = client.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            if client.due:
                self._fail(client, f"receive {_name(error)}")
            else:
                self._close(client)
            return
        if not data:
            if client.due:
                self._fail(client, "closed amid a request")
            else:
                self._close(client)
            return
        client.data += data
        head, end, body = client.data.partition(b"\r\n\r\n")
        if not end:
            return
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if length and len(body) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            self._fail(client, f"answer {head[9:12].decode('latin-1')}")
            return
        self.seen.answered += 1
        self.seen.latencies_ms.append((time.monotonic() - client.due) * 1000)
        if body.isdigit():
            client.worker = int(body)
            self.seen.workers[client.worker] += 1
        client.data, client.due = b"", 0.0
        if b"Connection: close" in head:
            self._close(client)


@dataclass
class Dripped:
    """What dripping clients have seen: how each ended, and how many seconds behind its first byte."""

    opened: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    ages_s: list[float] = field(default_factory=list)


def drip(
    address: tuple[str, int], count: int, opened_per_s: float, interval_s: float, most_s: float
) -> Dripped:
    """*count* connections, each sending a byte of a header every *interval_s* until it is closed."""
    head = b"GET / HTTP/1.1\r\nHost: drill\r\nX-Drip: "
    seen = Dripped()
    epoll = select.epoll()
    clients: dict[int, tuple[socket.socket, float]] = {}
    answered: set[int] = set()
    opening = count
    began = time.monotonic()
    deadline = began + most_s
    next_round: dict[int, float] = {}
    queue: list[int] = []

    def end(fd: int, how: str) -> None:
        sock, born = clients.pop(fd)
        next_round.pop(fd)
        answered.discard(fd)
        seen.ends[how] += 1
        seen.ages_s.append(time.monotonic() - born)
        sock.close()

    while (opening or clients) and time.monotonic() < deadline:
        due = int((time.monotonic() - began) * opened_per_s) + 1 - (count - opening)
        for _ in range(min(opening, due)):
            opening -= 1
            try:
                sock = socket.create_connection(address, timeout=PATIENCE_S)
                sock.setblocking(False)
                sock.send(head)
            except OSError as error:
                seen.ends[f"connect {_name(error)}"] += 1
                continue
            seen.opened += 1
            now = time.monotonic()
            clients[sock.fileno()] = (sock, now)
            next_round[sock.fileno()] = now + interval_s
            queue.append(sock.fileno())
            epoll.register(sock.fileno(), select.EPOLLIN)
        now = time.monotonic()
        due = 0
        for fd in queue:  # all wait equally long, so that the queue is in the order of time
            if next_round.get(fd, 0.0) > now:
                break
            due += 1
            if fd in clients and fd not in answered:
                next_round[fd] = now + interval_s
                queue.append(fd)
                try:
                    clients[fd][0].send(b"x")
                except OSError:
                    pass  # its end is read below
        del queue[:due]
        for fd, _ in epoll.poll(0.01, 1000):
            if fd not in clients:
                continue
            try:
                data = clients[fd][0].recv(4096)
            except OSError as error:
                end(fd, "408" if fd in answered else _name(error))
                continue
            if data.startswith(b"HTTP/1.1 408 "):
                answered.add(fd)
            elif not data:
                end(fd, "408" if fd in answered else "closed without an answer")
    for fd in list(clients):
        end(fd, "never closed")
    return seen


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def ask(sock: Any, request: bytes = b"GET / HTTP/1.1\r\nHost: drill\r\n\r\n") -> bytes:
    """One request on a blocking socket; the head of its answer, or what came before the end."""
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        received = sock.recv(65536)
        if not received:
            return data
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        body += sock.recv(65536)
    return head
