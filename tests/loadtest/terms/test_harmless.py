"""Text of strangers on a terminal and in a page."""

from __future__ import annotations

from parked.loadtest.terms.harmless import for_line, for_page, for_terminal


def test_what_moves_colours_or_hides_is_escaped_and_the_rest_stays() -> None:
    assert for_terminal("p50 3 ms\nµ, 中") == "p50 3 ms\nµ, 中"
    assert for_terminal("a\x1b[2J\r\x07b\u202e\x9b") == "a\\x1b[2J\\r\\x07b\\u202e\\x9b"


def test_what_is_part_of_a_line_does_not_end_it() -> None:
    assert for_line("µ, 中") == "µ, 中"
    assert for_line("1\nverdict      pass\r\n\u2028") == "1\\nverdict      pass\\r\\n\\u2028"


def test_in_a_page_it_is_text_and_stays_where_it_is() -> None:
    assert for_page("<b title='a'>\"\u202e\x1b") == "&lt;b title=&#x27;a&#x27;&gt;&quot;\\u202e\\x1b"
