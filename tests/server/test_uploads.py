"""Uploads that are refused without being read: the answer arrives, at clients that read only at the end."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from parked.server import body
from tests.apps import refuse
from tests.support import PATIENCE_S, Client, ServerProcess, eventually, serving

UPLOAD_BYTES = 20_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--app", "tests.apps:refuse", "--workers", "1") as server:
        yield server


def post(address: tuple[str, int], path: str, content: bytes, **fields: str) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
    try:
        connection.request("POST", path, content, fields)
        response = connection.getresponse()
        return response.status, response.read(), response.headers.get("Connection", "")
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/iterated"])
def test_a_client_that_reads_only_when_it_has_sent_all_gets_the_refusal(
    server: ServerProcess, path: str
) -> None:
    content = bytes(UPLOAD_BYTES)
    for _ in range(3):
        assert post(server.address, path, content) == (401, b"not you\n", "close")


def test_many_at_once_get_it_too(server: ServerProcess) -> None:
    content = bytes(UPLOAD_BYTES // 4)
    answers: list[tuple[int, bytes, str]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(server.address, "/", content))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == [(401, b"not you\n", "close")] * 8


NGINX = """
{user} daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    client_max_body_size 0;
    upstream ours {{ server 127.0.0.1:{port}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{own};
        proxy_pass_request_headers on; proxy_http_version 1.1; proxy_set_header Connection "";
        location /buffered {{ proxy_pass http://ours; }}
        location /direct {{ proxy_pass http://ours; proxy_request_buffering off; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def nginx(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        own = probe.getsockname()[1]
    settings: Path = folder / "nginx.conf"
    user = "" if os.getuid() else "user root;"  # or its worker cannot enter our folder
    settings.write_text(NGINX.format(user=user, folder=folder, port=server.address[1], own=own))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(settings), "-e", f"{folder}/error.log"])
    try:
        eventually(lambda: answers("127.0.0.1", own), "nginx answers")
        yield "127.0.0.1", own
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def answers(*address: object) -> bool:
    try:
        post(("127.0.0.1", int(str(address[1]))), "/buffered", b"")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("path", ["/buffered", "/direct"])
def test_through_nginx_no_refusal_becomes_a_502(nginx: tuple[str, int], path: str) -> None:
    content = bytes(UPLOAD_BYTES)
    assert [post(nginx, path, content)[:2] for _ in range(5)] == [(401, b"not you\n")] * 5


# -- what can be foreseen is announced


def test_a_close_that_can_be_foreseen_is_announced() -> None:
    large = body.MAX_DISCARD_BYTES + 1
    for fields, announced in [
        (b"Content-Length: %d\r\n\r\n" % large, True),
        (b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n", True),
        (b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n", True),
        (b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\nabc", False),  # it has not waited
        (b"Content-Length: 3\r\n\r\nabc", False),
    ]:
        for path in (b"/", b"/iterated"):
            with serving(refuse) as server, Client(server) as client:
                client.send(b"POST %b HTTP/1.1\r\nHost: x\r\n%b" % (path, fields))
                answer = client.answer()
                assert (answer.status, answer.headers["Connection"] == "close") == (401, announced), fields
                if announced:
                    assert client.closed()
                else:
                    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert client.answer().status == 401


def test_what_is_left_of_an_upload_becomes_no_request() -> None:
    with serving(refuse) as server, Client(server) as client:
        request = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        content = request * (2 * body.MAX_DISCARD_BYTES // len(request))
        sending = gevent.spawn(
            client.send, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content
        )
        assert client.answer().status == 401
        assert client.closed()
        sending.join(PATIENCE_S)
        assert sending.successful()
        assert server.requests == 1
