from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import gevent.ssl
import pytest

from parked.server.certificates import server_context
from parked.server.client_certificate import distinguished_name, variables
from tests.certificates import make
from tests.support import Client, serving

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(PROTOCOL_TLS|wrap_socket).* is deprecated:DeprecationWarning",
    "ignore:unclosed <socket object:ResourceWarning",
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ([[("countryName", "CH")], [("organizationName", "A")], [("commonName", "b")]], "CN=b,O=A,C=CH"),
        ([[("commonName", "a, b"), ("userId", "1")]], r"CN=a\, b+UID=1"),
        ([[("commonName", "#x ")]], r"CN=\#x\ "),
        ([[("emailAddress", 'a"b')]], r"emailAddress=a\"b"),
        ([], ""),
    ],
)
def test_names_are_written_as_rfc_4514_has_it(name: Any, text: str) -> None:
    assert distinguished_name(name) == text


def test_without_a_certificate_that_is_all_there_is_to_say() -> None:
    assert variables(None) == variables({}) == {"SSL_CLIENT_VERIFY": "NONE"}


def told(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    names = {key: value for key, value in environ.items() if key.startswith("SSL_CLIENT")}
    return [repr(names).encode()]


def ask(server: Any, certificate: tuple[Path, Path] | None = None) -> bytes:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(*certificate)
    client = Client(server)
    client.file.close()
    with client:
        client.sock = context.wrap_socket(client.sock)
        client.file = client.sock.makefile("rb")
        client.ask()
        return client.ask(b"GET / HTTP/1.1\r\nHost: x\r\nSSL-Client-S-DN: CN=forged\r\n\r\n").body


def test_the_application_finds_who_the_client_is(tmp_path: Path) -> None:
    ours = make(tmp_path, "authority", "/CN=authority")
    server_pair = make(tmp_path, "server")
    known = make(tmp_path, "known", "/C=CH/CN=known", ours)
    stranger = make(tmp_path, "stranger", "/CN=stranger")
    arguments = (*map(str, server_pair), "", str(ours.certificate))
    with serving(told, ssl_context=server_context(*arguments, "optional")) as server:
        assert ask(server) == b"{'SSL_CLIENT_VERIFY': 'NONE'}"
        found = eval(ask(server, known))
        assert found["SSL_CLIENT_S_DN"] == "CN=known,C=CH"
        assert found["SSL_CLIENT_I_DN"] == "CN=authority"
        assert found["SSL_CLIENT_VERIFY"] == "SUCCESS"
        with pytest.raises(OSError, match=r".*"):
            ask(server, stranger)
    with serving(told, ssl_context=server_context(*arguments, "required")) as server:
        with pytest.raises(OSError, match=r".*"):
            ask(server)
        assert b"known" in ask(server, known)
