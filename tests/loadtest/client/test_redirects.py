"""Redirections: what goes along to where."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from parked.loadtest.client import cookies, session
from parked.loadtest.client.errors import BadResponse, ConnectFailed
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, answering, by_path, head_fields, response

OK = response()


def moved(to: str, status: int = 302) -> bytes:
    return response(b"", f"Location: {to}", status=f"{status} Moved")


def test_nothing_confidential_goes_along_to_another_server(new_session: NewSession) -> None:
    given = {"X-Api-Key": "mine-1", "X-Amz-Security-Token": "mine-2", "X-Plain": "plain"}
    own = {"Authorization": "mine-3", "Cookie": "mine=4", "X-Team": "mine-5"}
    with Peer(answering(OK)) as other, Peer(by_path({"/a": moved(f"{other.url}/b")})) as peer:
        client = new_session(peer.url, default_headers=own)
        client.headers["X-Session-Token"] = "mine-6"
        assert client.get("/a", headers=given).text == "ok"
        (sent,) = other.requests
        assert b"mine" not in sent
        assert b"X-Plain: plain" in sent
        assert b"Host: 127.0.0.1:%d\r\n" % other.port in sent
        assert peer.requests[0].count(b"mine") == 6, "to its own server all of them went"


def test_what_was_left_out_for_another_server_stays_out_on_the_way_back(new_session: NewSession) -> None:
    back: dict[str, bytes] = {}
    with Peer(by_path(back)) as other, Peer(by_path({"/c": OK})) as peer:
        back["/b"] = moved(f"{peer.url}/c")
        client = new_session(peer.url, default_headers={"Authorization": "mine"})
        peer._serve = by_path({"/a": moved(f"{other.url}/b"), "/c": OK})
        assert client.get("/a").ok
        assert b"mine" in peer.requests[0]
        assert b"mine" not in peer.requests[1]


@pytest.mark.parametrize("spelt", ["http://LOCALHOST:{port}/b", "http://me:pw@localhost:{port}/b", "/b", "b"])
def test_ones_own_server_is_known_however_it_is_spelt(new_session: NewSession, spelt: str) -> None:
    with Peer(by_path({})) as peer:
        peer._serve = by_path({"/a": moved(spelt.format(port=peer.port)), "/b": OK})
        client = new_session(f"http://me:pw@localhost:{peer.port}")
        assert client.get("/a").text == "ok"
        assert [b"Authorization: Basic bWU6cHc=" in request for request in peer.requests] == [True, True]
        assert len(peer.connections) == 1


@pytest.mark.parametrize(
    "body",
    [
        lambda: {"data": io.BytesIO(b"the body")},
        lambda: {"files": {"file": ("name.txt", io.BytesIO(b"the body"), "text/plain")}},
        lambda: {"data": (part for part in [b"the ", b"body"])},
    ],
    ids=["file", "files", "generator"],
)
@pytest.mark.parametrize("status", [307, 308])
def test_a_body_that_can_be_read_once_is_sent_twice(
    new_session: NewSession, body: Callable[[], dict[str, Any]], status: int
) -> None:
    with Peer(by_path({"/a": moved("/b", status), "/b": OK})) as peer:
        assert new_session(peer.url).post("/a", **body()).ok
        first, second = (request.partition(b"\r\n\r\n")[2] for request in peer.requests)
        assert b"the body" in first
        assert second == first


@pytest.mark.parametrize(
    ("to", "kind", "text"),
    [
        ("ftp://mine-1/", BadResponse, "redirection to no http:// or https:// URL"),
        ("http://x:mine-1/", BadResponse, "redirection to no http:// or https:// URL"),
        ("http://mine\0-1/", BadResponse, "redirection to no http:// or https:// URL"),
        ("http://mine-1.invalid/", ConnectFailed, "the server that a redirection leads to can't be reached"),
    ],
)
def test_a_redirection_that_leads_nowhere_is_told_in_our_own_words(
    new_session: NewSession, to: str, kind: type[Exception], text: str
) -> None:
    """Failures are grouped by their texts: a server must not make a new one each time."""
    with Peer(answering(moved(to))) as peer:
        error = new_session(peer.url).get("/").error
        assert type(error) is kind
        assert str(error) == text


def test_connections_to_other_servers_are_bounded(
    new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MOST_OTHERS", 2)
    with Peer(answering(OK)) as first, Peer(answering(OK)) as second, Peer(answering(OK)) as third:
        others = [first, second, third]
        with Peer(by_path({f"/{n}": moved(other.url) for n, other in enumerate(others)})) as peer:
            client = new_session(peer.url)
            for path in ("/0", "/1", "/2", "/0", "/1"):
                assert client.get(path).ok
            assert client._others is not None
            assert [other._origin.place.port for other in client._others.values()] == [
                first.port,
                second.port,
            ]
            assert [len(other.connections) for other in others] == [2, 2, 1]


def test_cookies_are_bounded_in_number_and_size(
    new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    parse = cookies.message_from_string

    def watched(text: str, **more: Any) -> Any:
        parsed.append(text)
        return parse(text, **more)

    monkeypatch.setattr(cookies, "message_from_string", watched)
    many = [f"Set-Cookie: c{number}=x" for number in range(cookies.MOST_COOKIES + 20)]
    with Peer(answering(response(b"ok", *many, "Set-Cookie: long=" + "x" * 5000))) as peer:
        client = new_session(peer.url)
        assert client.get("/").ok
        kept = {cookie.name for cookie in client.cookiejar}
        assert len(kept) == cookies.MOST_COOKIES - 1
        assert {"long", "c0"}.isdisjoint(kept)
        assert f"c{cookies.MOST_COOKIES + 19}" in kept
        assert parsed[0].count("Set-Cookie: ") == cookies.MOST_COOKIES, (
            "each takes its time, also one not kept"
        )


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
        assert [passed.request.method for passed in answer.history] == ["GET", "GET"]
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


def test_a_redirection_without_a_location_is_the_answer_to_its_request(new_session: NewSession) -> None:
    with Peer(answering(response(b"no", status="302 Found"))) as peer:
        answer = new_session(peer.url).post("/a", data="x")
        assert (answer.status_code, answer.request.method, answer.request.body) == (302, "POST", b"x")
