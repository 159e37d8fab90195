"""What a process's users share: origins, and requests counted here and in Locust."""

from __future__ import annotations

import functools
import ssl
from types import SimpleNamespace
from typing import Any

import pytest
from locust.env import Environment

from parked.loadtest.client.errors import BadStatus
from parked.loadtest.client.process import Origin, Process, _tls_context
from parked.user import KeepAliveUser
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, answering, eventually, response


def test_a_process_has_one_of_each(environment: Environment) -> None:
    assert Process.of(environment) is Process.of(environment)


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
    origin = Origin(url, {}, ssl.create_default_context, 0)
    assert origin.url == shown
    assert f"Host: {host}\r\n".encode() in origin.tail
    assert origin.tail.startswith(b" HTTP/1.1\r\n")
    assert origin.tls_context is None
    assert origin.address[1] == (8000 if "8000" in url else 80)
    assert ("Authorization" in origin.tail.decode()) == ("user" in url)


def test_an_https_origin_verifies_only_when_told_to() -> None:
    users: list[Any] = [
        SimpleNamespace(insecure=insecure, ssl_context_factory=None) for insecure in (True, False)
    ]
    unverified, verified = (
        Origin("https://127.0.0.1", {}, functools.partial(_tls_context, user), 0) for user in users
    )
    assert unverified.address[1] == 443
    assert unverified.tls_context is not None
    assert unverified.tls_context.verify_mode == ssl.CERT_NONE
    assert verified.tls_context is not None
    assert verified.tls_context.verify_mode == ssl.CERT_REQUIRED
    assert verified.tls_context.check_hostname


def test_a_classs_own_tls_context_is_used() -> None:
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    user: Any = SimpleNamespace(insecure=True, ssl_context_factory=lambda: own)
    assert _tls_context(user) is own


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://", "", "http:///path"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        Origin(url, {}, ssl.create_default_context, 0)


def test_fields_that_a_request_brings_replace_the_shared_ones() -> None:
    origin = Origin("http://127.0.0.1", {"X-A": "1", "user-agent": "mine"}, ssl.create_default_context, 0)
    assert b"X-A: 1\r\n" in origin.tail
    assert origin.tail.lower().count(b"user-agent:") == 1
    assert b"X-A" not in origin.tail_beside(["x-a"])
    assert b"Host" in origin.tail_beside(["x-a"])


def test_users_of_a_class_share_an_origin(new_session: NewSession, process: Process) -> None:
    with Peer(answering(response())) as peer:
        session = new_session(peer.url)
        user: Any = session._user
        again = process.origin(peer.url, user)
        assert again is session._origin
        assert process.origin(peer.url, new_session(peer.url)._user) is not again, (
            "header fields are a class's"
        )


def test_a_sample_is_sent_each_second_and_says_what_the_server_calls_itself(
    environment: Environment, new_session: NewSession, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    runner: Any = environment.runner
    monkeypatch.setattr(runner, "send_message", lambda kind, data: sent.append(data))
    with Peer(answering(response(b"ok", "Server: mine/1"))) as peer:
        session = new_session(peer.url)
        process.send_sample()
        assert sent[-1]["server"] == ""
        session.get("/")
        count = len(sent)
        eventually(lambda: len(sent) >= count + 2)
    assert sent[-1]["server"] == "mine/1"
    assert sent[-1]["source"].startswith("127.1.0.")
    assert (sent[-1]["requests"], sent[-1]["connections"]) == (1, 1)


def test_the_end_of_a_test_folds_and_reports_what_is_left(
    environment: Environment, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    runner: Any = environment.runner
    monkeypatch.setattr(runner, "send_message", lambda kind, data: sent.append(data))
    user: Any = object()
    process.request_done(user, "GET", "/", 5.0, 10, 100, BadStatus("status 500"), None, 0.0, None)
    environment.events.test_stop.fire(environment=environment)
    assert environment.stats.total.num_requests == environment.stats.total.num_failures == 1
    assert sent[-1]["requests"] == 1


def test_users_are_spread_evenly_over_several_hosts(environment: Environment) -> None:
    process = Process.of(environment)
    hosts = "http://127.0.0.1:1,http://127.0.0.1:2,http://127.0.0.1:3"
    environment.runner.worker_index = 1
    user_class = type("User", (KeepAliveUser,), {"host": hosts})
    users = [user_class(environment) for _ in range(7)]
    begin = [str(user.host)[-1] for user in users]
    assert begin == ["2", "3", "1", "2", "3", "1", "2"]
    one, other = (process.origin(f"http://127.0.0.1:{n}", users[0]).sources for n in (2, 3))
    assert one is not other, "each target counts its own ports"
