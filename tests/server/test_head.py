from __future__ import annotations

import pytest

from parked.server.head import encode_head


def test_a_head_is_encoded_with_a_date_unless_it_has_one() -> None:
    head = encode_head("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "12")])
    assert (head.code, head.length, head.closes, head.has_content) == (200, 12, False, True)
    lines = head.lines.split(b"\r\n")
    assert lines[:3] == [b"HTTP/1.1 200 OK", b"Content-Type: text/plain", b"Content-Length: 12"]
    assert lines[3].startswith(b"Date: ")
    assert encode_head("200 OK", [("Date", "today")]).lines.count(b"Date") == 1


def test_what_is_said_about_the_connection_is_left_to_the_server() -> None:
    head = encode_head("200 OK", [("Connection", "close"), ("connection", "keep-alive")])
    assert head.closes
    assert b"onnection" not in head.lines
    assert not encode_head("200 OK", [("Connection", "keep-alive")]).closes


@pytest.mark.parametrize("code", [204, 304])
def test_these_have_no_content(code: int) -> None:
    assert not encode_head(f"{code} X", []).has_content


def test_a_204_says_no_length() -> None:
    head = encode_head("204 No Content", [("Content-Length", "0"), ("A", "b")])
    assert head.length is None
    assert b"Content-Length" not in head.lines
    assert b"A: b\r\n" in head.lines


@pytest.mark.parametrize(
    ("status", "field"),
    [
        ("100 Continue", None),
        ("101 Switching Protocols", None),
        ("200 OK\nX", None),
        ("99", None),
        ("200 OK", ("Transfer-Encoding", "gzip")),
        ("200 OK", ("Content-Length", "-1")),
        ("200 OK", ("Content-Length", "0x10")),
        ("200 OK", ("A:B", "c")),
        ("200 OK", ("A", "b\0")),
        ("204 No Content", ("Content-Length", "3")),
    ],
)
def test_what_would_be_something_else_to_the_client_is_refused(
    status: str, field: tuple[str, str] | None
) -> None:
    with pytest.raises(ValueError):
        encode_head(status, [field] if field else [])
