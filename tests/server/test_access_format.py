from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest

from parked.server.access_format import line_format
from parked.server.limits import Limits
from tests.support import Client, eventually, serving


def answers(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("X-B", "b"), ("Content-Length", "5")])
    return [b"hello"]


REQUEST = b'GET /a?b=c HTTP/1.1\r\nHost: x\r\nUser-Agent: "\xe4\r\nReferer: /r\r\nX-Request-ID: 7\r\n\r\n'
# That gunicorn's own worker writes the same is tests/test_gunicorn.py's affair.
CASES = {
    "%(h)s %(l)s %(u)s": "127.0.0.1 - -",
    '"%(r)s"': '"GET /a?b=c HTTP/1.1"',
    "%(m)s %(U)s %(q)s %(H)s": "GET /a b=c HTTP/1.1",
    "%(s)s %(B)s %(b)s": "200 5 5",
    "%(f)s %(a)s": r"/r \x22\xe4",
    "%({x-request-id}i)s %({X-None}i)s": "7 -",
    "%({x-b}o)s %({X-None}o)s": "b -",
    "%({REMOTE_ADDR}e)s %({none}e)s": "127.0.0.1 -",
    "%(t)s": r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]",
    "%(T)s %(M)s %(D)s %(L)s": r"\d+ \d+ \d+ \d+\.\d{6}",
    "%(p)s": r"<\d+>",
    "100 %% of it": "100 % of it",
}


def logged(form: str, sent: bytes = REQUEST) -> str:
    log = StringIO()
    with serving(answers, log=log, log_format=form) as server, Client(server) as client:
        client.ask(sent)
        return str(eventually(log.getvalue))


@pytest.mark.parametrize(("form", "line"), CASES.items())
def test_atoms_are_filled_in(form: str, line: str) -> None:
    pattern = line if "\\d" in line else re.escape(line)
    assert re.fullmatch(pattern + "\n", logged(form))


def test_what_was_no_request_has_a_line_too() -> None:
    line = logged('%(h)s "%(r)s" %(s)s %(a)s %({x-b}o)s', b"GET /\x01 HTTP/1.1\r\n\r\n")
    assert line == '127.0.0.1 "GET /\\x01 HTTP/1.1" 400 - -\n'


def test_of_the_servers_own_answers_the_head_does_not_count() -> None:
    assert logged("%(s)s %(B)s", b"GET /\x01 HTTP/1.1\r\n\r\n") == "400 12\n"  # Bad Request and a line feed
    log = StringIO()
    bounded = serving(reads, log=log, log_format="%(s)s %(B)s", limits=Limits(body_bytes=10))
    with bounded as server, Client(server) as client:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        refused = client.ask(head + b"14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n")
        assert eventually(log.getvalue) == f"413 {len(refused.body)}\n"


def reads(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    environ["wsgi.input"].read()
    return answers(environ, start_response)


@pytest.mark.parametrize("form", ["%(x)s", "%(hh)s", "%({a}x)s", "%(h)d", "%s", "%"])
def test_an_unknown_atom_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="unknown atom"):
        line_format(f"%(h)s {form}")


def test_json_has_the_fields_that_were_chosen_in_their_order() -> None:
    names = (
        "status,path,query,host,scheme,user,content_bytes,agent,{x-request-id}i,{X-B}o,{SERVER_NAME}e,{none}e"
    )
    entry = json.loads(logged(f"json:{names}"))
    name = entry.pop("SERVER_NAME")
    assert isinstance(name, str)
    assert list(entry.items()) == [
        *(
            ("status", 200),
            ("path", "/a"),
            ("query", "b=c"),
            ("host", "x"),
            ("scheme", "http"),
            ("user", None),
        ),
        *(("content_bytes", 5), ("agent", '"\xe4'), ("x-request-id", "7"), ("X-B", "b"), ("none", None)),
    ]


def test_json_of_what_was_no_request_has_the_same_fields() -> None:
    entry = json.loads(logged("json:method,status,host,request_id", b"GET /\x01 HTTP/1.1\r\n\r\n"))
    assert entry == {"method": "GET", "status": 400, "host": None, "request_id": None}


@pytest.mark.parametrize("form", ["json:", "json:tiem", "json:status,", "json:{a}x", "json:{a,b}i", "jason"])
def test_an_unknown_field_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match=r"unknown field|needs common, json"):
        line_format(form)
