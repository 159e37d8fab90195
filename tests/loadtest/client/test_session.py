"""The client: what comes back to the task, and what is counted."""

from __future__ import annotations

import gc
import gzip
import json
import socket
import ssl
import time
from typing import Any

import pytest
from locust.contrib.fasthttp import LocustBadStatusCode
from locust.env import Environment
from locust.exception import RescheduleTask

from parked.loadtest.client import line as line_module
from parked.loadtest.client.errors import (
    CutOff,
    TimedOut,
    TooLarge,
)
from parked.loadtest.client.process import Process
from parked.loadtest.client.response import KeepAliveResponse
from parked.loadtest.client.session import KeepAliveSession
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import (
    Peer,
    Served,
    answering,
    by_path,
    head_fields,
    response,
)

OK = response()


def test_another_server_gets_a_connection_of_its_own(new_session: NewSession, process: Process) -> None:
    with Peer(answering(OK)) as one, Peer(answering(response(b"two"))) as two:
        client = new_session(one.url)
        for _ in range(3):
            assert client.get("/").text == "ok"
            answer = client.get(f"{two.url.upper()}/there?x=1".replace("/THERE", "/there"))
            assert answer.text == "two"
        assert (len(one.connections), len(two.connections)) == (1, 1)
        assert head_fields(two.requests[0])["Host"] == f"127.0.0.1:{two.port}"
        assert (process.counters.connections, process.elsewhere.connections) == (1, 1)
        assert client.get(f"{one.url}/absolute").text == "ok"
        assert len(one.connections) == 1
        client.close()
        assert process.counters.connections == 0


def test_each_request_fires_once_with_what_locust_documents(
    new_session: NewSession, environment: Environment, fired: list[Any]
) -> None:
    body = gzip.compress(b"y" * 1000)
    with Peer(by_path({"/": response(body, "Content-Encoding: gzip"), "/b": OK})) as peer:
        client = new_session(peer.url, context=lambda self: {"user": 1, "both": "user"})
        client.get("/", context={"both": "call"})
        with client.rename_request("renamed"):
            client.post("/b", name="named")
            client.post("/b")
        client.get("/nowhere")
    first = fired[0]
    assert (first["request_type"], first["name"], first["url"]) == ("GET", "/", peer.url + "/")
    assert first["response_length"] == 1000, "of the content, as Locust has it"
    assert first["response"].content == b"y" * 1000
    assert first["context"] == {"user": 1, "both": "call"}
    assert first["exception"] is None
    assert 0 < first["response_time"] < 5000
    assert [event["name"] for event in fired] == ["/", "named", "renamed", "/nowhere"]
    assert str(fired[3]["exception"]) == "status 404"
    assert environment.stats.total.num_requests == 4
    assert environment.stats.total.num_failures == 1


def test_catch_response_decides_and_may_change_the_name(
    new_session: NewSession, environment: Environment, process: Process
) -> None:
    with Peer(answering(response(status="404 Not Found"))) as peer:
        client = new_session(peer.url)
        with client.get("/", catch_response=True) as answer:
            answer.success()
            answer.request_meta["name"] = "mine"
        with pytest.raises(RescheduleTask), client.get("/", catch_response=True):
            raise RescheduleTask
        with client.get("/", catch_response=True) as answer:
            answer.failure("no such page")
    process.statistics.fold()
    assert environment.stats.get("mine", "GET").num_requests == 1
    assert environment.stats.total.num_failures == 1
    (error,) = environment.stats.errors.values()
    assert (error.occurrences, "no such page" in str(error.error)) == (1, True)
    assert process.counters.failures_by_kind["other"] == 1


