"""Text of strangers (a server, a folder, a locustfile) made harmless for where it is shown."""

from __future__ import annotations

import html


def for_page(text: str) -> str:
    """For HTML, between tags and in attributes; nothing in it turns the direction of what is around it."""
    return html.escape(for_terminal(text))


def for_terminal(text: str) -> str:
    """With escapes in place of everything that moves, colours or hides, but for line ends."""
    return "\n".join(map(for_line, text.split("\n")))


def for_line(text: str) -> str:
    """The same for what is part of one line: it can't end it, and begin another in our name."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
