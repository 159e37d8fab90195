"""Raw requests, good and bad, each named for the section of the RFC that it tests.

Good ones are delivered whole, byte by byte and cut in two at every place, and with the next one behind them;
a bad one must get its status and the end of the connection, and nothing of it or behind it may reach the
application.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gevent
import pytest

from parked.server.server import KeepAliveWSGIServer
from tests.support import Client, eventually, serving

START = b"GET / HTTP/1.1\r\n"
HOST = b"Host: test\r\n"
SENTINEL = b"GET /sentinel HTTP/1.1\r\nHost: test\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"


class Recorder:
    """An application that answers with what it got and remembers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bytes]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        content = environ["wsgi.input"].read()
        call = (environ["REQUEST_METHOD"], environ["PATH_INFO"] + "?" + environ["QUERY_STRING"], content)
        self.calls.append(call)
        start_response("200 OK", [("X-Host", environ.get("HTTP_HOST", "-"))])
        return [repr(call).encode()]


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def server(recorder: Recorder) -> Iterator[KeepAliveWSGIServer]:
    with serving(recorder, error_log=io.StringIO()) as server:
        yield server


class Good(NamedTuple):
    name: str
    request: bytes
    method: str = "GET"
    target: str = "/?"
    content: bytes = b""
    keeps: bool = True


def get(*lines: bytes, start: bytes = START, host: bytes = HOST) -> bytes:
    return start + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(content: bytes, *lines: bytes) -> bytes:
    return get(*lines, start=b"POST / HTTP/1.1\r\n") + content


def chunked(content: bytes, *lines: bytes) -> bytes:
    return post(content, b"Transfer-Encoding: chunked", *lines)