def test_locusts_rest_helper_works(new_session: NewSession, fired: list[Any]) -> None:
    routes = {
        "/good": response(b'{"a": 1}'),
        "/bad": response(b"<html>"),
        "/fail": response(status="500 Oops"),
    }
    with Peer(by_path(routes)) as peer:
        client = new_session(peer.url)
        user = client._user
        with user.rest("GET", "/good") as answer:
            assert answer.js == {"a": 1}
        with user.rest("POST", "/good", json={"b": 2}) as answer:
            raise AssertionError("wrong number")
        with user.rest("GET", "/bad") as answer:
            assert answer.js is None
        with user.rest_("GET", "/good"):
            raise KeyError("in the task")
        assert json.loads(peer.requests[1].partition(b"\r\n\r\n")[2]) == {"b": 2}
    assert [event["exception"] is None for event in fired] == [True, False, False, False]
    assert fired[1]["exception"].args == ("wrong number",)
    assert fired[3]["name"] == "/good?_=..."


def test_the_response_time_counts_from_when_the_request_was_due(
    new_session: NewSession, process: Process, fired: list[Any]
) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        client.due = time.perf_counter() - 0.5
        client.get("/")
        client.get("/")
    assert fired[0]["response_time"] >= 500
    assert fired[1]["response_time"] < 400
    assert process.counters.late_sends == 1


def test_what_is_sent_and_received_is_counted(new_session: NewSession, process: Process) -> None:
    with Peer(answering(OK)) as peer:
        client: KeepAliveSession = new_session(peer.url)
        for _ in range(3):
            client.get("/")
        assert process.counters.sent_bytes == sum(map(len, peer.requests))
        assert process.counters.received_bytes == 3 * len(OK)
        assert len(process.counters.latencies_ms) == 3


def test_persistent_headers_are_sent_from_then_on(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url, default_headers={"X-A": "1"})
        client.get("/")
        client.headers.update({"x-a": "2", "Authorization": "Bearer t"})
        client.get("/")
        client.get("/", auth=("me", "pw"))
        del client.headers["authorization"]
        client.get("/")
        first, second, third, fourth = map(head_fields, peer.requests)
        assert "Authorization" not in first | fourth
        assert (second["x-a"], second["Authorization"]) == ("2", "Bearer t")
        assert third["Authorization"].startswith("Basic ")


def test_a_user_may_be_moved_to_another_server(new_session: NewSession, process: Process) -> None:
    with Peer(answering(OK)) as one, Peer(answering(response(b"two"))) as two:
        client = new_session(one.url)
        assert (client.base_url, client.get("/").text) == (one.url, "ok")
        client.base_url = f"{two.url}/api"
        assert client.get("/").text == "two"
        assert two.requests[0].startswith(b"GET /api/ ")
        assert process.counters.connections == 1


def test_a_session_takes_attributes_and_has_those_of_fasthttpsession(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url.replace("//", "//me:pw@"))
        client.mine = 1
        assert client.mine == 1
        assert client.user is client._user
        assert client.auth_header == "Basic bWU6cHc="
        client.get("/")
        client.client.clientpool.close()
        client.get("/")
        assert len(peer.connections) == 2
        client.auth_header = "Bearer t"
        client.get("/")
        assert head_fields(peer.requests[-1])["Authorization"] == "Bearer t"


def test_a_request_may_have_a_timeout_of_its_own_for_all_of_it(
    new_session: NewSession, process: Process
) -> None:
    def serve(served: Served) -> None:
        while served.read_request() is not None:
            served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b"x"] * 200, pause_s=0.01)

    with Peer(serve) as peer:
        client = new_session(peer.url)
        began = time.perf_counter()
        answer = client.get("/", timeout=0.2)
        assert isinstance(answer.error, TimedOut)
        assert time.perf_counter() - began < 1.5
        assert isinstance(new_session(peer.url, total_timeout=0.1).get("/").error, TimedOut)


