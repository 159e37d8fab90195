from __future__ import annotations

import pytest

from parked.shared.addresses import Address, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        (":80", Address("0.0.0.0", 80)),
        ("[::1]:8000", Address("::1", 8000)),
        ("unix:/run/a.sock", Address("", 0, "/run/a.sock")),
    ],
)
def test_addresses_are_read_and_written(text: str, expected: Address) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "nonsense", "::1:80", "a:65536", "a:-1", "a:1²", "unix:", "unix:/" + "x" * 200]
)
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="needs"):
        parse(text)
