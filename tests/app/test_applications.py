"""Frameworks that people use, behind our server: Falcon and Flask, which come with what we need anyway."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import falcon
import flask
import gevent

from app.wsgi import create_app
from tests.app.support import GET, Client, serving


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


def test_flask_streams_sends_files_and_takes_forms(tmp_path: Path) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(bytes(range(256)) * 4000)
    boundary = b"--b\r\nContent-Disposition: form-data; "
    content = (
        boundary
        + b'name="field"\r\n\r\nvalue\r\n'
        + boundary
        + b'name="upload"; filename="f"\r\n\r\n'
        + b"x" * 2_000_000
        + b"\r\n--b--\r\n"
    )
    form = (
        b"POST /form HTTP/1.1\r\nHost: here:1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: %d\r\n\r\n" % len(content)
    )
    with serving(flask_app(file)) as server, Client(server) as client:
        for _ in range(2):
            assert client.ask().body == b"index"
            stream = client.ask(GET.replace(b"/ ", b"/stream "))
            assert stream.body == b"".join(b"%d," % number for number in range(50))
            assert client.ask(GET.replace(b"/ ", b"/file ")).body == file.read_bytes()
            part = client.ask(b"GET /file HTTP/1.1\r\nHost: x\r\nRange: bytes=5-9\r\n\r\n")
            assert (part.status, part.body) == (206, b"\5\6\7\10\11")
            head = client.ask(b"HEAD /file HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (head.headers["Content-Length"], head.body) == (str(file.stat().st_size), b"")
            sender = gevent.spawn(client.send, form + content)
            expected = {"field": "value", "bytes": 2_000_000, "host": "here:1"}
            assert json.loads(client.answer().body) == expected
            sender.get()
            assert client.ask(GET.replace(b"/ ", b"/nowhere ")).status == 404
        assert server.accepted == 1
