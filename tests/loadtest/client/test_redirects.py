"""Redirections: what goes along to where."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, answering, by_path, response

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
