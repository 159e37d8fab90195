"""What a client can put into a line of a log: nothing that ends, forges or hides one."""

from __future__ import annotations

import io
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from parked.server.reports import LINES
from parked.server.server import KeepAliveWSGIServer
from tests.support import Client, eventually, hello, serving

#: pywsgi's form: one quoted part, and no quote, backslash or control character in it that is not escaped.
LINE = re.compile(r'\S+ - - \[[^\]"]+\] "(?:[^"\\\x00-\x1f\x7f-\xff]|\\x[0-9a-f]{2})*" \d{3} \S+ \S+\n')
EVIL = [
    b'GET /"\\ HTTP/1.1\r\nHost: test\r\n\r\n',
    b'GET /" 200 5 0.1 "http://x" HTTP/1.1\r\nHost: test\r\n\r\n',
    b"GET /\x7f\x7f HTTP/1.1\r\nHost: test\r\n\r\n",
    b"GET /\x1b[2J\x07 HTTP/1.1\r\nHost: test\r\n\r\n",
    b"GET /\n127.0.0.1 - - forged HTTP/1.1\r\nHost: test\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\xff\x80\x9b\r\n\r\n",
    b'GET /"\xe2\x80\xae HTTP/1.1\r\n\r\n',
    b"GET / HTTP/9.9\x85\r\n\r\n",
    b"GET /half",
]


@pytest.mark.parametrize("logs_json", [False, True])
@pytest.mark.parametrize("request_", EVIL, ids=range(len(EVIL)))
def test_each_request_is_one_line_that_nothing_breaks_out_of(request_: bytes, logs_json: bool) -> None:
    log = io.StringIO()
    options = {"log": log, "error_log": io.StringIO(), "logs_json": logs_json, "header_timeout": 0.05}
    with serving(hello, **options) as server, Client(server) as client:
        client.send(request_)
        client.answer()
        eventually(log.getvalue)
    line = log.getvalue()
    if logs_json:
        assert line.count("\n") == 1
        assert line.isascii()
        assert line[:-1].isprintable()
        assert json.loads(line)["status"] in (200, 400, 408, 505)
    else:
        assert LINE.fullmatch(line), line


def test_the_path_of_a_local_client_is_no_way_in_either(tmp_path: Path) -> None:
    log = io.StringIO()
    with gevent.socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "server"))
        listener.listen()
        server = KeepAliveWSGIServer(listener, hello, log=log, error_log=io.StringIO())
        server.start()
        with gevent.socket.socket(socket.AF_UNIX) as client:
            client.bind(str(tmp_path / 'a"\nforged'))
            client.connect(str(tmp_path / "server"))
            client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
            eventually(log.getvalue)
        server.stop()
    assert LINE.fullmatch(log.getvalue()), log.getvalue()


MALFORMED = b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"


@pytest.mark.parametrize("reads", [True, False])
def test_malformed_content_costs_a_line_now_and_then(reads: bool) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        return hello(environ, start_response) if not reads else [environ["wsgi.input"].read()]

    errors = io.StringIO()
    with serving(application, error_log=errors) as server:
        for _ in range(3 * LINES):
            with Client(server) as client:
                client.send(MALFORMED)
                client.rest()
    assert errors.getvalue() == "invalid content: 127.0.0.1: malformed chunk size\n" * LINES
