"""Text of strangers (a server, a folder, a locustfile) made harmless for where it is shown."""

from __future__ import annotations

import html


def for_page(text: str) -> str:
    """For HTML, between tags and in attributes; nothing in it turns the direction of what is around it."""
    return html.escape(for_terminal(text))


def for_terminal(text: str) -> str:
    """With escapes in place of everything that moves, colours or hides, but for line ends."""
    if text.isascii() and text.isprintable():
        return text
    return "\n".join(
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        for line in text.split("\n")
    )
