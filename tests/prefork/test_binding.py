from __future__ import annotations

import pytest

from parked.prefork.binding import parse, which_are_secure


def test_several_addresses_may_be_named_each_with_a_scheme() -> None:
    found = parse("127.0.0.1:80, https://[::1]:443,http://:8000,unix:/run/x")
    assert [(str(binding.address), binding.secure) for binding in found] == [
        ("127.0.0.1:80", None),
        ("[::1]:443", True),
        ("0.0.0.0:8000", False),
        ("unix:/run/x", None),
    ]


@pytest.mark.parametrize(
    ("text", "has_certificate", "secure"),
    [
        (":80", False, False),
        (":80", True, True),
        ("unix:/x", True, False),
        ("http://:80", True, False),
        ("https://unix:/x", True, True),
    ],
)
def test_tcp_speaks_tls_where_there_is_a_certificate(text: str, has_certificate: bool, secure: bool) -> None:
    assert parse(text)[0].is_secure(has_certificate) is secure


@pytest.mark.parametrize(
    ("text", "secure"),
    [
        ("https://:443,http://127.0.0.1:80,unix:/x", [True, False, False]),
        ("unix:/x,http://127.0.0.1:80,https://0.0.0.0:443", [True, False, False]),  # in another order
        (
            "http://127.0.0.2:80,http://127.0.0.1:80",
            [True, False, False],
        ),  # one is gone, and goes by its kind
        ("https://unix:/x", [True, True, True]),
        ("https://:0,http://localhost:0,https://[::1]:0", [True, False, False]),
        ("127.0.0.1:8000", [True, True, False]),  # of a service manager
    ],
)
def test_a_socket_speaks_what_its_own_address_says(text: str, secure: list[bool]) -> None:
    names = [("0.0.0.0", 443), ("127.0.0.1", 80), "/x"]
    assert which_are_secure(parse(text), names, True) == secure


def test_any_free_port_may_be_asked_for_twice_but_no_other_address() -> None:
    assert len(parse("127.0.0.1:0,127.0.0.1:0")) == 2
    for text in (":80,http://0.0.0.0:80", "unix:/x,unix:/x"):
        with pytest.raises(ValueError, match="is there twice"):
            parse(text)


@pytest.mark.parametrize("text", ["", ":80,", "ftp://:80", "https://"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"needs"):
        parse(text)
