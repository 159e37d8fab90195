"""Servers that users talk to."""

from __future__ import annotations

import functools
import ssl
from types import SimpleNamespace
from typing import Any

import pytest

from parked.loadtest.client.origin import Origin, tls_context


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
        Origin("https://127.0.0.1", {}, functools.partial(tls_context, user), 0) for user in users
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
    assert tls_context(user) is own


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
