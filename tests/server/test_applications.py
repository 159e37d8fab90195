"""Applications of the kinds that people have, behind our server: frameworks, the validator, large uploads."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import django
import falcon
import flask
import gevent
import gevent.event
import psutil
import pytest
from django.conf import settings as django_settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path as django_path

from app.wsgi import create_app
from parked.server import lingering
from tests.support import GET, Client, ServerProcess, eventually, serving

MIB = 1 << 20

BOUNDARY = b"--b\r\nContent-Disposition: form-data; "
FORM = (
    BOUNDARY
    + b'name="field"\r\n\r\nvalue\r\n'
    + BOUNDARY
    + b'name="upload"; filename="f"\r\n\r\n'
    + b"x" * 3_000_000
    + b"\r\n--b--\r\n"
)


def form_request() -> bytes:
    return (
        b"POST /form HTTP/1.1\r\nHost: here:1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: %d\r\n\r\n" % len(FORM)
    ) + FORM


def flask_app(file: Path) -> flask.Flask:
    app = flask.Flask("tests", root_path=str(file.parent))

    @app.get("/")
    def index() -> str:
        return "index"

    @app.get("/stream")
    def stream() -> flask.Response:
        def pieces() -> Iterator[bytes]:
            for number in range(50):
                gevent.sleep(0)
                yield b"%d," % number

        return flask.Response(pieces(), mimetype="text/plain")

    @app.get("/file")
    def download() -> flask.Response:
        return flask.send_file(file, conditional=True)

    @app.get("/fail")
    def fail() -> str:
        raise RuntimeError("on purpose")

    @app.post("/form")
    def form() -> dict[str, object]:
        upload = flask.request.files["upload"].read()
        return {"field": flask.request.form["field"], "bytes": len(upload), "host": flask.request.host}

    return app


def test_falcon_serves_texts_of_the_length_asked_for() -> None:
    with serving(create_app()) as server, Client(server) as client:
        for length in (1, 1024, 10240):
            answer = client.ask(GET.replace(b"/ ", b"/?length=%d " % length))
            assert (answer.status, len(answer.body)) == (200, length)
        assert client.ask(GET.replace(b"/ ", b"/?length=x ")).status == 400
        assert client.ask(GET.replace(b"/ ", b"/health ")).status == 200
        assert server.accepted == 1


def test_falcon_streams_both_ways() -> None:
    class Echo:
        def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
            response.set_stream(io.BytesIO(request.bounded_stream.read()), request.content_length)

    app = falcon.App()
    app.add_route("/", Echo())
    content = bytes(range(256)) * 5000
    with serving(app) as server, Client(server) as client:
        request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content
        sender = gevent.spawn(client.send, request)
        assert client.answer().body == content
        sender.get()
        empty = client.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert (empty.status, empty.body) == (200, b"")


def numbers() -> Iterator[bytes]:
    for number in range(50):
        gevent.sleep(0)
        yield b"%d," % number


def django_app(file: Path) -> Any:
    def index(request: HttpRequest) -> HttpResponse:
        return HttpResponse(b"index")

    def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(numbers(), content_type="text/plain")

    def download(request: HttpRequest) -> FileResponse:
        return FileResponse(file.open("rb"), filename="f")  # closed by the server, at the end

    def form(request: HttpRequest) -> JsonResponse:
        size = sum(map(len, request.FILES["upload"].chunks()))
        return JsonResponse({"field": request.POST["field"], "bytes": size, "host": request.get_host()})

    def fail(request: HttpRequest) -> HttpResponse:
        raise RuntimeError("on purpose")

    class Urls:
        urlpatterns = [  # noqa: RUF012 - the form that Django reads
            django_path("", index),
            django_path("stream", stream),
            django_path("file", download),
            django_path("form", form),
            django_path("fail", fail),
        ]

    if not django_settings.configured:
        # Uploads beyond FILE_UPLOAD_MAX_MEMORY_SIZE, 2.5 MB, go to a temporary file.
        django_settings.configure(ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None, SECRET_KEY="tests")
        django.setup()
    django_settings.ROOT_URLCONF = Urls
    return get_wsgi_application()


@pytest.mark.parametrize("make", [flask_app, django_app])
def test_frameworks_stream_send_files_and_take_forms(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(bytes(range(256)) * 4000)
    with serving(make(file)) as server, Client(server) as client:
        for _ in range(2):
            assert client.ask().body == b"index"
            assert client.ask(GET.replace(b"GET", b"HEAD")).body == b""
            assert client.ask(GET.replace(b"/ ", b"/stream ")).body == b"".join(numbers())
            assert client.ask(GET.replace(b"/ ", b"/file ")).body == file.read_bytes()
            head = client.ask(b"HEAD /file HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (head.headers["Content-Length"], head.body) == (str(file.stat().st_size), b"")
            sender = gevent.spawn(client.send, form_request())
            expected = {"field": "value", "bytes": 3_000_000, "host": "here:1"}
            assert json.loads(client.answer().body) == expected
            sender.get()
            assert client.ask(GET.replace(b"/ ", b"/nowhere ")).status == 404
            assert client.ask(GET.replace(b"/ ", b"/fail ")).status == 500
        assert server.accepted == 1


def test_flask_answers_ranges_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(bytes(range(256)) * 4000)
    with serving(flask_app(file)) as server, Client(server) as client:
        for _ in range(2):
            part = client.ask(b"GET /file HTTP/1.1\r\nHost: x\r\nRange: bytes=5-9\r\n\r\n")
            assert (part.status, part.body) == (206, b"\5\6\7\10\11")
            assert part.headers["Content-Range"] == f"bytes 5-9/{file.stat().st_size}"


def validated(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """Reads and answers in the ways that the validator may have something to say to."""
    body = environ["wsgi.input"]
    lines = [body.readline(), *body.readlines(5), *iter(lambda: body.read(7), b"")]
    content = b"".join(lines)
    environ["wsgi.errors"].write("")
    environ["wsgi.errors"].flush()
    if environ["PATH_INFO"] == "/empty":
        start_response("204 No Content", [])
        return []
    write = start_response("200 OK", [("Content-Type", "text/plain"), ("X-Bytes", str(len(content)))])
    if environ["PATH_INFO"] == "/write":
        write(content)
        return []
    if environ["PATH_INFO"] == "/stream":
        return iter([content[:3], b"", content[3:]])
    return [content]


def test_the_validator_finds_nothing_whatever_the_request() -> None:
    content = b"first line\nsecond line\nand the rest"
    post = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
    with serving(validator(validated)) as server, Client(server) as client:
        for path in (b"/list", b"/write", b"/stream", b"/list?a=b&c", b"/%E4?%E4", b"http://other/stream"):
            assert client.ask(GET.replace(b"/ ", path + b" ", 1)).body == b""
            head = client.ask(b"HEAD %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            assert (head.status, head.body) == (200, b"")
            length = b"Content-Length: %d\r\n\r\n" % len(content)
            assert client.ask(post % path + length + content).body == content
            chunks = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in content)
            coded = b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nA: b\r\n\r\n"
            assert client.ask(post % path + coded).body == content
        assert client.ask(GET.replace(b"/ ", b"/empty ")).status == 204
        assert client.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").status == 200
        assert server.accepted == 1


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_large_upload_arrives_in_bounded_memory_and_keeps_the_connection(coding: str) -> None:
    block = bytes(range(256)) * 4096
    count = 128
    expected = hashlib.md5(usedforsecurity=False)
    with ServerProcess("--app", "tests.apps:digest", "--workers", "1") as server:
        (worker,) = server.workers()
        before = worker.memory_info().rss
        with Client(server.address) as client:
            if coding == "length":
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (count * MIB))
            else:
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            most = 0
            for number in range(count):
                expected.update(block)
                if coding == "length":
                    client.send(block)
                else:
                    client.send(b"%x\r\n" % len(block) + block + b"\r\n")
                if number % 8 == 7:
                    most = max(most, psutil.Process(worker.pid).memory_info().rss)
            if coding == "chunked":
                client.send(b"0\r\n\r\n")
            assert client.answer().body == expected.hexdigest().encode()
            assert client.ask().body == hashlib.md5(b"", usedforsecurity=False).hexdigest().encode()
        assert most - before < 16 * MIB


@pytest.mark.parametrize("coding", [b"Content-Length: 104857600", b"Transfer-Encoding: chunked"])
def test_a_large_upload_that_nobody_reads_ends_the_connection_and_is_no_request(
    coding: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent is full of requests; the application must never see one of them."""
    monkeypatch.setattr(lingering, "LINGER_S", 0.5)
    targets: list[str] = []

    def careless(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        targets.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b"fine"]

    smuggled = GET.replace(b"/ ", b"/smuggled ") * 2000
    with serving(careless) as server, Client(server) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % coding)
        if b"chunked" in coding:
            smuggled = b"%x\r\n%b\r\n" % (len(smuggled), smuggled)

        def upload() -> None:
            try:
                for _ in range(1000):
                    client.send(smuggled)
            except OSError:
                pass  # that is the point

        sender = gevent.spawn(upload)
        assert client.answer().body == b"fine"
        sender.get()
        eventually(lambda: server.parking.count == 0)
    assert targets == ["/"]


