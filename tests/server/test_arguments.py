"""What the constructor refuses: it would otherwise fail each client, in silence."""

from __future__ import annotations

import ssl
from typing import Any

import gevent.ssl
import pytest

from parked.server import KeepAliveWSGIServer, Limits
from tests.server.test_tls import TLSClient
from tests.support import hello, serving


def made(**options: Any) -> KeepAliveWSGIServer:
    return KeepAliveWSGIServer(("127.0.0.1", 0), hello, log=None, environ={"SERVER_NAME": "test"}, **options)


def context(certificate: tuple[str, str]) -> ssl.SSLContext:
    of_server = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain(*certificate)
    return of_server


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("header_timout", "header_timeout"),
        ("max_conections", "max_connections"),
        ("certfil", "certfile"),
        ("ssl_contxt", "ssl_context"),
        ("handler_clas", "handler_class"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_one_that_was_meant(given: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"unknown keyword {given}; is it {meant}\\?"):
        made(**{given: 5})


def test_an_unknown_keyword_like_no_other_is_refused_also_beside_tls(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    for tls in ({}, {"certfile": cert, "keyfile": key}, {"ssl_context": context(certificate)}):
        with pytest.raises(TypeError, match=r"^unknown keyword zzz$"):
            made(zzz=1, **tls)


def test_keywords_of_tls_are_those_of_gevent(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    files = {"certfile": cert, "keyfile": key, "cert_reqs": ssl.CERT_NONE, "ciphers": "ECDHE+AESGCM"}
    for tls in (files, {"ssl_context": context(certificate)}):
        with (
            serving(**tls, server_side=True, suppress_ragged_eofs=False) as server,
            TLSClient(server) as client,
        ):
            assert client.ask().status == 200


def test_what_belongs_to_a_context_is_refused_beside_one(certificate: tuple[str, str]) -> None:
    with pytest.raises(TypeError, match="certfile cannot be given beside ssl_context"):
        made(ssl_context=context(certificate), certfile=certificate[0])


def test_a_context_of_ones_own_says_what_it_takes(certificate: tuple[str, str]) -> None:
    class Named:
        verify_mode = ssl.CERT_NONE

        def wrap_socket(self, sock: Any, server_side: bool, do_handshake_on_connect: bool, label: str) -> Any:
            assert label == "mine"
            return context(certificate).wrap_socket(sock, server_side, do_handshake_on_connect)

    class Anything(Named):
        def wrap_socket(self, sock: Any, **options: Any) -> Any:
            return super().wrap_socket(sock, **options)

    for own in (Named(), Anything()):
        with serving(ssl_context=own, label="mine") as server, TLSClient(server) as client:
            assert client.ask().status == 200
    with pytest.raises(TypeError, match="unknown keyword lable; is it label\\?"):
        made(ssl_context=Named(), lable="mine")


@pytest.mark.parametrize(
    "tls", [{"keyfile": "key.pem"}, {"certfile": None}, {"server_side": True}, {"ssl_context": None}]
)
def test_tls_without_a_certificate_is_refused(tls: dict[str, Any]) -> None:
    """gevent raises that for each connection."""
    with pytest.raises(ValueError, match="TLS needs certfile or ssl_context"):
        made(**tls)


BOUNDS = ["idle_timeout", "header_timeout", "body_timeout", "write_timeout", "max_connections", "max_pending"]


@pytest.mark.parametrize("name", BOUNDS)
def test_a_negative_timeout_or_bound_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has to be 0 or more, not -1"):
        made(**{name: -1})
    made(**{name: 0}).close()


@pytest.mark.parametrize("name", ["request_line_bytes", "header_bytes", "header_count", "body_bytes"])
def test_a_negative_limit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has to be 0 or more, not -1"):
        Limits(**{name: -1})
