"""The application: bodies of any length up to 10 KiB, so that a load test can ask for what it wants."""

from __future__ import annotations

from typing import Final

import falcon

from .pending import Events, Poll

#: Bounds of ?length=, in characters, and what is sent without it.
MIN_LENGTH: Final = 0
MAX_LENGTH: Final = 10240
DEFAULT_LENGTH: Final = 1024

_TEXT: Final = (b"The quick brown fox jumps over the lazy dog. " * (MAX_LENGTH // 45 + 1))[:MAX_LENGTH]


class Text:
    """`GET /?length=N`: a plain text of exactly N characters."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.data = _TEXT[: _length(request)]


class Health:
    """`GET /health`: whether the process answers at all."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.data = b"ok\n"


def _length(request: falcon.Request) -> int:
    # PERF: the usual query needs no general parse, which takes 4 us.
    query = request.query_string
    value: str | None = query[7:]
    if not (query.startswith("length=") and query[7:].isdigit()):
        value = request.get_param("length")
    if value is None:
        return DEFAULT_LENGTH
    if value.isascii() and value.isdigit() and len(value) <= 9:
        length = int(value)
        if MIN_LENGTH <= length <= MAX_LENGTH:
            return length
    raise falcon.HTTPBadRequest(
        title="length is not usable",
        description=f"length must be a whole number from {MIN_LENGTH} to {MAX_LENGTH}.",
    )


def _write_problem(request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
    """RFC 9457: the error as a problem document."""
    problem = {"type": "about:blank", "status": error.status_code, **error.to_dict()}
    if "description" in problem:
        problem["detail"] = problem.pop("description")
    response.content_type = "application/problem+json"
    response.data = falcon.media.JSONHandler().serialize(problem, "application/json")


def create_app() -> falcon.App[falcon.Request, falcon.Response]:
    """Make the application; it needs nothing, and keeps only who listens."""
    app = falcon.App(media_type=falcon.MEDIA_TEXT)
    app.add_route("/", Text())
    app.add_route("/health", Health())
    app.add_route("/poll", Poll())
    app.add_route("/events", Events())
    app.set_error_serializer(_write_problem)
    return app


application = create_app()
