"""A response as a task sees it."""

from __future__ import annotations

import encodings
import io
import json
from datetime import timedelta
from encodings.aliases import aliases
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, cast

from charset_normalizer import detect
from geventhttpclient.header import Headers
from locust.contrib.fasthttp import LocustBadStatusCode, LocustUserAgent
from locust.exception import CatchResponseError, LocustError, ResponseError
from requests.utils import get_encoding_from_headers

from parked.loadtest.client.errors import BadStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from parked.loadtest.client.streaming import Stream
    from parked.loadtest.client.wire import RawResponse

#: Bytes of a body that are handed out at a time where a task does not say how many.
PIECE_BYTES = 1024
#: Python's codecs by their names. It would keep any other that it is asked for, for ever; and those for names
#: of hosts take a time that grows with the square of the length.
CODECS = {*aliases, *(module.name for module in iter_modules(encodings.__path__))} - {"punycode", "idna"}


class Reporter(Protocol):
    """The session that a response came by."""

    def report(self, response: KeepAliveResponse, failure: Exception | None) -> None: ...

    def absolute(self, path: str) -> str: ...

    def context(self, given: Mapping[str, Any] | None) -> dict[str, Any]: ...


class StatusFailure(BadStatus, LocustBadStatusCode):
    """A status that is none of the valid ones; kin of what FastHttpUser has for it."""

    def __init__(self, code: int) -> None:
        Exception.__init__(self, f"status {code}")
        self.code = code
        self.url: str | None = None
        self.text = f"status {code}"
        self.kw_text = ""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"BadStatus({self.text!r})"


def failure_of(raw: RawResponse) -> StatusFailure | None:
    """The failure that a complete response stands for, as FastHttpUser sees it.

    Valid is a status below 400 that has a name, but for 300, 305 and 306.
    """
    return None if raw.status in LocustUserAgent.valid_response_codes else StatusFailure(raw.status)


class SentRequest:
    """The request that brought a response: `FastRequest`, as far as it can be read."""

    def __init__(self, url: str, message: bytes) -> None:
        head, _, body = message.partition(b"\r\n\r\n")
        self.url = url
        self.method = head.partition(b" ")[0].decode()
        self.headers = _headers(head)
        self.payload = self.body = self.data = body or None

    @property
    def full_url(self) -> str:
        return self.url


def _headers(head: bytes) -> Headers:
    found = Headers()
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found.add(name.decode("latin-1"), value.strip().decode("latin-1"))
    return found


def _decoded(content: bytes, encoding: str) -> str:
    known = encodings.normalize_encoding(encoding).lower()
    try:
        if known in CODECS:
            return content.decode(known, errors="replace")
    except (LookupError, UnicodeError):  # no encoding of text
        pass
    return content.decode(errors="replace")