def test_an_upload_lets_others_have_their_turn() -> None:
    order: list[str] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        if environ["REQUEST_METHOD"] == "POST":
            order.append("upload")
            while environ["wsgi.input"].read(MIB):
                pass
            order.append("end")
        else:
            order.append("other")
        return [b"ok"]

    with tempfile.TemporaryFile() as file:
        file.truncate(200 * MIB)
        with serving(app) as server, Client(server) as client, Client(server) as other:
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (200 * MIB))
            sender = gevent.spawn(client.sock.sendfile, file)
            eventually(lambda: order)
            assert other.ask().body == b"ok"
            assert client.answer().body == b"ok"
            sender.get()
    assert order == ["upload", "other", "end"]


def test_sleeping_and_raising_applications_do_not_disturb_their_neighbours() -> None:
    awake = gevent.event.Event()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"]
        if path == "/sleep":
            awake.wait()
        elif path == "/early":
            raise RuntimeError("before the first byte")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return late() if path == "/late" else [path.encode()]

    def late() -> Iterator[bytes]:
        yield b"some"
        raise RuntimeError("after the first byte")

    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, serving(app) as server:
        patch.setattr(gevent.get_hub(), "exception_stream", errors)
        sleepers = [Client(server) for _ in range(50)]
        for client in sleepers:
            client.send(GET.replace(b"/ ", b"/sleep "))
        eventually(lambda: server.active == 50)
        for _ in range(5):
            with Client(server) as early, Client(server) as late_client, Client(server) as quick:
                answer = early.ask(GET.replace(b"/ ", b"/early "))
                assert (answer.status, answer.headers["Connection"]) == (500, "close")
                assert b"RuntimeError" not in answer.body
                late_client.send(GET.replace(b"/ ", b"/late ") + GET)
                # Not a whole response: no last chunk, and nothing else behind it.
                assert late_client.rest().endswith(b"\r\n\r\n4\r\nsome\r\n")
                assert quick.ask().body == b"/"
        assert server.active == 50
        awake.set()
        for client in sleepers:
            assert client.answer().body == b"/sleep"
            assert client.ask().body == b"/"
            client.__exit__()
    assert errors.getvalue().count("RuntimeError: before") == 5
    assert errors.getvalue().count("RuntimeError: after") == 5
