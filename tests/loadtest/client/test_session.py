"""The client: what goes over the wire, what comes back to the task, and what is counted."""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import json
import ssl
import time
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from locust.contrib.fasthttp import LocustBadStatusCode
from locust.env import Environment
from locust.exception import RescheduleTask

from parked.loadtest.client import connection as connection_module
from parked.loadtest.client import line as line_module
from parked.loadtest.client.coding import ACCEPTED
from parked.loadtest.client.errors import (
    BadResponse,
    BadStatus,
    ClosedByPeer,
    ConnectFailed,
    CutOff,
    TimedOut,
    TooLarge,
)
from parked.loadtest.client.origin import basic_authorization
from parked.loadtest.client.process import Process
from parked.loadtest.client.response import KeepAliveResponse
from parked.loadtest.client.session import KeepAliveSession
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, Served, answering, by_path, eventually, response, server_tls

OK = response()


@pytest.fixture
def fired(environment: Environment) -> list[dict[str, Any]]:
    """The request events that a listener gets, beside Locust's own."""
    events: list[dict[str, Any]] = []
    environment.events.request.add_listener(lambda **event: events.append(event))
    return events


def head_fields(request: bytes) -> dict[str, str]:
    lines = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines), "a field is there twice"
    return fields


# What goes over the wire


