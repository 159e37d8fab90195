"""Files as responses, by `wsgi.file_wrapper`."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gevent
import pytest
from gevent.fileobject import FileObject

from parked.server import stream
from parked.server.files import FileWrapper
from tests.support import GET, Client, eventually, serving

SIZES = [0, 1, 65_536, 65_537, 5_000_000]


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


class Files:
    """An application that answers with what *open* opens, and remembers what it opened."""

    def __init__(
        self,
        opens: Callable[[], Any],
        headers: tuple[tuple[str, str], ...] = (),
        status: str = "200 OK",
        block_size: int = 4096,
    ) -> None:
        self.opens = opens
        self.headers = headers
        self.status = status
        self.block_size = block_size
        self.files: list[Any] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        file = self.opens()
        self.files.append(file)
        start_response(self.status, list(self.headers))
        return environ["wsgi.file_wrapper"](file, self.block_size)

    def closed(self) -> bool:
        return all(file.closed for file in self.files)


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_sent_whole_with_its_length_and_closed(path: Path, size: int) -> None:
    path.write_bytes(content(size))
    app = Files(lambda: path.open("rb"))
    with serving(app) as server, Client(server) as client:
        for _ in range(2):
            answer = client.ask()
            assert answer.body == content(size)
            if size:
                assert answer.headers["Content-Length"] == str(size)
        head = client.ask(GET.replace(b"GET", b"HEAD"))
        assert (head.body, head.headers["Content-Length"]) == (b"", str(size) if size else None)
        assert server.accepted == 1
        assert app.closed()
        assert len(app.files) == 3


@pytest.mark.parametrize("size", SIZES[1:])
def test_http_1_0_keeps_its_connection_behind_a_file(path: Path, size: int) -> None:
    path.write_bytes(content(size))
    with serving(Files(lambda: path.open("rb"))) as server, Client(server) as client:
        for _ in range(2):
            answer = client.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert answer.body == content(size)
        assert server.accepted == 1


@pytest.mark.parametrize("count", [10, 1_000_000])
def test_what_is_sent_begins_at_the_position_and_ends_with_the_promised_length(
    path: Path, count: int
) -> None:
    """As an application that answers a Range request does."""
    path.write_bytes(content(3_000_000))

    def opens() -> Any:
        file = path.open("rb")
        file.read(100)  # the descriptor itself is further on by then: files are read in blocks
        return file

    ranged = Files(opens, (("Content-Length", str(count)),), "206 Partial Content")
    with serving(ranged) as server, Client(server) as client:
        for _ in range(2):
            answer = client.ask()
            assert (answer.status, answer.body) == (206, content(3_000_000)[100 : 100 + count])
        assert client.ask(GET.replace(b"GET", b"HEAD")).headers["Content-Length"] == str(count)


@pytest.mark.parametrize("left", [0, 1000])
def test_a_file_that_is_shorter_than_promised_ends_the_connection(path: Path, left: int) -> None:
    path.write_bytes(content(200_000 + left))
    promising = Files(lambda: path.open("rb"), (("Content-Length", "300000"),))
    with serving(promising, error_log=None) as server, Client(server) as client:
        client.send(GET + GET)
        assert client.rest().endswith(b"\r\n\r\n" + content(200_000 + left))
        assert promising.closed()


def test_a_file_behind_content_that_was_written_is_a_part_of_the_same_response(path: Path) -> None:
    path.write_bytes(content(200_000))

    def writes(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [])(b"first ")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    with serving(writes) as server, Client(server) as client:
        for _ in range(2):
            assert client.ask().body == b"first " + content(200_000)


def test_files_without_a_known_length_are_chunked(path: Path) -> None:
    with gzip.open(path, "wb") as file:
        file.write(content(300_000))
    not_seekable = mock.Mock(spec=["read"], read=io.BytesIO(content(300_000)).read)
    zipped: Callable[[], Any] = lambda: gzip.open(path, "rb")  # noqa: SIM115, E731 - the server closes it
    for opens in (zipped, lambda: io.BytesIO(content(300_000)), lambda: not_seekable):
        app = Files(opens)
        with serving(app) as server, Client(server) as client:
            answer = client.ask()
            assert answer.headers["Transfer-Encoding"] == "chunked"
            assert answer.body == content(300_000)
            assert opens() is not_seekable or app.closed()


def test_what_comes_bit_by_bit_is_passed_on_at_once() -> None:
    reading, writing = os.pipe()
    app = Files(lambda: FileObject(reading, "rb", 0))
    with serving(app) as server, Client(server) as client:
        os.write(writing, b"first")
        client.send(GET)
        while client.file.readline() != b"\r\n":
            pass
        assert client.file.read(10) == b"5\r\nfirst\r\n"
        os.close(writing)
        assert client.file.read(5) == b"0\r\n\r\n"
    assert app.closed()


def test_files_of_the_kernel_whose_size_is_not_what_they_hold_are_sent_whole() -> None:
    for name in ("/proc/self/limits", "/sys/kernel/mm/transparent_hugepage/enabled"):
        if Path(name).exists():
            with serving(Files(lambda name=name: open(name, "rb"))) as server, Client(server) as client:
                assert client.ask().body == Path(name).read_bytes()
                assert client.ask().status == 200


def test_a_file_system_without_sendfile_is_read_instead(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(content(1_000_000))
    monkeypatch.setattr(stream.os, "sendfile", mock.Mock(side_effect=OSError(errno.EINVAL, "no")))
    with serving(Files(lambda: path.open("rb"))) as server, Client(server) as client:
        assert client.ask().body == content(1_000_000)


def test_a_client_that_does_not_read_its_file_is_closed_and_so_is_the_file(path: Path) -> None:
    path.write_bytes(content(20_000_000))
    app = Files(lambda: path.open("rb"))
    with serving(app, write_timeout=0.3) as server, Client(server) as client:
        client.send(GET)
        eventually(lambda: server.timed_out_writes == 1)
        eventually(lambda: server.parking.count == 0)
        assert app.closed()


def test_a_client_that_leaves_amid_its_file_leaves_it_closed(path: Path) -> None:
    path.write_bytes(content(20_000_000))
    app = Files(lambda: path.open("rb"))
    with serving(app) as server:
        with Client(server) as client:
            client.send(GET)
            client.sock.recv(1000)
        eventually(lambda: server.parking.count == 0)
        assert app.files
        assert app.closed()


def test_a_large_file_lets_others_have_their_turn(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300_000_000)
    order: list[str] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/":
            order.append("file")
            return environ["wsgi.file_wrapper"](path.open("rb"))
        order.append("other")
        return [b"ok"]

    def download(client: Client) -> None:
        left = 300_000_000
        client.send(GET)
        while left > 0:
            left -= len(client.sock.recv(1 << 20))
        order.append("end")

    with serving(app) as server, Client(server) as client, Client(server) as other:
        reader = gevent.spawn(download, client)
        eventually(lambda: order)
        assert other.ask(GET.replace(b"/ ", b"/other ")).body == b"ok"
        reader.get()
    assert order == ["file", "other", "end"]


def test_middleware_may_read_it_like_any_other_iterable(path: Path) -> None:
    path.write_bytes(content(200_000))
    files = Files(lambda: path.open("rb"))

    def upper(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        with contextlib.closing(files(environ, start_response)) as wrapper:
            assert type(wrapper) is FileWrapper
            return [block.swapcase() for block in wrapper]

    with serving(upper) as server, Client(server) as client:
        assert client.ask().body == content(200_000).swapcase()


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_file_where_there_can_be_none_is_an_error_before_the_first_byte(path: Path, status: str) -> None:
    path.write_bytes(b"x")
    app = Files(lambda: path.open("rb"), status=status)
    with serving(app) as server, Client(server) as client:
        with mock.patch.object(gevent.get_hub(), "exception_stream", io.StringIO()):
            assert client.ask().status == 500
        assert app.closed()
