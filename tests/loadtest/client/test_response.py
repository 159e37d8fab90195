"""Responses as a task sees them."""

from __future__ import annotations

import encodings
import json
from types import SimpleNamespace
from typing import Any

import pytest
from locust.exception import CatchResponseError, LocustError, RescheduleTask, ResponseError

from parked.loadtest.client.errors import BadStatus, ClosedByPeer
from parked.loadtest.client.response import KeepAliveResponse, failure_of
from tests.loadtest.client.test_wire import OK, read


def test_a_status_that_fasthttpuser_does_not_take_for_a_success_is_a_failure() -> None:
    def failure(status: int) -> BadStatus | None:
        return failure_of(read(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status))

    assert failure(200) is failure(302) is failure(304) is None
    assert str(failure(300)) == "status 300"
    assert str(failure(400)) == "status 400"
    assert str(failure(503)) == "status 503"


class Reports(list[Exception | None]):
    """Stands for the session: keeps what each response reported."""

    def report(self, _response: KeepAliveResponse, failure: Exception | None) -> None:
        self.append(failure)

    def absolute(self, path: str) -> str:
        return "http://test" + path


def seen(message: bytes, reports: Any = None, catch: bool = True) -> KeepAliveResponse:
    raw = read(message)
    meta = {"name": "/a"}
    return KeepAliveResponse(
        SimpleNamespace() if reports is None else reports, raw, failure_of(raw), "/a", meta, catch
    )


FINE = OK + b"Content-Length: 2\r\n\r\nok"
FAILED = b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno"


def test_a_response_shows_what_came() -> None:
    response = seen(
        OK
        + b"content-TYPE: application/json\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 9\r\n\r\n"
        b'{"a": 12}',
        Reports(),
    )
    assert (response.status_code, response.ok, response.error, response.url) == (
        200,
        True,
        None,
        "http://test/a",
    )
    assert response.content == b'{"a": 12}'
    assert response.text == '{"a": 12}'
    assert response.json() == {"a": 12}
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers.getlist("set-cookie") == ["a=1", "b=2"]
    response.raise_for_status()
    assert not seen(FAILED).ok
    with pytest.raises(BadStatus):
        seen(FAILED).raise_for_status()


def test_no_response_shows_as_status_0() -> None:
    response = KeepAliveResponse(Reports(), None, ClosedByPeer("x"), "/", {}, False)  # type: ignore[arg-type]
    assert (response.status_code, response.ok, response.content, response.text) == (0, False, None, None)
    assert dict(response.headers) == {}
    with pytest.raises(json.JSONDecodeError):
        response.json()
    with pytest.raises(ClosedByPeer):
        response.raise_for_status()


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/plain; charset=utf-8", "grün".encode(), "grün"),
        ("text/plain; charset=iso-8859-1", "grün".encode("latin-1"), "grün"),
        ("text/plain; charset=no-such-thing", "grün".encode(), "grün"),
        ("text/plain; charset=punycode", b"abc-\xff", "abc-\ufffd"),
        ("text/plain; charset=idna", b"abc\xff", "abc\ufffd"),
        ("text/plain; charset=-Punycode", b"abc-\xff", "abc-\ufffd"),
        ("text/plain; charset=windows-1252", b"\x80", "\u20ac"),
        ("text/plain; charset=cp874", b"\xa1", "\u0e01"),
        ("text/plain; charset=zlib", b"abc", "abc"),
        ("text/plain; charset=utf\0", b"abc", "abc"),
        ("text/plain; charset=utf-8", b"gr\xffn", "gr\ufffdn"),
        ("application/octet-stream", b"plain ascii", "plain ascii"),
        ("text/html", b"", ""),
    ],
)
def test_text_is_decoded_as_the_server_says(content_type: str, body: bytes, text: str) -> None:
    head = OK + f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    assert seen(head + body).text == text


def test_names_of_charsets_that_a_server_makes_up_are_not_kept() -> None:
    before = len(encodings._cache)  # type: ignore[attr-defined]
    for number in range(3):
        head = OK + b"Content-Type: text/plain; charset=none-%d\r\nContent-Length: 1\r\n\r\n" % number
        assert seen(head + b"a").text == "a"
    assert len(encodings._cache) == before  # type: ignore[attr-defined]


def test_json_that_is_not_in_utf_8_is_read_in_its_charset() -> None:
    body = '{"a": "ü"}'.encode("latin-1")
    head = OK + b"Content-Type: text/json; charset=iso-8859-1\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert seen(head + body).json() == {"a": "ü"}


def test_the_end_of_the_with_block_reports_once() -> None:
    reports = Reports()
    with seen(FINE, reports):
        assert reports == []
    with seen(FAILED, reports):
        pass
    assert [str(failure) for failure in reports] == ["None", "status 500"]


def test_success_and_failure_decide() -> None:
    reports = Reports()
    with seen(FAILED, reports) as response:
        response.success()
        response.raise_for_status()
    with seen(FINE, reports) as response:
        response.failure("too slow")
    with seen(FINE, reports) as response:
        response.failure(ValueError("mine"))
        with pytest.raises(ValueError, match="mine"):
            response.raise_for_status()
    with seen(FINE, reports) as response:
        response.failure("no")
        response.success()
    assert repr(list(reports)) == repr([None, CatchResponseError("too slow"), ValueError("mine"), None])


def test_a_failure_raised_in_the_with_block_is_the_requests_and_ends_there_or_with_the_task() -> None:
    reports = Reports()
    with seen(FINE, reports):
        raise ResponseError("no")
    with pytest.raises(CatchResponseError), seen(FINE, reports):
        raise CatchResponseError("neither")
    assert [str(failure) for failure in reports] == ["no", "neither"]


def test_raise_for_status_in_the_with_block_reports_the_status_and_ends_the_task() -> None:
    reports = Reports()
    with pytest.raises(BadStatus), seen(FAILED, reports) as response:
        response.raise_for_status()
    assert [str(failure) for failure in reports] == ["status 500"]


@pytest.mark.parametrize("exception", [RescheduleTask(), KeyError("x"), BadStatus("of another request")])
def test_any_other_exception_passes_through_unreported(exception: Exception) -> None:
    reports = Reports()
    with pytest.raises(type(exception)), seen(FINE, reports):
        raise exception
    assert reports == []


def test_an_exception_after_a_decision_passes_through_and_the_decision_counts() -> None:
    reports = Reports()
    response = seen(FINE, reports)
    response.__enter__()
    response.failure("no")
    assert response.__exit__(KeyError, KeyError(), None) is False
    assert [str(failure) for failure in reports] == ["no"]


def test_success_and_failure_need_catch_response_and_a_with_block() -> None:
    response = seen(FINE, catch=False)
    with response as same:
        assert same.content == b"ok"
        with pytest.raises(LocustError, match="catch_response=True"):
            response.success()
    with pytest.raises(LocustError, match="with block"):
        response.success()
    with pytest.raises(LocustError, match="with block"):
        response.failure("x")
