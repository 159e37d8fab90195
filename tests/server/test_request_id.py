from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest

from tests.server.desk import Desk, pending_at
from tests.support import Client, eventually, serving


def tells(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Its request's id, and who has asked."""
    start_response("200 OK", [])
    return [f"{environ['HTTP_X_REQUEST_ID']} {environ['REMOTE_ADDR']}".encode()]


def asked(*ids: str, forwarded: str = "") -> bytes:
    fields = "".join(f"X-Request-ID: {word}\r\n" for word in ids)
    return f"GET / HTTP/1.1\r\nHost: x\r\n{fields}{forwarded}\r\n".encode()


def is_new(word: str) -> bool:
    return len(word) == 32 and set(word) <= set("0123456789abcdef")


@pytest.fixture(scope="module")
def log() -> StringIO:
    return StringIO()


@pytest.fixture(scope="module")
def trusting(log: StringIO) -> Iterator[Client]:
    options = {"forwarded_allow_ips": "127.0.0.1", "request_ids": True, "log_format": "json", "log": log}
    with serving(tells, **options) as server, Client(server) as client:
        yield client


def test_without_one_a_request_is_given_a_new_id_each_time(trusting: Client) -> None:
    words = {trusting.ask(asked()).body.decode().split()[0] for _ in range(3)}
    assert len(words) == 3
    assert all(is_new(word) for word in words)


def test_a_trusted_peers_id_is_kept_and_logged(trusting: Client, log: StringIO) -> None:
    forwarded = "X-Forwarded-For: 192.0.2.1\r\n"
    body = trusting.ask(asked("01ARZ3NDEKTSV4/a=b:c;7", forwarded=forwarded)).body
    assert body == b"01ARZ3NDEKTSV4/a=b:c;7 192.0.2.1"
    eventually(lambda: "01ARZ3NDEKTSV4" in log.getvalue())
    entry = json.loads(log.getvalue().splitlines()[-1])
    assert (entry["request_id"], entry["client"]) == ("01ARZ3NDEKTSV4/a=b:c;7", "192.0.2.1")


@pytest.mark.parametrize("words", [["a b"], ["a,b"], ["a", "b"], ["\xe4"], ["x" * 129], [""]])
def test_what_is_no_id_is_replaced(words: list[str], trusting: Client) -> None:
    assert is_new(trusting.ask(asked(*words)).body.decode().split()[0])


def test_an_id_of_a_peer_that_is_not_trusted_is_replaced() -> None:
    options = {"forwarded_allow_ips": "192.0.2.0/24", "request_ids": True}
    with serving(tells, **options) as server, Client(server) as client:
        assert is_new(client.ask(asked("forged")).body.decode().split()[0])


def test_a_pending_response_is_logged_with_its_id() -> None:
    log, desk = StringIO(), Desk()
    form = "json:request_id,{x-request-id}i"
    with pending_at(desk, log=log, log_format=form, request_ids=True) as (client, pending):
        pending.send("200 OK", [], b"later")
        client.answer()
        eventually(log.getvalue)
    entry = json.loads(log.getvalue())
    assert is_new(entry["request_id"])
    assert entry["x-request-id"] == entry["request_id"]


def test_without_the_option_a_request_says_what_it_says() -> None:
    with serving(tells) as server, Client(server) as client:
        assert client.ask(asked("a", "b")).body == b"a,b 127.0.0.1"