GOOD = [
    Good("9112-2.2 empty line before the request", b"\r\n" + get()),
    Good("9112-2.2 several empty lines before the request", b"\r\n" * 8 + get()),
    Good("9112-2.3 HTTP/1.0 without Host", b"GET / HTTP/1.0\r\n\r\n", keeps=False),
    Good("9112-2.3 HTTP/1.0 with keep-alive", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    Good("9110-2.5 a higher minor version is read as 1.1", get(start=b"GET / HTTP/1.9\r\n")),
    Good("9112-3.1 any token is a method", get(start=b"PURGE / HTTP/1.1\r\n"), "PURGE"),
    Good(
        "9112-3.1 all token characters",
        get(start=b"!#$%&'*+-.^_`|~09azAZ / HTTP/1.1\r\n"),
        "!#$%&'*+-.^_`|~09azAZ",
    ),
    Good("9112-3.1 methods are case-sensitive", get(start=b"get / HTTP/1.1\r\n"), "get"),
    Good("9112-3.2.1 origin form with query", get(start=b"GET /a/b?c=d&e HTTP/1.1\r\n"), target="/a/b?c=d&e"),
    Good("9112-3.2.1 second question mark", get(start=b"GET /a?b?c HTTP/1.1\r\n"), target="/a?b?c"),
    Good("9112-3.2.1 empty query", get(start=b"GET /a? HTTP/1.1\r\n"), target="/a?"),
    Good(
        "9112-3.2.1 percent-encoding is decoded once",
        get(start=b"GET /%2525%41 HTTP/1.1\r\n"),
        target="/%25A?",
    ),
    Good("9112-3.2.1 encoded slash and NUL", get(start=b"GET /%2f%00 HTTP/1.1\r\n"), target="//\0?"),
    Good(
        "9112-3.2.1 broken percent-encoding is the application's",
        get(start=b"GET /%zz% HTTP/1.1\r\n"),
        target="/%zz%?",
    ),
    Good("9112-3.2.1 two slashes are a path", get(start=b"GET //a HTTP/1.1\r\n"), target="//a?"),
    Good(
        "9112-3.2.1 longest request line",
        get(start=b"GET /" + b"x" * 8178 + b" HTTP/1.1\r\n"),
        target="/" + "x" * 8178 + "?",
    ),
    Good("9112-3.2.2 absolute form", get(start=b"GET http://h/p?q HTTP/1.1\r\n"), target="/p?q"),
    Good(
        "9112-3.2.2 absolute form of https in capitals",
        get(start=b"GET HTTPS://h:1/p HTTP/1.1\r\n"),
        target="/p?",
    ),
    Good("9112-3.2.2 absolute form without path", get(start=b"GET http://h HTTP/1.1\r\n")),
    Good("9112-3.2.2 absolute form of an IPv6 host", get(start=b"GET http://[::1]:80/ HTTP/1.1\r\n")),
    Good("9112-3.2.4 asterisk form", get(start=b"OPTIONS * HTTP/1.1\r\n"), "OPTIONS", "*?"),
    Good("9112-3.2 empty Host", get(host=b"Host:\r\n")),
    Good("9112-3.2 Host with port", get(host=b"Host: a.example:8000\r\n")),
    Good("9112-3.2 Host of IPv6", get(host=b"Host: [2001:db8::1]:8000\r\n")),
    Good("9112-3.2 Host in any case", get(host=b"hOsT: x\r\n")),
    Good("9112-5 no whitespace before the value", get(b"A:b")),
    Good("9112-5 tabs and spaces around the value", get(b"A: \t b \t ")),
    Good("9112-5 empty value", get(b"A:")),
    Good("9110-5.5 obs-text in a value", get(b"A: \x80\xff")),
    Good("9110-5.5 colons in a value", get(b"A: b:c::d")),
    Good("9110-5.5 quotes and commas in a value", get(b'A: "b, c", d')),
    Good("9110-5.6.2 all token characters in a name", get(b"!#$%&'*+-.^_`|~09azAZ: x")),
    Good("9110-5.3 100 fields", get(*[b"X%d: y" % number for number in range(99)])),
    Good("9110-5.4 long field", get(b"X: " + b"y" * 20_000)),
    Good("9110-7.6.1 Connection as a list", get(b"Connection: x, keep-alive , y")),
    Good("9110-7.6.1 empty list elements", get(b"Connection: , ,keep-alive,,")),
    Good("9112-9.6 close", get(b"Connection: close"), keeps=False),
    Good("9112-9.6 close in a list in any case", get(b"Connection: x,\tCLOSE"), keeps=False),
    Good("9112-9.6 close in a second field", get(b"Connection: x", b"Connection: close"), keeps=False),
    Good("9112-9.3 close wins over keep-alive", get(b"Connection: keep-alive, close"), keeps=False),
    Good("9110-8.6 Content-Length 0", post(b"", b"Content-Length: 0"), "POST"),
    Good("9110-8.6 leading zeros", post(b"abc", b"Content-Length: 0003"), "POST", content=b"abc"),
    Good(
        "9110-8.6 content that looks like a request",
        post(SMUGGLED, b"Content-Length: %d" % len(SMUGGLED)),
        "POST",
        content=SMUGGLED,
    ),
    Good("9110-8.6 content for GET", get(b"Content-Length: 3") + b"abc", content=b"abc"),
    Good(
        "9110-8.6 content for DELETE",
        get(b"Content-Length: 3", start=b"DELETE / HTTP/1.1\r\n") + b"abc",
        "DELETE",
        content=b"abc",
    ),
    Good("9112-7.1 one chunk", chunked(b"3\r\nabc\r\n0\r\n\r\n"), "POST", content=b"abc"),
    Good("9112-7.1 several chunks", chunked(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"), "POST", content=b"abc"),
    Good("9112-7.1 only the last chunk", chunked(b"0\r\n\r\n"), "POST"),
    Good("9112-7.1 several zeros", chunked(b"000\r\n\r\n"), "POST"),
    Good("9112-7.1 leading zeros", chunked(b"0003\r\nabc\r\n0\r\n\r\n"), "POST", content=b"abc"),
    Good(
        "9112-7.1 hexadecimal in both cases",
        chunked(b"0a\r\n0123456789\r\n0B\r\n0123456789a\r\n0\r\n\r\n"),
        "POST",
        content=b"01234567890123456789a",
    ),
    Good("9112-7.1 CRLF inside a chunk", chunked(b"4\r\n\r\n\r\n\r\n0\r\n\r\n"), "POST", content=b"\r\n\r\n"),
    Good(
        "9112-7.1 a chunk that looks like a request",
        chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
        "POST",
        content=SMUGGLED,
    ),
    Good("9112-7.1.1 extension token", chunked(b"3;a=b\r\nabc\r\n0;c\r\n\r\n"), "POST", content=b"abc"),
    Good("9112-7.1.1 quoted extension", chunked(b'3;a="b;\\"c"\r\nabc\r\n0\r\n\r\n'), "POST", content=b"abc"),
    Good(
        "9112-7.1.1 whitespace around extensions",
        chunked(b"3 ; a = b ; c\r\nabc\r\n0\r\n\r\n"),
        "POST",
        content=b"abc",
    ),
    Good(
        "9112-7.1.2 trailers are dropped",
        chunked(b"3\r\nabc\r\n0\r\nA: b\r\nHost: evil\r\n\r\n"),
        "POST",
        content=b"abc",
    ),
    Good("9112-6.1 coding name in any case", post(b"0\r\n\r\n", b"Transfer-Encoding: CHUNKED"), "POST"),
    Good(
        "9110-10.1.1 Expect in any case",
        post(b"abc", b"Content-Length: 3", b"Expect: 100-CONTINUE"),
        "POST",
        content=b"abc",
    ),
    Good("9110-10.1.1 Expect without content", get(b"Expect: 100-continue")),
    Good(
        "9110-10.1.1 Expect of HTTP/1.0 is ignored",
        b"POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
        "POST",
        content=b"abc",
        keeps=False,
    ),
    Good(
        "9110-7.8 Upgrade that nobody takes",
        get(b"Connection: Upgrade", b"Upgrade: irc", b"Content-Length: 0"),
    ),
    Good(
        "9113-3.1 h2c that nobody takes",
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA"),
    ),
    Good(
        "9110-7.8 Upgrade with content",
        post(b"abc", b"Connection: Upgrade", b"Upgrade: irc", b"Content-Length: 3"),
        "POST",
        content=b"abc",
    ),
]

assert len({case.name for case in GOOD}) == len(GOOD)


def name(case: Any) -> str:
    return str(case.name)


def check(client: Client, case: Good) -> None:
    answer = client.answer(case.method)
    if answer.status == 100:
        answer = client.answer(case.method)
    assert answer.status == 200
    assert answer.body == repr((case.method, case.target, case.content)).encode()


@pytest.mark.parametrize("case", GOOD, ids=name)
def test_good_requests_are_served_whole_and_with_the_next_one_behind(
    server: KeepAliveWSGIServer, recorder: Recorder, case: Good
) -> None:
    recorder.calls.clear()
    with Client(server) as client:
        client.send(case.request + SENTINEL)
        check(client, case)
        if case.keeps:
            assert client.answer().body == repr(("GET", "/sentinel?", b"")).encode()
            client.send(case.request)
            check(client, case)
        else:
            assert client.closed()
    assert len(recorder.calls) == (3 if case.keeps else 1)


@pytest.mark.parametrize("case", GOOD, ids=name)
def test_good_requests_are_served_however_they_are_cut(server: KeepAliveWSGIServer, case: Good) -> None:
    size = len(case.request)
    # Every place for requests of ordinary length; for the two long ones, the places around what matters.
    cuts = range(1, size) if size < 2000 else [1, 2, *range(size - 60, size), 8191, 8192, 8193]
    clients = [Client(server) for _ in cuts]
    bytewise = Client(server) if size < 2000 else None
    for client, cut in zip(clients, cuts, strict=True):
        client.send(case.request[:cut])
    gevent.sleep(0.005)
    for client, cut in zip(clients, cuts, strict=True):
        client.send(case.request[cut:])
    for client in clients:
        check(client, case)
        client.__exit__()
    if bytewise:
        for byte in case.request:
            bytewise.send(bytes([byte]))
            gevent.sleep(0)
        check(bytewise, case)
        bytewise.__exit__()


class Bad(NamedTuple):
    name: str
    request: bytes
    status: int = 400


BAD = [
    Bad("9112-2.2 bare LF lines", b"GET / HTTP/1.1\nHost: test\n\n"),
    Bad("9112-2.2 bare LF behind the request line", b"GET / HTTP/1.1\nHost: test\r\n\r\n"),
    Bad("9112-2.2 bare LF between fields", START + HOST + b"A: b\nC: d\r\n\r\n"),
    Bad("9112-2.2 bare LF at the end", START + HOST + b"\n"),
    Bad("9112-2.2 bare CR in the request line", b"GET /\r HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bad("9112-2.2 bare CR in a value", get(b"A: b\rC: d")),
    Bad("9112-2.2 CR CR LF", START + HOST + b"A: b\r\r\n\r\n"),
    Bad("9112-2.2 whitespace between start line and fields", START + b" \r\n" + HOST + b"\r\n"),
    Bad("9112-2.2 space before the request line", b" " + get()),
    Bad("9112-2.2 too many empty lines before the request", b"\r\n" * 9 + get()),
    Bad("9112-2.2 empty lines without end", b"\r\n" * 50_000),
    Bad("9112-2.3 lower-case version", get(start=b"GET / http/1.1\r\n")),
    Bad("9112-2.3 version without minor", get(start=b"GET / HTTP/1\r\n")),
    Bad("9112-2.3 two-digit version", get(start=b"GET / HTTP/1.10\r\n")),
    Bad("9112-2.3 version with letters", get(start=b"GET / HTTP/1.x\r\n")),
    Bad("9112-2.3 version with sign", get(start=b"GET / HTTP/+1.1\r\n")),
    Bad("9112-2.3 another protocol", get(start=b"GET / RTSP/1.0\r\n")),
    Bad("9112-2.3 HTTP/2", get(start=b"GET / HTTP/2.0\r\n"), 505),
    Bad("9112-2.3 HTTP/0.9 by number", get(start=b"GET / HTTP/0.9\r\n"), 505),
    Bad("9113-3.4 the HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    Bad("1945-4.1 HTTP/0.9 without version", b"GET /\r\n\r\n"),
    Bad("9112-3 no target", b"GET HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bad("9112-3 only a method", b"GET\r\n\r\n"),
    Bad("9112-3 two spaces behind the method", get(start=b"GET  / HTTP/1.1\r\n")),
    Bad("9112-3 two spaces behind the target", get(start=b"GET /  HTTP/1.1\r\n")),
    Bad("9112-3 tab instead of space", get(start=b"GET\t/\tHTTP/1.1\r\n")),
    Bad("9112-3 trailing space", get(start=b"GET / HTTP/1.1 \r\n")),
    Bad("9112-3 space in the target", get(start=b"GET /a b HTTP/1.1\r\n")),
    Bad("9112-3 four words", get(start=b"GET / / HTTP/1.1\r\n")),
    Bad("9112-3 vertical tab", get(start=b"GET\x0b/ HTTP/1.1\r\n")),
    Bad("9112-3 no-break space", get(start=b"GET\xa0/ HTTP/1.1\r\n")),
    Bad("9112-3 too long a line", get(start=b"GET /" + b"x" * 8179 + b" HTTP/1.1\r\n"), 414),
    Bad("9112-3 a line without end", b"GET /" + b"x" * 9000, 414),
    Bad("9112-3 a method without end", b"G" * 9000, 414),
    Bad("9112-3.1 delimiter in the method", get(start=b"GE(T / HTTP/1.1\r\n")),
    Bad("9112-3.1 colon in the method", get(start=b"GET: / HTTP/1.1\r\n")),
    Bad("9112-3.1 control character in the method", get(start=b"GE\x01T / HTTP/1.1\r\n")),
    Bad("9112-3.1 eighth bit in the method", get(start=b"GE\xd4 / HTTP/1.1\r\n")),
    Bad("9112-3.2 NUL in the target", get(start=b"GET /\0 HTTP/1.1\r\n")),
    Bad("9112-3.2 control character in the target", get(start=b"GET /\x1f HTTP/1.1\r\n")),
    Bad("9112-3.2 DEL in the target", get(start=b"GET /\x7f HTTP/1.1\r\n")),
    Bad("9112-3.2 eighth bit in the target", get(start=b"GET /\xe4 HTTP/1.1\r\n")),
    Bad("9112-3.2 fragment in the target", get(start=b"GET /#a HTTP/1.1\r\n")),
    Bad("9112-3.2 relative target", get(start=b"GET a/b HTTP/1.1\r\n")),
    Bad("9112-3.2 query alone", get(start=b"GET ?a HTTP/1.1\r\n")),
    Bad("9112-3.2.2 absolute form without authority", get(start=b"GET http:///a HTTP/1.1\r\n")),
    Bad("9112-3.2.2 absolute form without host", get(start=b"GET http://:80/a HTTP/1.1\r\n")),
    Bad("9112-3.2.2 absolute form of another scheme", get(start=b"GET ftp://h/ HTTP/1.1\r\n")),
    Bad("9112-3.2.2 absolute form with userinfo", get(start=b"GET http://u@h/ HTTP/1.1\r\n")),
    Bad("9112-3.2.2 absolute form still needs Host", get(start=b"GET http://h/ HTTP/1.1\r\n", host=b"")),
    Bad("9112-3.2.3 authority form", get(start=b"CONNECT h:80 HTTP/1.1\r\n"), 501),
    Bad("9112-3.2.3 CONNECT with a path", get(start=b"CONNECT / HTTP/1.1\r\n"), 501),
    Bad("9112-3.2.3 authority form of GET", get(start=b"GET h:80 HTTP/1.1\r\n")),
    Bad("9112-3.2.4 asterisk form of GET", get(start=b"GET * HTTP/1.1\r\n")),
    Bad("9112-3.2 no Host", get(host=b"")),
    Bad("9112-3.2 two Hosts", get(b"Host: other")),
    Bad("9112-3.2 the same Host twice", get(HOST[:-2])),
    Bad("9112-3.2 two Hosts in HTTP/1.0", get(b"Host: other", start=b"GET / HTTP/1.0\r\n")),
    Bad("9112-3.2 list in Host", get(host=b"Host: a, b\r\n")),
    Bad("9112-3.2 space in Host", get(host=b"Host: a b\r\n")),
    Bad("9112-3.2 path in Host", get(host=b"Host: a/b\r\n")),
    Bad("9112-3.2 userinfo in Host", get(host=b"Host: u@a\r\n")),
    Bad("9112-3.2 port of Host is no number", get(host=b"Host: a:b\r\n")),
    Bad("9112-3.2 broken IPv6 in Host", get(host=b"Host: [::1\r\n")),
    Bad("9112-3.2 eighth bit in Host", get(host=b"Host: \xe4\r\n")),
    Bad("9112-3.2 Host with an underscore field is no Host", get(host=b"_Host: a\r\n")),
    Bad("9112-5 no colon", get(b"abc")),
    Bad("9112-5 no name", get(b": abc")),
    Bad("9112-5.1 space before the colon", get(b"A : b")),
    Bad("9112-5.1 tab before the colon", get(b"A\t: b")),
    Bad("9112-5.1 space before the colon of Content-Length", post(b"abc", b"Content-Length : 3")),
    Bad(
        "9112-5.1 space before the colon of Transfer-Encoding",
        post(b"0\r\n\r\n", b"Transfer-Encoding : chunked"),
    ),
    Bad("9112-5.2 folded value", get(b"A: b", b" c")),
    Bad("9112-5.2 folded with tab", get(b"A: b", b"\tc")),
    Bad("9112-5.2 first field folded", START + b" A: b\r\n" + HOST + b"\r\n"),
    Bad("9112-5.2 folded Transfer-Encoding", post(b"0\r\n\r\n", b"Transfer-Encoding:", b" chunked")),
    Bad("9110-5.1 space in a name", get(b"A B: c")),
    Bad("9110-5.1 control character in a name", get(b"A\x01: c")),
    Bad("9110-5.1 NUL in a name", get(b"A\0: c")),
    Bad("9110-5.1 eighth bit in a name", get(b"\xc4: c")),
    Bad("9110-5.1 parenthesis in a name", get(b"A(: c")),
    Bad("9110-5.1 slash in a name", get(b"A/B: c")),
    Bad("9110-5.1 at sign in a name", get(b"A@: c")),
    Bad("9110-5.5 NUL in a value", get(b"A: b\0c")),
    Bad("9110-5.5 control character in a value", get(b"A: b\x01c")),
    Bad("9110-5.5 backspace in a value", get(b"A: b\x08")),
    Bad("9110-5.5 escape in a value", get(b"A: \x1b[0m")),
    Bad("9110-5.5 DEL in a value", get(b"A: b\x7f")),
    Bad("9110-5.5 vertical tab in a value", get(b"A: b\x0bc")),
    Bad("9110-5.4 too many fields", get(*[b"X%d: y" % number for number in range(100)]), 431),
    Bad("9110-5.4 too large a field", get(b"X: " + b"y" * 65_530), 431),
    Bad(
        "9110-5.4 fields too large together",
        get(*[b"X%d: " % number + b"y" * 1000 for number in range(70)]),
        431,
    ),
    Bad("9110-5.4 fields without end", START + HOST + b"X: " + b"y" * 70_000, 431),
    Bad("9110-8.6 two lengths", post(b"abc", b"Content-Length: 3", b"Content-Length: 4")),
    Bad("9110-8.6 the same length twice", post(b"abc", b"Content-Length: 3", b"Content-Length: 3")),
    Bad("9110-8.6 list of lengths", post(b"abc", b"Content-Length: 3, 3")),
    Bad("9110-8.6 negative length", post(b"abc", b"Content-Length: -3")),
    Bad("9110-8.6 length with plus", post(b"abc", b"Content-Length: +3")),
    Bad("9110-8.6 hexadecimal length", post(b"abc", b"Content-Length: 0x3")),
    Bad("9110-8.6 length with underscore", post(b"0123456789", b"Content-Length: 1_0")),
    Bad("9110-8.6 length with point", post(b"abc", b"Content-Length: 3.0")),
    Bad("9110-8.6 length with space inside", post(b"abc", b"Content-Length: 3 3")),
    Bad("9110-8.6 quoted length", post(b"abc", b'Content-Length: "3"')),
    Bad("9110-8.6 empty length", post(b"abc", b"Content-Length:")),
    Bad("9110-8.6 length in letters", post(b"abc", b"Content-Length: three")),
    Bad("9110-8.6 superscript digit", post(b"abc", b"Content-Length: \xb3")),
    Bad("9110-8.6 length beyond all bounds", post(b"abc", b"Content-Length: " + b"9" * 30)),
    Bad("9110-8.6 exponent", post(b"abc", b"Content-Length: 3e0")),
    Bad(
        "9112-6.1 both lengths, chunked first",
        post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    ),
    Bad(
        "9112-6.1 both lengths, chunked last",
        post(b"0\r\n\r\n", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    ),
    Bad("9112-6.1 both lengths, 0", post(b"0\r\n\r\n", b"Content-Length: 0", b"Transfer-Encoding: chunked")),
    Bad("9112-6.1 chunked twice in a list", post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, chunked")),
    Bad("9112-6.1 chunked twice in fields", chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked")),
    Bad("9112-6.1 chunked is not last", post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, gzip")),
    Bad("9112-6.1 empty coding", post(b"0\r\n\r\n", b"Transfer-Encoding:")),
    Bad("9112-6.1 empty list element", post(b"0\r\n\r\n", b"Transfer-Encoding: ,chunked")),
    Bad("9112-6.1 coding in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    Bad("9112-6.1 unknown coding", post(b"abc", b"Transfer-Encoding: magic"), 501),
    Bad("9112-6.1 gzip alone", post(b"abc", b"Transfer-Encoding: gzip"), 501),
    Bad("9112-6.1 gzip and chunked", post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked"), 501),
    Bad("9112-6.1 identity", post(b"abc", b"Transfer-Encoding: identity"), 501),
    Bad("9112-6.1 quoted chunked", post(b"0\r\n\r\n", b'Transfer-Encoding: "chunked"'), 501),
    Bad("9112-6.1 chunked with parameter", post(b"0\r\n\r\n", b"Transfer-Encoding: chunked;q=1"), 501),
    Bad("9112-6.1 chunked with a letter too many", post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"), 501),
    Bad("9112-6.1 chunked with eighth bit", post(b"0\r\n\r\n", b"Transfer-Encoding: chunked\xa0"), 501),
    Bad("9110-10.1.1 unknown expectation", get(b"Expect: miracle"), 417),
    Bad("9110-10.1.1 two expectations", get(b"Expect: 100-continue, miracle"), 417),
    Bad("8446-5.1 TLS to a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)),
    Bad("9112-2.1 binary noise", bytes(range(256)) * 4 + b"\r\n\r\n"),
    Bad("9112-2.1 a response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
]

BAD_CHUNKS = [
    Bad("9112-7.1 no size", chunked(b"\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 size is no number", chunked(b"x\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 negative size", chunked(b"-3\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 size with plus", chunked(b"+3\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 size with 0x", chunked(b"0x3\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 size with underscore", chunked(b"0_3\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 space before the size", chunked(b" 3\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 space behind the size", chunked(b"3 \r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 size beyond all bounds", chunked(b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 size of 64 bits", chunked(b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 size without end", chunked(b"0" * 10_000)),
    Bad("9112-7.1 size ends with bare LF", chunked(b"3\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 size ends with bare CR", chunked(b"3\rabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 chunk longer than its size", chunked(b"3\r\nabcd\r\n0\r\n\r\n")),
    Bad("9112-7.1 chunk shorter than its size", chunked(b"4\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1 chunk ends with bare LF", chunked(b"3\r\nabc\n0\r\n\r\n")),
    Bad("9112-7.1 chunk ends with bare CR", chunked(b"3\r\nabc\r0\r\n\r\n")),
    Bad("9112-7.1 no CRLF behind a chunk", chunked(b"3\r\nabc0\r\n\r\n")),
    Bad("9112-7.1 last chunk ends with bare LF", chunked(b"0\n\r\n")),
    Bad("9112-7.1 end ends with bare LF", chunked(b"0\r\n\n")),
    Bad("9112-7.1 end is something else", chunked(b"0\r\nGET /smuggled HTTP/1.1\r\n\r\n")),
    Bad("9112-7.1.1 extension without name", chunked(b"3;\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1.1 extension with space in name", chunked(b"3;a b\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1.1 extension with NUL", chunked(b"3;a=\0\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1.1 extension with bare LF", chunked(b"3;a\nb=c\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1.1 extension with bare CR", chunked(b"3;a\rb=c\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1.1 quoted extension without end", chunked(b'3;a="b\r\nabc\r\n0\r\n\r\n')),
    Bad("9112-7.1.1 extension too long", chunked(b"3;a=" + b"b" * 9000 + b"\r\nabc\r\n0\r\n\r\n")),
    Bad("9112-7.1.1 more extensions than content", chunked((b"1;a=" + b"b" * 3000 + b"\r\nx\r\n") * 3)),
    Bad("9112-7.1.2 trailer without colon", chunked(b"0\r\nabc\r\n\r\n")),
    Bad("9112-7.1.2 trailer with space before colon", chunked(b"0\r\nA : b\r\n\r\n")),
    Bad("9112-7.1.2 folded trailer", chunked(b"0\r\nA: b\r\n c\r\n\r\n")),
    Bad("9112-7.1.2 trailer with bare LF", chunked(b"0\r\nA: b\nC: d\r\n\r\n")),
    Bad("9112-7.1.2 trailer with NUL", chunked(b"0\r\nA: \0\r\n\r\n")),
    Bad("9112-7.1.2 trailers too long", chunked(b"0\r\n" + b"A: bcdefgh\r\n" * 1000 + b"\r\n")),
]

assert len({case.name for case in BAD + BAD_CHUNKS}) == len(BAD + BAD_CHUNKS)
assert len(GOOD) + len(BAD) + len(BAD_CHUNKS) >= 200


@pytest.mark.parametrize("case", BAD + BAD_CHUNKS, ids=name)
def test_bad_requests_get_their_status_and_the_end(
    server: KeepAliveWSGIServer, recorder: Recorder, case: Bad
) -> None:
    recorder.calls.clear()
    for pieces in ([case.request + SMUGGLED], [case.request], [case.request[:-1], case.request[-1:]]):
        with Client(server) as client:
            try:
                for piece in pieces:
                    client.send(piece)
                    gevent.sleep(0.001)
            except OSError:
                pass  # refused before it was sent whole
            answer = client.answer()
            assert answer.status == case.status
            assert answer.headers["Connection"] == "close"
            assert b"Traceback" not in answer.body
            assert client.closed()
    assert recorder.calls == []
    with Client(server) as client:
        assert client.ask(SENTINEL).status == 200


def test_nothing_is_left_of_all_that(server: KeepAliveWSGIServer) -> None:
    eventually(lambda: server.parking.count == 0)
    assert server.parking._half_requests == {}
    assert server.parking._lingering.deadlines == {}


def test_truncated_requests_reach_nobody_and_leave_nothing(
    server: KeepAliveWSGIServer, recorder: Recorder
) -> None:
    recorder.calls.clear()
    cases = [case for case in GOOD if len(case.request) < 2000 and "Expect" not in case.name]
    for case in cases:
        for size in range(0, len(case.request), 7):
            with Client(server) as client:
                client.send(case.request[:size])
                client.sock.shutdown(1)
                client.rest()
    assert all(call[1] != "/smuggled?" for call in recorder.calls)
    eventually(lambda: server.parking.count == 0)
