from __future__ import annotations

import pytest

from parked.shared import private
from parked.shared.private import is_private, masked


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("http://user:p@ss:w0rd@host:80/a@b", "http://user:***@host:80/a@b"),
        ("http://a:b@one,https://c:d@two", "http://a:***@one,https://c:***@two"),
        ("http://host:80/?time=10:30", "http://host:80/?time=10:30"),
        ("http://[::1]:80/a:b@c", "http://[::1]:80/a:b@c"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("--header=x-api-key:\tabc", "--header=x-api-key:\t***"),
        ("Accept: text/html", "Accept: text/html"),
        ("/path?a=1&api_token=abc&b=2#c", "/path?a=1&api_token=***&b=2#c"),
        ("latency_ms.p99 > 200", "latency_ms.p99 > 200"),
        ("10:90", "10:90"),
    ],
)
def test_what_is_private_in_a_word_of_a_command_is_not_shown(word: str, shown: str) -> None:
    assert masked(word) == shown


def test_long_names_of_fields_are_judged_and_not_kept() -> None:
    assert is_private("X-Token")
    kept = private._remembered.cache_info().currsize
    for number in range(100):
        assert not is_private(f"X-{number}-" + "y" * 60_000)
        assert is_private(f"X-{number}-token-" + "y" * 60_000)
    assert private._remembered.cache_info().currsize == kept
