"""A WSGI application that does nothing: what is left of a server's time when Falcon's is taken away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_TEXT: Final = b"x" * 10240


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """`GET /?length=N`: a plain text of exactly N characters."""
    content = _TEXT[: int(environ["QUERY_STRING"][7:] or 0)]
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))])
    return [content]
