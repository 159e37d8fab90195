"""Each system call that the server makes on a connection fails once, with each errno that it may have.

Afterwards the next client is served, with as many connections, descriptors and greenlets as before.
"""

from __future__ import annotations

import _socket
import errno
import io
import os
import types
from collections.abc import Callable, Iterator
from errno import errorcode
from pathlib import Path
from typing import Any

import gevent
import pytest

from parked.server import accepting, parking, stream
from parked.server.server import KeepAliveWSGIServer
from tests.support import GET, Client, eventually, serving

LOST = (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)
SHORT = (errno.ENOMEM, errno.ENOBUFS)
CALLS = {
    "accept": (
        *SHORT,
        errno.EMFILE,
        errno.ENFILE,
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.EAGAIN,
    ),
    "socket": (*SHORT, errno.ENOTSOCK, errno.EBADF),
    "setblocking": (errno.EBADF, errno.ENOTTY),
    "register": (errno.ENOSPC, errno.ENOMEM, errno.EEXIST, errno.EPERM, errno.EBADF),
    "unregister": (errno.EINVAL, errno.EBADF),  # ENOENT: it is somebody else's by now, see test_parking
    "recv": (*LOST, *SHORT, errno.EAGAIN, errno.EBADF),
    "send": (*LOST, *SHORT, errno.EAGAIN, errno.EACCES, errno.EPERM, errno.EBADF),
    "sendfile": (*LOST, *SHORT, errno.EAGAIN, errno.EIO, errno.EINVAL, errno.EOVERFLOW, errno.EBADF),
    "shutdown": (*SHORT, errno.ENOTCONN, errno.EBADF),
    "close": (errno.EIO, errno.EINTR, errno.ECONNRESET, errno.ENOSPC, errno.EDQUOT),
}
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
#: What a client does, and so where the call is made.
CLIENTS: dict[str, bytes] = {
    "asks": GET,
    "asks and closes": GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    "asks nonsense": b"nonsense\r\n\r\n",
    "begins to ask": GET[:9],
    "uploads": POST % 3 + b"abc",
    "uploads in part": POST % 3 + b"a",
    "is refused with an upload": b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"
    + bytes(99),
    "asks for a file": GET.replace(b"/ ", b"/file "),
}
#: Which of them make which call in a way of their own.
PAIRS = [
    (call, doing)
    for call, doings in {
        "accept": ("asks",),
        "socket": ("asks",),
        "setblocking": ("asks",),
        "register": ("asks",),
        "unregister": ("asks", "asks nonsense"),
        "recv": ("asks", "uploads in part", "is refused with an upload"),
        "send": ("asks", "asks nonsense", "begins to ask", "uploads", "asks for a file"),
        "sendfile": ("asks for a file",),
        "shutdown": ("asks and closes", "asks nonsense", "is refused with an upload"),
        "close": ("asks", "asks and closes", "begins to ask", "is refused with an upload"),
    }.items()
    for doing in doings
]


class Failing:
    """Which call fails next, and with what."""

    call = ""
    number = 0

    def __init__(self) -> None:
        self.failed = 0

    def next(self, call: str, number: int) -> None:
        self.call, self.number, self.failed = call, number, 0

    def maybe(self, call: str) -> None:
        if call == self.call:
            self.call = ""
            self.failed += 1
            raise OSError(self.number, os.strerror(self.number))


failing = Failing()


class FailingSocket(_socket.socket):
    def __init__(self, *args: Any, **options: Any) -> None:
        failing.maybe("socket")
        super().__init__(*args, **options)

    def setblocking(self, flag: bool, /) -> None:
        failing.maybe("setblocking")
        super().setblocking(flag)

    def recv(self, *args: Any) -> bytes:
        failing.maybe("recv")
        return super().recv(*args)

    def send(self, *args: Any) -> int:
        failing.maybe("send")
        return super().send(*args)

    def shutdown(self, how: int, /) -> None:
        failing.maybe("shutdown")
        super().shutdown(how)

    def close(self) -> None:
        super().close()
        failing.maybe("close")


class Proxy:
    """An object of C's with some methods that fail when they are to."""

    def __init__(self, thing: Any, **methods: str) -> None:
        self._thing = thing
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._thing, name)
        if name not in self._methods:
            return method

        def call(*args: Any) -> Any:
            failing.maybe(self._methods[name])
            return method(*args)

        return call


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeepAliveWSGIServer]:
    large = tmp_path_factory.mktemp("files") / "large"
    large.write_bytes(bytes(300_000))

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == "/refuse":
            start_response("401 Unauthorized", [])
            return [b"no"]
        if environ["PATH_INFO"] == "/file":
            start_response("200 OK", [])
            return environ["wsgi.file_wrapper"](large.open("rb"))
        content = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [b"hello" + content]

    with pytest.MonkeyPatch.context() as patch:
        failing_socket = types.SimpleNamespace(**vars(_socket) | {"socket": FailingSocket})
        patch.setattr(accepting, "_socket", failing_socket)
        patch.setattr(accepting, "ACCEPT_RETRY_S", 0.01)
        patch.setattr(parking, "TICK_S", 0.02)
        sendfile = os.sendfile

        def maybe_sendfile(*args: Any) -> int:
            failing.maybe("sendfile")
            return sendfile(*args)

        patch.setattr(stream.os, "sendfile", maybe_sendfile)
        log = io.StringIO()
        with serving(application, error_log=log, header_timeout=0.15, body_timeout=0.15) as server:
            with Client(server) as client:
                assert client.ask().body == b"hello"
            server.socket = Proxy(server.socket, _accept="accept")
            server.parking._epoll = Proxy(server.parking._epoll, register="register", unregister="unregister")
            yield server


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(("call", "doing"), PAIRS)
def test_the_next_client_is_served_and_nothing_is_left(
    call: str, doing: str, server: KeepAliveWSGIServer
) -> None:
    hub = gevent.get_hub()
    hub.exception_stream = traces = io.StringIO()
    try:
        eventually(lambda: server.parking.count == 0)
        before = descriptors()
        made = 0
        for number in CALLS[call]:
            failing.next(call, number)
            with Client(server) as client:
                client.sock.settimeout(1)
                try:
                    client.send(CLIENTS[doing])
                    client.sock.recv(4096)  # an answer or the end; which, is the fault's to say
                except OSError:
                    pass
            eventually(lambda: server.parking.count == 0, errorcode[number])
            made += failing.failed
            failing.next("", 0)
            with Client(server) as client:
                assert client.ask().body == b"hello", errorcode[number]
            eventually(lambda: server.parking.count == 0, errorcode[number])
        assert descriptors() == before
        assert server.faults == 0
        assert server.active == 0
        assert "Traceback" not in traces.getvalue() or call == "sendfile", traces.getvalue()
        assert made == len(CALLS[call])
    finally:
        del hub.exception_stream
