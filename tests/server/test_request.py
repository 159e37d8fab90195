from __future__ import annotations

import itertools
from http import HTTPStatus

import pytest

from parked.server import request
from parked.server.limits import Limits
from parked.server.request import BadRequestError, HeadScan, RequestHead, parse_head

LIMITS = Limits()


def head(data: bytes, limits: Limits = LIMITS) -> RequestHead:
    parsed = parse_head(data, limits)
    assert parsed is not None
    return parsed


def get(*fields: str, line: str = "GET / HTTP/1.1", host: bool = True) -> bytes:
    lines = [line, *(["Host: test"] if host else []), *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def refusal(data: bytes, limits: Limits = LIMITS) -> HTTPStatus:
    with pytest.raises(BadRequestError) as caught:
        parse_head(data, limits)
    return caught.value.status


def test_a_request_head_becomes_cgi_variables() -> None:
    parsed = head(get("X-Two: b", "Accept:  text/html , */* ", line="PUT /a%20b?c=%20d HTTP/1.1") + b"rest")
    assert (parsed.method, parsed.path, parsed.query) == ("PUT", "/a b", "c=%20d")
    assert parsed.fields.environ == {"HTTP_HOST": "test", "HTTP_X_TWO": "b", "HTTP_ACCEPT": "text/html , */*"}
    assert parsed.size == len(get("X-Two: b", "Accept:  text/html , */* ", line="PUT /a%20b?c=%20d HTTP/1.1"))


def test_every_prefix_of_a_head_is_incomplete_and_not_refused() -> None:
    whole = get("Accept: */*", "X: " + "y" * 50, line="GET /some/path?x=1 HTTP/1.1")
    for size in range(len(whole)):
        assert parse_head(whole[:size], LIMITS) is None, whole[:size]
    assert head(whole).size == len(whole)


def test_a_dripped_head_is_looked_at_once() -> None:
    """Whatever is in the bytes that were looked at is not seen again."""
    whole = b"\r\n" + get("Accept: */*", "X: " + "y" * 50)
    scan = HeadScan()
    for size in range(len(whole)):
        assert parse_head(whole[:size], LIMITS, scan) is None
        assert scan.at == size
    assert parse_head(whole, LIMITS, scan) is not None
    blinded = b"\n" * scan.at
    assert parse_head(blinded, LIMITS, scan) is None


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "fault", [b"\nX: y", b"X\0: y", b"A: b\r\n" * 101, b"X: " + b"y" * 66_000], ids=range(4)
)
def test_a_fault_in_a_dripped_head_is_found_wherever_it_is_cut(fault: bytes, size: int) -> None:
    data = get("A: b")[:-2] + fault
    expected = refusal(data)
    scan = HeadScan()
    with pytest.raises(BadRequestError) as caught:
        _drip(data, size, scan)
    assert caught.value.status == expected


def _drip(data: bytes, size: int, scan: HeadScan) -> None:
    for end in range(size, len(data) + size, size):
        assert parse_head(data[:end], LIMITS, scan) is None


def test_too_many_fields_are_refused_before_the_head_is_complete() -> None:
    assert refusal(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101) == 431
    assert parse_head(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100, LIMITS) is None


def test_fields_that_come_again_are_read_no_more_and_never_mixed_up() -> None:
    request._parsed_fields.clear()
    _, first, second = (head(get("A: 1")) for _ in range(3))
    assert first.fields is second.fields
    assert head(get("A: 2")).fields.environ["HTTP_A"] == "2"
    assert head(get("A: 1")).fields.environ["HTTP_A"] == "1"


@pytest.mark.parametrize(
    "field",
    [
        *("Cookie: secret=1", "Authorization: Basic c2VjcmV0", "Proxy-Authorization: Basic c2VjcmV0"),
        *("X-Api-Key: s", "apikey: s", "X-Auth-Token: s", "x-amz-security-token: s", "X-CSRF-Token: s"),
        *("Session_Id: s", "X-Password: s", "X-Client-Secret: s", "X-Forwarded-Client-Cert: s"),
    ],
)
def test_credentials_are_not_remembered(field: str) -> None:
    request._parsed_fields.clear()
    for _ in range(3):
        head(get(field))
    assert not request._parsed_fields


def test_fields_that_come_once_are_not_remembered() -> None:
    request._parsed_fields.clear()
    for number in range(3 * request.MAX_REMEMBERED_BLOCKS):
        assert head(get(f"X-Request-Id: {number}")).fields.environ["HTTP_X_REQUEST_ID"] == str(number)
        head(get("Accept: */*"))
    assert [block.split(b"\r\n")[-1] for block in request._parsed_fields] == [b"Accept: */*"]


def test_the_memory_of_fields_is_bounded() -> None:
    request._parsed_fields.clear()
    for number in range(3 * request.MAX_REMEMBERED_BLOCKS):
        assert head(get(f"X: {number}")).fields.block == head(get(f"X: {number}")).fields.block
        assert 0 < len(request._parsed_fields) <= request.MAX_REMEMBERED_BLOCKS
    for _ in range(2):
        head(get("X: " + "y" * request.MAX_REMEMBERED_BYTES))
    assert all(len(block) <= request.MAX_REMEMBERED_BYTES for block in request._parsed_fields)


