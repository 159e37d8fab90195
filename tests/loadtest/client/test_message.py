"""Requests as their bytes: what goes over the wire."""

from __future__ import annotations

import io
from typing import Any

import pytest

from parked.loadtest.client.coding import ACCEPTED
from parked.loadtest.client.origin import basic_authorization
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import (
    Peer,
    Served,
    answering,
    head_fields,
    response,
)

OK = response()


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
