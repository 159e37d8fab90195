from __future__ import annotations

import pytest

from parked.server.unix import ends


@pytest.mark.parametrize(
    ("host", "scheme", "name", "port"),
    [
        ("example.org", "http", "example.org", "80"),
        ("example.org", "https", "example.org", "443"),
        ("example.org:8080", "http", "example.org", "8080"),
        ("example.org:", "http", "example.org", "80"),
        ("[::1]", "http", "[::1]", "80"),
        ("[::1]:8000", "http", "[::1]", "8000"),
        ("", "http", "localhost", "80"),
        (":8000", "http", "localhost", "8000"),
    ],
)
def test_both_ends_have_what_pep_3333_wants(host: str, scheme: str, name: str, port: str) -> None:
    assert ends(host, scheme) == {"SERVER_NAME": name, "SERVER_PORT": port, "REMOTE_ADDR": ""}