def test_limits_hold_for_remembered_fields_too() -> None:
    data = get("X: " + "y" * 200)
    head(data)
    assert refusal(data, Limits(header_bytes=100)) == 431
    assert refusal(data, Limits(header_count=1)) == 431
    assert refusal(data, Limits(request_line_bytes=5)) == 414
    post = get("Content-Length: 5", "X: limits").replace(b"GET", b"POST")
    head(post)
    assert refusal(post, Limits(body_bytes=4)) == 413


def test_what_holds_for_one_version_is_asked_again_for_the_other() -> None:
    chunked = get("Transfer-Encoding: chunked", "X: versions")
    assert head(chunked).fields.chunked
    assert refusal(chunked.replace(b"HTTP/1.1", b"HTTP/1.0")) == 400
    hostless = b"GET / HTTP/1.0\r\nX: versions\r\n\r\n"
    head(hostless)
    assert refusal(hostless.replace(b"HTTP/1.0", b"HTTP/1.1")) == 400


def test_repeated_fields_are_joined_as_pywsgi_joins_them() -> None:
    environ = head(get("A: 1", "a: 2", "Cookie: c=1", "Cookie: d=2")).fields.environ
    assert environ["HTTP_A"] == "1,2"
    assert environ["HTTP_COOKIE"] == "c=1; d=2"


def test_names_with_an_underscore_are_dropped() -> None:
    assert "HTTP_X_USER" not in head(get("X_User: root")).fields.environ
    assert head(get("X_User: root", "X-User: bob")).fields.environ["HTTP_X_USER"] == "bob"


def test_content_type_and_length_have_no_prefix() -> None:
    fields = head(get("Content-Type: text/plain", "Content-Length: 007")).fields
    assert fields.environ["CONTENT_TYPE"] == "text/plain"
    assert fields.environ["CONTENT_LENGTH"] == "007"
    assert fields.content_length == 7
    assert not any(key.startswith("HTTP_CONTENT") for key in fields.environ)


def test_an_absolute_target_overrides_host_for_its_request_only() -> None:
    absolute = head(get(line="GET http://other:81/p?q HTTP/1.1"))
    assert (absolute.path, absolute.query) == ("/p", "q")
    assert absolute.fields.environ["HTTP_HOST"] == "other:81"
    assert head(get()).fields.environ["HTTP_HOST"] == "test"
    assert head(get(line="GET http://other HTTP/1.1")).path == "/"
    assert head(get(line="GET http://other?q HTTP/1.1")).query == "q"


def test_an_asterisk_is_the_server_itself_and_a_target_for_options_only() -> None:
    assert head(get(line="OPTIONS * HTTP/1.1")).path == "*"
    assert refusal(get(line="GET * HTTP/1.1")) == 400


def test_connection_options_are_a_list_in_any_case() -> None:
    assert not head(get("Connection: X, CLOSE")).keeps_connection
    assert head(get("Connection: Foo , Keep-ALIVE", line="GET / HTTP/1.0", host=False)).keeps_connection
    assert not head(get(line="GET / HTTP/1.0", host=False)).keeps_connection
    assert head(get("Connection: keep-alive, Upgrade", "Upgrade: irc")).fields.upgrade


def test_an_offer_of_http_2_is_an_ordinary_request() -> None:
    assert not head(get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")).fields.upgrade


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    assert refusal(get("Content-Length: 11"), Limits(body_bytes=10)) == 413
    assert head(get("Content-Length: 10"), Limits(body_bytes=10)).fields.content_length == 10


def test_too_much_is_refused_before_it_is_complete() -> None:
    assert refusal(b"GET /" + b"x" * 8200) == 414
    assert refusal(b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000) == 431


def test_the_bounds_are_exact() -> None:
    line = "GET /" + "x" * (LIMITS.request_line_bytes - len("GET / HTTP/1.1")) + " HTTP/1.1"
    assert len(line) == LIMITS.request_line_bytes
    head(get(line=line))
    assert refusal(get(line=line.replace("/x", "/xx"))) == 414
    head(get(*[f"X{number}: y" for number in range(LIMITS.header_count - 1)]))
    assert refusal(get(*[f"X{number}: y" for number in range(LIMITS.header_count)])) == 431


def outcome(line: str) -> tuple[object, ...]:
    try:
        parsed = parse_head(f"{line}\r\nHost: test\r\n\r\n".encode("latin-1"), LIMITS)
    except BadRequestError as error:
        return error.status, error.reason
    assert parsed is not None
    return parsed.line, parsed.method, parsed.target, parsed.path, parsed.query, parsed.version


def test_a_request_line_read_in_the_short_way_is_read_as_the_grammar_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = [
        "",
        " ",
        "\t",
        "#",
        "%20",
        "\x7f",
        "\x80",
        "\xa0",
        "\xad",
        "\xff",
        "\0",
        "\r",
        "\n",
        '"',
        "/",
        "?",
        "~",
        "!",
    ]
    methods = ["GET", "POST", "get", "M-SEARCH", "G ET", *odd]
    targets = ["/", "*", "http://a/", *(f"/{one}x{two}" for one in odd for two in odd), *odd]
    versions = ["HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", "HTTP/\xb2.1"]
    lines = [" ".join(parts) for parts in itertools.product(methods, targets, versions)]
    short = [outcome(line) for line in lines]
    monkeypatch.setattr(request, "_METHODS", frozenset())
    assert short == [outcome(line) for line in lines]
    assert sum(isinstance(answer[0], str) for answer in short) > 500
