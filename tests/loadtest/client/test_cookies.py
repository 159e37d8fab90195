"""Cookies of a user."""

from __future__ import annotations

from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import (
    Peer,
    answering,
    by_path,
    head_fields,
    response,
)

OK = response()


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
