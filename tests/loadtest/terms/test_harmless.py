"""Text of strangers on a terminal."""

from __future__ import annotations

from parked.loadtest.terms.harmless import for_terminal


def test_what_moves_colours_or_hides_is_escaped_and_the_rest_stays() -> None:
    assert for_terminal("p50 3 ms\nµ, 中") == "p50 3 ms\nµ, 中"
    assert for_terminal("a\x1b[2J\r\x07b\u202e\x9b") == "a\\x1b[2J\\r\\x07b\\u202e\\x9b"