def test_a_get_is_one_small_message(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        assert new_session(peer.url).get("/a?b=1").text == "ok"
        (request,) = peer.requests
        assert request.startswith(b"GET /a?b=1 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % peer.port)
        assert set(head_fields(request)) == {"Host", "User-Agent", "Accept-Encoding"}


@pytest.mark.parametrize("method", ["get", "head", "options", "delete", "post", "put", "patch"])
def test_each_method_is_sent_as_itself(new_session: NewSession, method: str) -> None:
    with Peer(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as peer:
        assert getattr(new_session(peer.url), method)("/").status_code == 204
        (request,) = peer.requests
        assert request.startswith(method.upper().encode() + b" / HTTP/1.1\r\n")
        # RFC 9110, 8.6: a method that is about its content says 0 where there is none.
        assert ("Content-Length" in head_fields(request)) == (method in ("post", "put", "patch"))


@pytest.mark.parametrize(
    ("arguments", "body", "content_type"),
    [
        ({"data": b"\x00raw"}, b"\x00raw", "application/octet-stream"),
        ({"data": "grün"}, "grün".encode(), "text/plain; charset=utf-8"),
        (
            {"data": {"a": "1 2", "b": ["x", "y"]}},
            b"a=1+2&b=x&b=y",
            "application/x-www-form-urlencoded; charset=utf-8",
        ),
        ({"data": io.BytesIO(b"from a file")}, b"from a file", "application/octet-stream"),
        ({"data": (part for part in ("a", b"b"))}, b"ab", "application/octet-stream"),
        ({"data": [("a", "1"), ("a", "2")]}, b"a=1&a=2", "application/x-www-form-urlencoded; charset=utf-8"),
        ({"json": {"a": [1, None]}}, b'{"a": [1, null]}', "application/json"),
        ({"json": {}}, b"{}", "application/json"),
        ({"data": b"x", "json": {}}, b"x", "application/octet-stream"),
        ({"data": b"x", "headers": {"content-type": "text/plain"}}, b"x", "text/plain"),
        ({"json": 1, "headers": {"Content-Type": "application/x.mine"}}, b"1", "application/x.mine"),
    ],
)
def test_a_body_is_sent_with_its_length_and_type(
    new_session: NewSession, arguments: dict[str, Any], body: bytes, content_type: str | None
) -> None:
    with Peer(answering(OK)) as peer:
        new_session(peer.url).post("/", **arguments)
        (request,) = peer.requests
        assert request.partition(b"\r\n\r\n")[2] == body
        fields = {name.lower(): value for name, value in head_fields(request).items()}
        assert fields["content-length"] == str(len(body))
        assert fields.get("content-type") == content_type


def test_files_are_sent_as_a_multipart_form(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        files = {"one": ("1.txt", b"first", "text/plain"), "two": io.BytesIO(b"second")}
        assert new_session(peer.url).post("/", data={"field": "value"}, files=files).ok
        (request,) = peer.requests
        assert head_fields(request)["Content-Type"].startswith("multipart/form-data; boundary=")
        for part in (b'name="field"', b"value", b'filename="1.txt"', b"text/plain", b"first", b"second"):
            assert part in request


def test_header_fields_of_class_and_call_replace_the_built_in_ones(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url, default_headers={"user-agent": "mine", "X-Class": "1"})
        client.get("/")
        client.get("/", headers={"x-class": "2", "ACCEPT-encoding": "identity", "X-Number": 5})
        first, second = map(head_fields, peer.requests)
        assert first | {"Host": ""} == {
            "Host": "",
            "Accept-Encoding": ACCEPTED,
            "user-agent": "mine",
            "X-Class": "1",
        }
        assert second["x-class"] == "2"
        assert second["ACCEPT-encoding"] == "identity"
        assert second["X-Number"] == "5"


def test_a_line_break_in_a_header_field_is_refused(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        for headers in ({"A": "x\r\nB: y"}, {"A\n": "x"}):
            with pytest.raises(ValueError, match="line break"):
                client.get("/", headers=headers)
        assert peer.requests == []


@pytest.mark.parametrize(
    ("url", "params", "sent"),
    [
        ("/a", {"q": "x y", "l": [1, 2]}, "/a?q=x+y&l=1&l=2"),
        ("/a?b", {"c": "ü"}, "/a?b&c=%C3%BC"),
        ("/a b", None, "/a%20b"),
        ("/ü", None, "/%C3%BC"),
        ("/already%20there", None, "/already%20there"),
        ("/x\r\nEvil: 1", None, "/x%0D%0AEvil:%201"),
        ("/page#fragment", None, "/page"),
        ("relative", None, "/relative"),
        ("to?u=http://other.test/", None, "/to?u=http://other.test/"),
    ],
)
def test_the_path_is_made_fit_for_a_request_line(
    new_session: NewSession, fired: list[Any], url: str, params: Any, sent: str
) -> None:
    with Peer(answering(OK)) as peer:
        answer = new_session(peer.url).get(url, params=params)
        assert peer.requests[0].split(b" ")[1].decode() == sent
        assert answer.url == peer.url + sent
        assert fired[0]["name"] == url, "parameters must not make a row each in the statistics"


@pytest.mark.parametrize(("url", "path"), [("/a", "/api/a"), ("a?b=1", "/api/a?b=1"), ("/", "/api/")])
def test_a_path_in_the_host_comes_before_every_path(new_session: NewSession, url: str, path: str) -> None:
    with Peer(answering(OK, OK)) as peer:
        client = new_session(f"{peer.url}/api/")
        client.get(url)
        client.get(f"{peer.url}/elsewhere")
        assert [request.split()[1].decode() for request in peer.requests] == [path, "/elsewhere"]
        assert len(peer.connections) == 1


def test_credentials_are_sent_from_the_call_and_from_the_host(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url.replace("://", "://us%40er:pass@"))
        client.get("/")
        client.get("/", auth=("other", "word"))
        assert [head_fields(request)["Authorization"] for request in peer.requests] == [
            basic_authorization("us@er", "pass"),
            basic_authorization(b"other", b"word"),
        ]
        assert head_fields(peer.requests[0])["Host"] == f"127.0.0.1:{peer.port}"


def test_a_large_body_goes_out_and_comes_back(new_session: NewSession) -> None:
    def serve(served: Served) -> None:
        while (request := served.read_request()) is not None:
            served.send(response(request.partition(b"\r\n\r\n")[2]))

    with Peer(serve) as peer:
        body = bytes(range(256)) * 20_000
        client = new_session(peer.url)
        for _ in range(2):
            assert client.post("/", data=body).content == body
        assert len(peer.connections) == 1


# The connection


def test_requests_share_a_connection(new_session: NewSession, process: Process) -> None:
    with Peer(answering(OK, response(b"x", "Connection: keep-alive"))) as peer:
        client = new_session(peer.url)
        assert not client.connected
        for _ in range(5):
            assert client.get("/").ok
        assert len(peer.connections) == 1
        counters = process.counters
        assert (counters.connections, counters.opened, counters.reconnects) == (1, 1, 0)
        client.close()
        assert (counters.connections, counters.closed_by_peer) == (0, 0)
        eventually(lambda: peer.connections[0].sock.fileno() < 0)


@pytest.mark.parametrize(
    "answer",
    [
        response(b"ok", "Connection: Close"),
        response(b"ok", "Connection: x, close"),
        OK.replace(b"1.1", b"1.0"),
        b"HTTP/1.0 200 OK\r\n\r\nok",
    ],
)
def test_a_response_that_ends_the_connection_is_followed_by_a_new_one(
    new_session: NewSession, process: Process, answer: bytes
) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(answer)

    with Peer(serve) as peer:
        client = new_session(peer.url)
        for count in range(1, 4):
            assert client.get("/").text == "ok"
            counters = process.counters
            assert (counters.connections, counters.opened) == (0, count)
            assert (counters.reconnects, counters.closed_by_peer) == (count - 1, count)


def test_an_end_at_rest_is_counted_at_once_and_reconnected(new_session: NewSession, process: Process) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        client.get("/")
        assert process.counters.connections == 1
        peer.connections[0].sock.shutdown(1)
        eventually(lambda: process.counters.connections == 0)
        assert process.counters.closed_by_peer == 1
        assert not client.connected
        assert client.get("/").ok
        assert (process.counters.connections, process.counters.reconnects) == (1, 1)
        assert process.counters.failures == 0


def bad(answer: bytes, end: str = "") -> Any:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(answer)
        if end == "reset":
            served.reset()
        elif end == "silence":
            gevent.sleep(60)

    return serve


@pytest.mark.parametrize(
    ("serve", "failure"),
    [
        (bad(b""), ClosedByPeer),
        (bad(OK[:-1]), ClosedByPeer),
        (bad(OK[:20]), ClosedByPeer),
        (bad(OK[:-1], "reset"), ClosedByPeer),
        (bad(b"HTTP/1.1 200 OK\r\n\r\nhalf", "reset"), ClosedByPeer),
        (bad(b"", "silence"), TimedOut),
        (bad(OK[:-1], "silence"), TimedOut),
        (bad(b"SSH-2.0-OpenSSH\r\n", "silence"), BadResponse),
        (bad(OK + b"more", "silence"), BadResponse),
        (bad(OK + OK, "silence"), BadResponse),
        (bad(response(b"plain", "Content-Encoding: gzip"), "silence"), BadResponse),
        (bad(response(status="503 Service Unavailable"), "silence"), BadStatus),
    ],
)
def test_each_failure_is_counted_once_under_its_kind(
    new_session: NewSession, process: Process, fired: list[Any], serve: Any, failure: type[Exception]
) -> None:
    with Peer(serve) as peer:
        client = new_session(peer.url, network_timeout=0.1)
        answer = client.get("/", name="it")
        assert type(answer.error) in (failure, *failure.__subclasses__())
        assert [event["exception"] for event in fired] == [answer.error]
        counters = process.counters
        assert (counters.requests, counters.failures) == (1, 1)
        assert counters.failures_by_kind[failure.kind] == 1  # type: ignore[attr-defined]
        assert counters.connections == int(client.connected)
        # What came was whole in these two, so the next response can be told from it.
        assert client.connected == (failure is BadStatus or "gzip" in str(answer.error))
        assert counters.closed_by_peer == (1 if failure is ClosedByPeer else 0)


@pytest.mark.parametrize("unasked", [b"noise", OK])
def test_bytes_that_come_between_requests_fail_the_next(
    new_session: NewSession, process: Process, unasked: bytes
) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        assert client.get("/").ok
        peer.connections[0].send(unasked)
        eventually(lambda: client._connection is not None and client._connection.ready)
        answer = client.get("/")
        assert isinstance(answer.error, BadResponse)
        assert client.get("/").ok
        assert (len(peer.connections), len(peer.requests)) == (2, 2)
        assert process.counters.connections == 1


@pytest.mark.parametrize("tls", [False, True])
def test_a_server_that_answers_twice_is_found_out_within_two_requests(
    new_session: NewSession, tmp_path: Path, tls: bool
) -> None:
    def serve(served: Served) -> None:
        while served.read_request() is not None:
            served.send(OK, OK)

    with Peer(serve, tls=server_tls(tmp_path) if tls else None) as peer:
        client = new_session(peer.url, insecure=True)
        failures = 0
        for _ in range(10):
            failures += not client.get("/").ok
            gevent.sleep(0.002)
        assert failures >= 4


def test_refused_is_a_failure_and_the_next_request_tries_again(
    new_session: NewSession, process: Process
) -> None:
    peer = Peer(answering(OK))
    client = new_session(peer.url)
    peer.listener.close()
    for _ in range(2):
        assert isinstance(client.get("/").error, ConnectFailed)
    assert process.counters.failures_by_kind["connect"] == 2
    assert process.counters.connections == process.counters.opened == 0


def test_timing_out_counts_from_the_last_byte(new_session: NewSession) -> None:
    with Peer(
        lambda served: (
            served.read_request() and served.send(*(OK[at : at + 1] for at in range(len(OK))), pause_s=0.01)
        )
    ) as peer:
        assert new_session(peer.url, network_timeout=0.2).get("/").ok


def test_the_tasks_own_timeout_fails_the_request_and_closes(
    new_session: NewSession, process: Process, fired: list[Any]
) -> None:
    with Peer(bad(b"", "silence")) as peer:
        client = new_session(peer.url)
        for catch in (False, True):
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
                client.get("/", catch_response=catch)
            assert not client.connected
        assert process.counters.connections == 0
        assert [type(event["exception"]) for event in fired] == [TimedOut, TimedOut]
        assert process.readiness.waiting == 0


def test_a_kill_in_the_middle_of_a_request_closes_the_connection(
    new_session: NewSession, process: Process
) -> None:
    with Peer(bad(b"HTTP/1.1 200", "silence")) as peer:
        client = new_session(peer.url)
        task = gevent.spawn(client.get, "/")
        eventually(lambda: peer.requests)
        task.kill()
        assert isinstance(task.value, GreenletExit)
        assert not client.connected
        assert (process.counters.connections, process.counters.requests) == (0, 0)
        assert process.readiness.waiting == 0


def test_two_requests_at_once_on_one_user_are_refused(new_session: NewSession, process: Process) -> None:
    with Peer(bad(b"", "silence")) as peer:
        client = new_session(peer.url, network_timeout=0.2)
        first = gevent.spawn(client.get, "/")
        eventually(lambda: peer.requests)
        with pytest.raises(RuntimeError, match="another greenlet"):
            client.get("/")
        assert isinstance(first.get().error, TimedOut)
        both = [gevent.spawn(client.get, "/") for _ in range(2)]  # and while it connects
        gevent.joinall(both)
        assert sorted(type(greenlet.exception).__name__ for greenlet in both) == ["NoneType", "RuntimeError"]
        assert process.counters.connections == 0


def test_https_is_served_over_one_connection(
    new_session: NewSession, tmp_path: Path, process: Process
) -> None:
    with Peer(answering(OK), tls=server_tls(tmp_path)) as peer:
        client = new_session(peer.url, insecure=True)
        for _ in range(5):
            assert client.get("/").text == "ok"
            gevent.sleep(0.002)
        assert len(peer.connections) == 1
        verifying = new_session(peer.url)
        assert "CERTIFICATE_VERIFY_FAILED" in str(verifying.get("/").error)
        with contextlib.suppress(ssl.SSLWantReadError):  # it waits for ours
            peer.connections[0].sock._sslobj.shutdown()  # sends close_notify and leaves TCP open
        eventually(lambda: client._connection is None or client._connection.ready)
        assert client.get("/").text == "ok"
        assert process.counters.failures == 1


# Other servers, redirections, cookies


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


def test_a_name_that_does_not_resolve_is_a_failure_to_connect(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        answer = new_session(peer.url).get("http://no-such-host.invalid/")
        assert isinstance(answer.error, ConnectFailed)
        assert answer.url == "http://no-such-host.invalid/"


def moved(to: str, status: int = 302) -> bytes:
    return response(b"", f"Location: {to}", status=f"{status} Moved")


def test_redirections_are_followed_unless_the_class_or_the_request_says_otherwise(
    new_session: NewSession, fired: list[Any]
) -> None:
    with Peer(by_path({"/a": moved("/b"), "/b": moved("c?x=1", 307), "/c": OK})) as peer:
        assert new_session(peer.url, allow_redirects=False).get("/a").status_code == 302
        answer = new_session(peer.url).get("/a")
        assert answer.text == "ok"
        assert answer.url == f"{peer.url}/c?x=1"
        assert [passed.status_code for passed in answer.history] == [302, 307]
        assert [passed.url for passed in answer.history] == [f"{peer.url}/a", f"{peer.url}/b"]
        assert len(peer.requests) == 4
        assert len(fired) == 2
        assert fired[1]["name"] == "/a"


@pytest.mark.parametrize(
    ("status", "method"), [(301, b"GET"), (302, b"GET"), (303, b"GET"), (307, b"POST"), (308, b"POST")]
)
def test_a_redirected_post_stays_one_where_the_status_says_so(
    new_session: NewSession, status: int, method: bytes
) -> None:
    with Peer(by_path({"/a": moved("/b", status), "/b": OK})) as peer:
        assert new_session(peer.url).post("/a", data=b"body", allow_redirects=True).ok
        assert peer.requests[1].startswith(method + b" /b ")
        assert peer.requests[1].endswith(b"body") == (method == b"POST")


def test_a_chain_of_redirections_may_be_as_long_as_said_and_no_longer(new_session: NewSession) -> None:
    routes = {f"/{n}": moved(f"/{n + 1}") for n in range(3)} | {"/3": OK, "/loop": moved("/loop")}
    with Peer(by_path(routes)) as peer:
        assert new_session(peer.url, max_redirects=3).get("/0", allow_redirects=True).text == "ok"
        for path, most in (("/0", 2), ("/loop", 5)):
            answer = new_session(peer.url, max_redirects=most).get(path, allow_redirects=True)
            assert "too many redirections" in str(answer.error)


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/", "http://[::1/", "mailto:a@b.test", "http:///x"])
def test_a_redirection_to_nowhere_is_a_failure(new_session: NewSession, to: str) -> None:
    with Peer(by_path({"/a": moved(to)})) as peer:
        answer = new_session(peer.url).get("/a", allow_redirects=True)
        assert answer.error is not None


def test_credentials_do_not_follow_to_another_server(new_session: NewSession) -> None:
    with Peer(answering(OK)) as other, Peer(by_path({"/a": moved(f"{other.url}/b")})) as peer:
        client = new_session(peer.url)
        client.get("/a", auth=("u", "p"), headers={"Cookie": "s=1", "X-Kept": "1"}, allow_redirects=True)
        assert "Authorization" in head_fields(peer.requests[0])
        fields = head_fields(other.requests[0])
        assert fields["X-Kept"] == "1"
        assert not {"Authorization", "Cookie"} & set(fields)


def test_cookies_come_back_where_they_belong(new_session: NewSession) -> None:
    login = response(
        b"", "Set-Cookie: all=1; Path=/", "Set-Cookie: here=2", "Set-Cookie: safe=3; Secure; Path=/"
    )
    with Peer(by_path({"/in/login": login, "/in/x": OK, "/": OK})) as peer:
        client, other = new_session(peer.url), new_session(peer.url)
        assert client._cookies is None, "a jar before there is a cookie"
        client.get("/in/login")
        client.get("/")
        client.get("/in/x")
        other.get("/")
        sent = [head_fields(request).get("Cookie", "") for request in peer.requests]
        assert sent[:2] == ["", "all=1"]
        assert sorted(sent[2].split("; ")) == ["all=1", "here=2"]
        assert sent[3] == "", "another user's"
        assert {cookie.name for cookie in client.cookiejar} >= {"all", "here"}


def test_a_user_has_one_cookie_jar_for_all_servers(new_session: NewSession) -> None:
    # Cookies don't keep ports apart (RFC 6265, 8.5).
    with Peer(answering(OK)) as one, Peer(answering(response(b"", "Set-Cookie: a=1"))) as two:
        client = new_session(one.url)
        client.get(f"{two.url}/")
        client.get("/")
        assert head_fields(one.requests[0])["Cookie"] == "a=1"


# What is reported


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


# What FastHttpSession has, and what is asked of such a client beside it


def test_a_method_is_sent_in_capitals_and_counted_as_it_was_given(
    new_session: NewSession, fired: list[Any]
) -> None:
    with Peer(answering(OK)) as peer:
        new_session(peer.url).request("get", "/")
        assert peer.requests[0].startswith(b"GET / ")
        assert fired[0]["request_type"] == "get"


@pytest.mark.parametrize(
    ("params", "query"),
    [
        ({"a": None, "b": 1}, "b=1"),
        ({"a": ["x", "y"]}, "a=x&a=y"),
        ([("a", "1"), ("a", "2")], "a=1&a=2"),
        ("a=1&b", "a=1&b"),
        (b"a=1", "a=1"),
    ],
)
def test_params_are_a_mapping_pairs_or_text(new_session: NewSession, params: Any, query: str) -> None:
    with Peer(answering(OK)) as peer:
        new_session(peer.url).get("/", params=params)
        assert peer.requests[0].startswith(f"GET /?{query} ".encode())


def test_headers_are_a_mapping_or_pairs_and_none_leaves_one_out(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        client = new_session(peer.url, default_headers={"X-A": "1", "Content-Type": "text/mine"})
        client.get("/", headers=[("X-B", "2")])
        client.get("/", headers={"x-a": None})
        client.post("/", data="x")
        first, second, third = map(head_fields, peer.requests)
        assert (first["X-A"], first["X-B"]) == ("1", "2")
        assert "X-A" not in second
        assert third["Content-Type"] == "text/mine"


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
    assert issubclass(TimedOut, TimeoutError)
    assert issubclass(CutOff, ConnectionResetError)


@pytest.mark.parametrize("resets", [True, False])
def test_an_answer_that_comes_while_the_body_is_being_sent_is_read(
    new_session: NewSession, resets: bool
) -> None:
    def serve(served: Served) -> None:
        served.sock.recv(1000)
        served.send(response(b"too much", status="413 Too Large"))
        if resets:
            served.sock.close()  # with bytes unread: a reset
        else:
            gevent.sleep(5)

    with Peer(serve) as peer:
        client = new_session(peer.url)
        answer = client.post("/", data=bytes(20_000_000))
        assert (answer.status_code, answer.text) == (413, "too much")
        assert not client.connected


def with_room(served: Served, answer: bytes) -> None:
    """Answer, and read some of the request, so that one event tells the client of both."""
    gevent.sleep(0.05)  # the client has filled its buffers and waits
    served.sock.sendall(answer)
    for _ in range(8):
        served.sock.recv(1 << 20)


@pytest.mark.parametrize(
    ("answer", "secure", "wanted"),
    [
        (response(b"too much", status="413 Too Large"), False, (413, "too much")),
        (response(b"too much", status="413 Too Large"), True, (413, "too much")),
        (response(b"enough"), False, (200, "enough")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"enough"), False, (200, "enough")),
    ],
)
def test_an_answer_is_read_that_comes_with_room_for_more_of_the_request(
    new_session: NewSession,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: bytes,
    secure: bool,
    wanted: tuple[int, str],
) -> None:
    monkeypatch.setattr(connection_module, "READS_ON_S", 0.1)

    def serve(served: Served) -> None:
        with_room(served, answer)
        gevent.sleep(60)

    with Peer(serve, tls=server_tls(tmp_path) if secure else None) as peer:
        got = new_session(peer.url, insecure=True).post("/", data=bytes(20_000_000))
        assert (got.status_code, got.text) == wanted


@pytest.mark.parametrize(
    "begun", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"]
)
def test_a_server_that_reads_on_after_it_began_to_answer_gets_all(
    new_session: NewSession, begun: bytes
) -> None:
    rest = b"ok" if b"Length" in begun else OK

    def serve(served: Served) -> None:
        with_room(served, begun)
        left = 20_000_000 - 8 * (1 << 20)
        while left > 1 << 20:
            left -= len(served.sock.recv(1 << 20))
        served.send(rest)
        while served.sock.recv(1 << 20):
            pass

    with Peer(serve) as peer:
        client = new_session(peer.url)
        assert client.post("/", data=bytes(20_000_000)).text == "ok"


def test_a_server_that_takes_a_request_in_sips_does_not_outlive_its_timeout(new_session: NewSession) -> None:
    def serve(served: Served) -> None:
        while served.sock.recv(1 << 16):
            gevent.sleep(0.01)

    with Peer(serve) as peer:
        began = time.perf_counter()
        answer = new_session(peer.url).post("/", data=bytes(100_000_000), timeout=0.5)
        assert isinstance(answer.error, TimedOut)
        assert time.perf_counter() - began < 5


def test_a_server_that_answers_before_it_is_asked_and_leaves_is_heard(new_session: NewSession) -> None:
    with Peer(lambda served: served.send(response(status="503 Full"))) as peer:
        assert new_session(peer.url).get("/").status_code == 503


def test_a_server_that_answers_before_it_is_asked_is_heard(new_session: NewSession) -> None:
    def serve(served: Served) -> None:
        served.send(response(status="503 Full"))
        gevent.sleep(60)

    with Peer(serve) as peer:
        assert new_session(peer.url).get("/").status_code == 503


def test_a_connection_that_ends_at_once_is_not_held(new_session: NewSession, process: Process) -> None:
    with Peer(lambda served: None) as peer:
        client = new_session(peer.url)
        with contextlib.suppress(ConnectFailed):  # unless the end comes after the connect was noticed
            client.connect()
        eventually(lambda: process.counters.connections == 0)
        assert not client.connected


def test_a_connection_that_has_ended_as_it_opens_serves_a_request_but_is_not_held(
    new_session: NewSession, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = connection_module.Connection.open

    def opened(*args: Any, **options: Any) -> connection_module.Connection:
        connection = usual(*args, **options)
        connection.hung_up = True
        return connection

    with Peer(answering(OK)) as peer:
        client = new_session(peer.url)
        with monkeypatch.context() as patch:
            patch.setattr(connection_module.Connection, "open", opened)
            with pytest.raises(ConnectFailed, match="closed by the server at once"):
                client.connect()
        assert (process.counters.connections, process.counters.opened) == (0, 0)
        client.connect()
        assert process.counters.opened == 1


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
