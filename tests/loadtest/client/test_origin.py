"""Servers that users talk to, and what users share of them."""

from __future__ import annotations

import socket
import ssl
from types import SimpleNamespace
from typing import Any

import pytest

from parked.loadtest.client import origin as origin_module
from parked.loadtest.client.errors import ConnectFailed
from parked.loadtest.client.origin import Origin, Server, tls_context
from parked.loadtest.client.process import Process
from parked.user import KeepAliveUser
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, answering, response

OK = response()


def made(url: str, **default_headers: Any) -> Origin:
    return Origin(url, Server("127.0.0.1", 80, 0), default_headers, None)


@pytest.mark.parametrize(
    ("url", "shown", "host"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://user:secret@127.0.0.1:8000", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "http://[::1]:8000", "[::1]:8000"),
        ("http://127.0.0.1", "http://127.0.0.1", "127.0.0.1"),
    ],
)
def test_an_origin_has_the_servers_name_and_no_secret(url: str, shown: str, host: str) -> None:
    origin = made(url)
    assert origin.url == shown
    assert f"Host: {host}\r\n".encode() in origin.tail
    assert origin.tail.startswith(b" HTTP/1.1\r\n")
    assert origin.place.port == (8000 if "8000" in url else 80)
    assert ("Authorization" in origin.tail.decode()) == ("user" in url)


def test_certificates_are_verified_unless_a_class_or_insecure_says_otherwise() -> None:
    assert KeepAliveUser.insecure is False
    unverified, verified = (
        tls_context(SimpleNamespace(insecure=insecure, ssl_context_factory=None))
        for insecure in (True, False)
    )
    assert unverified.verify_mode == ssl.CERT_NONE
    assert verified.verify_mode == ssl.CERT_REQUIRED
    assert verified.check_hostname


def test_a_classs_own_tls_context_is_used() -> None:
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    user: Any = SimpleNamespace(insecure=True, ssl_context_factory=lambda: own)
    assert tls_context(user) is own


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://", "", "http:///path"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        made(url)


def test_fields_that_a_request_brings_replace_the_shared_ones() -> None:
    origin = made("http://127.0.0.1", **{"X-A": "1", "user-agent": "mine"})
    assert b"X-A: 1\r\n" in origin.tail
    assert origin.tail.lower().count(b"user-agent:") == 1
    assert b"X-A" not in origin.tail_beside(("x-a",))
    assert b"Host" in origin.tail_beside(("x-a",))
    assert b"X-A" not in origin.tail_beside((), bare=True)


# What is a user's own


def test_users_who_say_the_same_share_an_origin(new_session: NewSession) -> None:
    with Peer(answering(OK)) as peer:
        one, other = new_session(peer.url), new_session(peer.url)
        assert one._origin is other._origin
        assert new_session(peer.url, default_headers={"X": "1"})._origin is not one._origin


def test_users_with_tokens_of_their_own_send_their_own(environment: Any) -> None:
    from parked.user import KeepAliveUser

    class Tokens(KeepAliveUser):
        made = 0

        def __init__(self, environment: Any) -> None:
            Tokens.made += 1
            self.default_headers = {"Authorization": f"Bearer {Tokens.made}"}
            super().__init__(environment)

    with Peer(answering(OK)) as peer:
        Tokens.host = peer.url
        users = [Tokens(environment) for _ in range(3)]
        for user in users:
            user.client.get("/")
            user.client.close()
        for number, request in enumerate(peer.requests, 1):
            assert f"Authorization: Bearer {number}\r\n".encode() in request
        assert len({id(user.client._origin.server) for user in users}) == 1, "one server for all"


def test_a_method_of_a_users_own_makes_its_tls_context(environment: Any) -> None:
    from parked.user import KeepAliveUser

    class Certificates(KeepAliveUser):
        host = "https://127.0.0.1:1"

        def ssl_context_factory(self) -> ssl.SSLContext:  # type: ignore[override]
            return ssl.create_default_context()

    class Shared(KeepAliveUser):
        host = "https://127.0.0.1:1"
        ssl_context_factory = staticmethod(ssl.create_default_context)

    contexts = [Certificates(environment).client._origin.tls_context for _ in range(2)]
    assert contexts[0] is not contexts[1]
    contexts = [Shared(environment).client._origin.tls_context for _ in range(2)]
    assert contexts[0] is contexts[1]


# Names and addresses


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[int]:
    """Make every name have these addresses; returns a list that grows with each look-up."""
    asked: list[int] = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(1)
        if not addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in addresses
        ]

    monkeypatch.setattr(origin_module.socket, "getaddrinfo", getaddrinfo)
    return asked


def test_connections_are_spread_over_all_addresses_of_a_name(
    new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Peer(answering(OK), host="127.0.0.1") as peer:
        resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
        server = Server("two.test", peer.port, 0)
        first = [server.addresses()[0].socket_address[0] for _ in range(4)]
        assert first == ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"]


def test_where_one_address_refuses_the_next_is_tried(
    new_session: NewSession, monkeypatch: pytest.MonkeyPatch, process: Process
) -> None:
    with Peer(answering(OK), host="127.0.0.2") as peer:
        resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
        for _ in range(2):
            assert new_session(f"http://two.test:{peer.port}").get("/").text == "ok"
        assert process.counters.failures == 0
        assert process.counters.connections == 2


def test_addresses_of_another_version_of_ip_than_the_sources_are_left_out(
    new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARKED_SOURCE", "127.3.0.1")
    with Peer(answering(OK), host="127.0.0.1") as peer:
        resolving(monkeypatch, "::1", "127.0.0.1")
        assert new_session(f"http://both.test:{peer.port}").get("/").text == "ok"
        resolving(monkeypatch, "::1")
        failed = new_session(f"http://six.test:{peer.port}").get("/")
        assert isinstance(failed.error, ConnectFailed)
        assert str(failed.error) == "PARKED_SOURCE=127.3.0.1 has IPv4, the server's address is IPv6"


def test_a_name_is_looked_up_again_when_a_connection_is_opened_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = resolving(monkeypatch, "127.0.0.1")
    server = Server("one.test", 80, 0)
    server.addresses()
    server.addresses()
    assert len(asked) == 1
    monkeypatch.setattr(origin_module, "RESOLVED_FOR_S", 0.0)
    server._stale_at = 0.0
    server.addresses()
    assert len(asked) == 2


def test_an_address_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolving(monkeypatch, "127.0.0.1")
    monkeypatch.setattr(origin_module, "RESOLVED_FOR_S", 0.0)
    server = Server("127.0.0.1", 80, 0)
    server.addresses()
    server.addresses()
    assert len(asked) == 1


def test_a_name_without_an_address_is_a_failure_of_each_request(
    new_session: NewSession, monkeypatch: pytest.MonkeyPatch, process: Process
) -> None:
    resolving(monkeypatch)
    answer = new_session("http://nobody.test").get("/")
    assert isinstance(answer.error, ConnectFailed)
    assert "nobody.test: Name or service not known" in str(answer.error)
    assert process.counters.failures_by_kind["connect"] == 1