class KeepAliveResponse:
    """The response as a task sees it, in the terms of Locust's `FastResponse` and `ResponseContextManager`.

    With `catch_response=True` it is to be used in a `with` block, whose end reports the request.

    :ivar status_code: 0 if there was no response.
    :ivar error: the failure, or None.
    :ivar content: body with its codings undone; None if there was no response.
    :ivar history: the responses that redirected to this one, the first one first.
    :ivar request_meta: what the request event will be given, by its names; a task may change what is in it
        before the end of the `with` block, an `exception` among it.
    """

    __slots__ = (
        "__dict__",
        "_catch_response",
        "_elapsed_s",
        "_entered",
        "_headers",
        "_manual_result",
        "_message",
        "_meta",
        "_path",
        "_raw",
        "_session",
        "encoding",
        "error",
        "js",
        "status_code",
    )

    #: In `__dict__` where there is one.
    _reader: io.BytesIO | None = None
    _stream: Stream | None = None
    #: The URL that was asked for, where it is not the first one's path on the session's server.
    _asked: str | None = None
    history: tuple[KeepAliveResponse, ...] | list[KeepAliveResponse] = ()

    def __init__(
        self,
        session: Reporter,
        raw: RawResponse | None,
        error: Exception | None,
        path: str,
        request_meta: dict[str, Any],
        catch_response: bool,
        message: bytes = b"",
        elapsed_s: float = 0.0,
    ) -> None:
        self._session = session
        self._raw = raw
        self._path = path
        self._message = message
        self._elapsed_s = elapsed_s
        self._headers: Headers | None = None
        self._catch_response = catch_response
        self._entered = False
        self._manual_result: bool | Exception | None = None
        self.status_code = 0 if raw is None else raw.status
        self.error = error
        self.encoding: str | None = None
        self._meta = request_meta

    @property
    def request_meta(self) -> dict[str, Any]:
        # Itself is put in only when asked for: a cycle that each request makes would be the collector's work.
        if "response" not in self._meta:
            first = self.history[0] if self.history else self
            self._meta |= {
                "response": self,
                "url": self._asked or first.url,
                "exception": self.error,
                "context": self._session.context(self._meta.get("context")),
            }
        return self._meta

    @request_meta.setter
    def request_meta(self, meta: dict[str, Any]) -> None:
        self._meta = {"response": self, **meta}

    @property
    def ok(self) -> bool:
        """A response came and its status is below 400."""
        return 0 < self.status_code < 400

    @property
    def status(self) -> str:
        """The status as text, as FastResponse has it."""
        return str(self.status_code)

    @property
    def headers(self) -> Headers:
        """Header fields; empty if there was no response."""
        if self._headers is None:
            self._headers = _headers(self._raw.head if self._raw else b"")
        return self._headers

    def info(self) -> Headers:
        return self.headers

    @property
    def url(self) -> str:
        """The URL that answered: the last one, if redirections were followed."""
        return self._session.absolute(self._path)

    @property
    def request(self) -> SentRequest:
        """What was sent: url, method, headers, body; the last request, if redirections were followed."""
        return SentRequest(self.url, self._message)

    _request = request

    @property
    def elapsed(self) -> timedelta:
        """From the start of the request, however late that was, to its end."""
        return timedelta(seconds=self._elapsed_s)

    @property
    def content(self) -> bytes | None:
        if self._raw is None:
            return None
        if self._stream is not None:
            self._read_rest(self._stream)
        return self._raw.body

    data = content

    def _read_rest(self, stream: Stream) -> None:
        assert self._raw is not None
        self._raw.body += b"".join(self._watched(iter(stream.piece, b"")))

    def _watched(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """A failure while a streamed body is read is the request's, where that is not reported yet."""
        try:
            yield from pieces
        except ConnectionError as failure:
            self.error = failure
            raise

    def __len__(self) -> int:
        return len(self.content or b"")

    def __bool__(self) -> bool:
        return True

    @property
    def text(self) -> str | None:
        """The body as text, in the charset of Content-Type or else the one that it looks like."""
        content = self.content
        if content is None:
            return None
        if self.encoding is None:
            declared = get_encoding_from_headers(cast(Any, self.headers))  # any case-blind mapping
            self.encoding = declared or str(detect(content)["encoding"] or "utf-8")
        return _decoded(content, self.encoding)

    def json(self) -> Any:
        """The body parsed as JSON; raises :class:`json.JSONDecodeError`."""
        try:
            return json.loads(self.content or b"")
        except UnicodeDecodeError:  # not in UTF-8, which RFC 8259 asks for
            return json.loads(self.text or "")

    # Piece by piece; with `stream=True` the body is not held as a whole

    def iter_content(self, chunk_size: int = PIECE_BYTES, decode_content: bool = True) -> Iterator[Any]:
        """The body in pieces of at most `chunk_size` bytes, its content coding undone.

        :param decode_content: as text where a piece is UTF-8, as FastResponse does.
        """
        for piece in self._pieces(chunk_size):
            try:
                yield piece.decode() if decode_content else piece
            except UnicodeDecodeError:
                yield piece

    def iter_lines(self, chunk_size: int = PIECE_BYTES, decode_unicode: bool = False) -> Iterator[Any]:
        """The body line by line, as each has come, without its line break; bytes unless text is asked for."""
        for line in self._lines(chunk_size):
            yield _decoded(line, self.encoding or "utf-8") if decode_unicode else line

    def _lines(self, chunk_size: int) -> Iterator[bytes]:
        begun: list[bytes] = []
        for piece in self._pieces(chunk_size):
            first, *rest = piece.split(b"\n")
            begun.append(first)
            for part in rest:
                yield b"".join(begun).removesuffix(b"\r")
                begun = [part]
        if last := b"".join(begun):
            yield last

    def _pieces(self, size: int) -> Iterator[bytes]:
        if self._raw is None:
            return
        if self._stream is None:
            body = self._raw.body
            yield from (body[start : start + size] for start in range(0, len(body), size))
            return
        for piece in self._watched(iter(self._stream.piece, b"")):
            yield from (piece[start : start + size] for start in range(0, len(piece), size))

    @property
    def stream(self) -> io.BytesIO:
        """The body as a file."""
        if self._reader is None:
            self._reader = io.BytesIO(self.content or b"")
        return self._reader

    def read(self, n: int | None = None) -> bytes:
        return self.stream.read(n)

    def readline(self) -> bytes:
        return self.stream.readline()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.stream)

    def isclosed(self) -> bool:
        """Whether all of it has been read off the connection."""
        return self._stream is None or self._stream.complete

    def release(self) -> None:
        """Give up what has not been read of a streamed response, and its connection with it."""
        if self._stream is not None:
            self._stream.close()

    close = release

    # What decides over the request

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
        if not self._entered or not self._catch_response:
            raise LocustError(
                f"{call} needs a with block: "
                f"with self.client.get(..., catch_response=True) as response: response.{call}"
            )

    def __enter__(self) -> KeepAliveResponse:
        self._entered = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        if self._stream is not None:
            self._stream.close()
        if not self._catch_response:  # reported already
            return False
        result = self._manual_result
        if result is None:
            if exc_type is None:
                result = self.error
                if result is None and "exception" in self._meta:
                    result = self._assigned()
            elif isinstance(exc, ResponseError | CatchResponseError) or exc is self.error:
                result = exc  # from raise_for_status(), or a failure in the task's own words
            else:
                return False
        self._session.report(self, result if isinstance(result, Exception) else None)
        return exc_type is None or (self._manual_result is None and isinstance(exc, ResponseError))

    def _assigned(self) -> Exception | None:
        """A failure that the task has put among what the request event is given."""
        given = self._meta["exception"]
        return given if isinstance(given, Exception) or given is None else CatchResponseError(given)