def test_the_request_event_has_url_response_and_exception_and_a_task_may_set_one(
    new_session: NewSession, fired: list[Any]
) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        with client.get("/a", catch_response=True) as answer:
            assert answer.request_meta["response"] is answer
            assert answer.request_meta["url"] == f"{peer.url}/a"
            answer.request_meta["exception"] = mine = ValueError("mine")
            answer.request_meta["extra"] = 1
        assert fired[0]["exception"] is mine
        assert (fired[0]["url"], fired[0]["response"], fired[0]["extra"]) == (f"{peer.url}/a", answer, 1)
        client.request_event.fire(name="of the script")
        assert fired[1] == {"name": "of the script"}


def test_a_response_knows_its_request_and_how_long_it_took(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        answer = new_session(peer.url).post("/a", data="body", headers={"X-A": "1"})
        assert (answer.request.method, answer.request.url) == ("POST", f"{peer.url}/a")
        assert answer.request.body == b"body"
        assert answer.request.headers["x-a"] == "1"
        assert 0 < answer.elapsed.total_seconds() < 5
        assert (answer.status, answer.data, len(answer), bool(answer)) == ("200", b"ok", 2, True)
        assert (answer.read(1), answer.readline(), answer.history) == (b"o", b"k", ())


def test_failures_are_kin_of_those_of_fasthttpuser(new_session: NewSession) -> None:
    with Peer(answering(response(b"", status="404 No"))) as peer:
        error = new_session(peer.url).get("/a").error
        assert isinstance(error, LocustBadStatusCode)
        assert (error.code, error.url, str(error)) == (404, f"{peer.url}/a", "status 404")
        port = peer.port
    assert isinstance(new_session(f"http://127.0.0.1:{port}").get("/").error, ConnectionRefusedError)
    assert isinstance(new_session("http://no-such-name.invalid").get("/").error, socket.gaierror)
    with Peer(lambda served: served.send(b"no TLS")) as peer:
        error = new_session(f"https://127.0.0.1:{peer.port}").get("/").error
        assert isinstance(error, ssl.SSLError)
        assert str(error).startswith("TLS: ")
    assert issubclass(TimedOut, TimeoutError)
    assert issubclass(CutOff, ConnectionResetError)


def test_a_timeout_that_is_long_enough_changes_nothing(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        assert new_session(peer.url).get("/", timeout=60.0).ok


def test_close_ends_connections_to_other_servers_too(new_session: NewSession, process: Process) -> None:
    with Peer(answering(OK)) as peer, Peer(answering(OK)) as other:
        client = new_session(peer.url)
        assert client.get("/").ok
        assert client.get(other.url + "/").ok
        assert (process.counters.connections, process.elsewhere.connections) == (1, 1)
        client.close()
        assert (process.counters.connections, process.elsewhere.connections) == (0, 0)


def test_an_exception_that_a_task_assigns_in_words_is_a_failure(
    new_session: NewSession, fired: list[Any]
) -> None:
    with Peer(answering(OK)) as peer:
        with new_session(peer.url).get("/", catch_response=True) as answer:
            answer.request_meta["exception"] = "not good enough"
        assert str(fired[0]["exception"]) == "not good enough"


def test_a_body_that_is_there_can_be_read_in_pieces_and_lines(new_session: NewSession) -> None:
    with Peer(answering(response(b"one\ntwo\r\nthree"))) as peer:
        answer = new_session(peer.url).get("/")
        assert list(answer.iter_content(5, decode_content=False)) == [b"one\nt", b"wo\r\nt", b"hree"]
        assert list(answer.iter_lines(4)) == [b"one", b"two", b"three"]


def test_no_memory_for_a_response_is_its_failure(
    new_session: NewSession, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError

    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        with monkeypatch.context() as patch:
            patch.setattr(line_module, "read_response", fail)
            assert isinstance(client.get("/").error, TooLarge)
        assert client.get("/").ok


def test_requests_make_no_cycles_for_the_collector(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        client.get("/")
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                with client.get("/", catch_response=True) as answer:
                    answer.success()
            answer = None  # type: ignore[assignment]
            found = [one for one in gc.get_objects() if isinstance(one, KeepAliveResponse)]
            assert len(found) <= 1
        finally:
            gc.enable()
