from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from parked.loadtest.plan.rehearsal import no_stream, objection


@contextlib.contextmanager
def serving(**behaviour: Any) -> Iterator[str]:
    """A server that answers 200 with 1,024 bytes and keeps connections, but for what is asked for."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = behaviour.get("version", "HTTP/1.1")

        def do_GET(self) -> None:
            self.send_response(behaviour.get("status", 200))
            body = b"x" * behaviour.get("length", 1024)
            self.send_header("Content-Length", str(len(body)))
            for name, value in behaviour.get("headers", {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            if behaviour.get("hangs_up"):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ({}, ""),
        ({"version": "HTTP/1.0"}, "HTTP/1.0"),
        ({"headers": {"Connection": "close"}}, "closes each connection"),
        ({"hangs_up": True}, "two requests on one connection"),
        ({"status": 302, "headers": {"Location": "/login"}}, "redirects GET /?length=1024 to /login"),
        ({"status": 404}, "answers 404"),
        ({"length": 612}, "612 bytes, not the 1,024 asked for; --path /"),
    ],
)
def test_what_would_fail_for_each_connection_is_said_before_the_first(
    behaviour: dict[str, Any], told: str
) -> None:
    with serving(**behaviour) as url:
        found = objection(url, "/?length=1024", 1024, timeout_s=5.0)
    assert told in found
    assert bool(found) is bool(told)


def test_a_path_is_asked_for_as_users_ask_for_it() -> None:
    with serving() as url:
        assert objection(url, "/?length=1024&q=\u00fc x#top", 1024) == ""


STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ({"headers": STREAM}, ""),
        ({}, "no event stream"),
        ({"headers": {"Content-Type": "text/html"}}, "no event stream"),
        ({"headers": STREAM, "status": 204}, "204"),
        ({"headers": STREAM, "status": 404}, "answers 404"),
        ({"headers": {"Location": "/login"}, "status": 302}, "redirects"),
    ],
)
def test_what_is_no_event_stream_is_told_by_the_head_of_its_response(
    behaviour: dict[str, Any], told: str
) -> None:
    with serving(**behaviour) as url:
        found = no_stream(url, "/events")
    assert told in found
    assert bool(found) is bool(told)


def test_a_stream_is_not_begun_where_nobody_listens() -> None:
    assert "does not begin an event stream" in no_stream("http://127.0.0.1:9", "/events")
