"""A response as a task sees it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol, cast

from charset_normalizer import detect
from geventhttpclient.header import Headers
from locust.exception import CatchResponseError, LocustError, ResponseError
from requests.utils import get_encoding_from_headers

if TYPE_CHECKING:
    from types import TracebackType

    from parked.loadtest.client.wire import RawResponse


class Reporter(Protocol):
    """The session that a response came by."""

    def report(self, response: KeepAliveResponse, failure: Exception | None) -> None: ...

    def absolute(self, path: str) -> str: ...


class KeepAliveResponse:
    """The response as a task sees it, in the terms of Locust's `FastResponse` and `ResponseContextManager`.

    With `catch_response=True` it is to be used in a `with` block, whose end reports the request.

    :ivar status_code: 0 if there was no response.
    :ivar error: the failure, or None.
    :ivar content: body with its codings undone; None if there was no response.
    :ivar request_meta: what the request event will be given, by its names; a task may change the name or
        the response time before the end of the `with` block.
    """

    __slots__ = (
        "__dict__",
        "_catch_response",
        "_entered",
        "_headers",
        "_manual_result",
        "_path",
        "_raw",
        "_session",
        "encoding",
        "error",
        "js",
        "request_meta",
        "status_code",
    )

    def __init__(
        self,
        session: Reporter,
        raw: RawResponse | None,
        error: Exception | None,
        path: str,
        request_meta: dict[str, Any],
        catch_response: bool,
    ) -> None:
        self._session = session
        self._raw = raw
        self._path = path
        self._headers: Headers | None = None
        self._catch_response = catch_response
        self._entered = False
        self._manual_result: bool | Exception | None = None
        self.status_code = 0 if raw is None else raw.status
        self.error = error
        self.encoding: str | None = None
        self.request_meta = request_meta

    @property
    def ok(self) -> bool:
        """A response came and its status is below 400."""
        return 0 < self.status_code < 400

    @property
    def headers(self) -> Headers:
        """Header fields; empty if there was no response."""
        if self._headers is None:
            self._headers = Headers()
            for line in (self._raw.head if self._raw else b"").split(b"\r\n")[1:]:
                name, colon, value = line.partition(b":")
                if colon:
                    self._headers.add(name.decode("latin-1"), value.strip().decode("latin-1"))
        return self._headers

    @property
    def url(self) -> str:
        """The URL that was asked for, whatever redirections followed."""
        return self._session.absolute(self._path)

    @property
    def content(self) -> bytes | None:
        return None if self._raw is None else self._raw.body

    @property
    def text(self) -> str | None:
        """The body as text, in the charset of Content-Type or else the one that it looks like."""
        content = self.content
        if content is None:
            return None
        if self.encoding is None:
            declared = get_encoding_from_headers(cast(Any, self.headers))  # any case-blind mapping
            self.encoding = declared or str(detect(content)["encoding"] or "utf-8")
        try:
            return content.decode(self.encoding, errors="replace")
        except LookupError:  # the server names a charset that is none
            return content.decode(errors="replace")

    def json(self) -> Any:
        """The body parsed as JSON; raises :class:`json.JSONDecodeError`."""
        try:
            return json.loads(self.content or b"")
        except UnicodeDecodeError:  # not in UTF-8, which RFC 8259 asks for
            return json.loads(self.text or "")

    def raise_for_status(self) -> None:
        """Raise what made the request fail, if anything did."""
        if isinstance(self._manual_result, Exception):
            raise self._manual_result
        if self.error is not None and self._manual_result is None:
            raise self.error

    def success(self) -> None:
        """Report the request as successful, whatever its status."""
        self._in_with_block("success()")
        self._manual_result = True

    def failure(self, exc: Exception | str) -> None:
        """Report the request as failed, for the given reason."""
        self._in_with_block("failure(...)")
        self._manual_result = exc if isinstance(exc, Exception) else CatchResponseError(exc)

    def _in_with_block(self, call: str) -> None:
        if not self._entered:
            raise LocustError(
                f"{call} needs a with block: "
                f"with self.client.get(..., catch_response=True) as response: response.{call}"
            )

    def __enter__(self) -> KeepAliveResponse:
        if not self._catch_response:
            raise LocustError("to use a response in a with block, pass catch_response=True")
        self._entered = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        result = self._manual_result
        if result is None:
            if exc_type is None:
                result = self.error or True
            elif isinstance(exc, ResponseError | CatchResponseError) or exc is self.error:
                result = exc  # from raise_for_status(), or a failure in the task's own words
            else:
                return False
            exc_type = None
        self._session.report(self, result if isinstance(result, Exception) else None)
        return exc_type is None
