"""Reading a request head: bytes in, a checked `RequestHead` out, or a `BadRequestError` that knows its
status.

The parser is strict on purpose: whatever two programs could read differently is refused, because that
difference is what request smuggling lives on. It departs from pywsgi and from llhttp, which take some of
these: obs-fold, bare LF, repeated or signed Content-Length, Content-Length beside Transfer-Encoding, missing
or repeated Host, HTTP/0.9, and whitespace other than one space in the request line are all refused here.

Two ideas make it fast in plain Python. One regular expression checks all field lines at once, in C. And a
client repeats its fields on every request, so a field block seen before is not read again: `_parsed_fields`
maps the exact bytes to the result (five fields, on a 2-core EPYC: the whole head takes 1.6 us if they are
known, 5.3 us if not).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from parked.server.doorkeeper import Doorkeeper
from parked.server.limits import Limits
from parked.shared.private import is_private

#: How many distinct field blocks are remembered, and the longest one worth it, in bytes. 2 to 5 KB each with
#: the environ that begins with them (`parked.server.environ`), so at most 2.5 MB a process. Beyond the count
#: all are forgotten at once, which costs two misses for each client.
MAX_REMEMBERED_BLOCKS: Final = 512
MAX_REMEMBERED_BYTES: Final = 1024
#: Blocks not remembered that would be if they came again.
MAX_SEEN_ONCE: Final = 512

#: Empty lines taken before a request line. RFC 9112, 2.2 asks for one at least; old browsers sent one behind
#: a POST. Without a bound they would pile up in memory, for they count as neither line nor field.
MAX_EMPTY_LINES: Final = 8
_CR: Final = 13

# RFC 9110, 5.6.2: token; RFC 9112, 3: request-line, one SP between the parts; RFC 3986 characters, no
# fragment.
_TCHAR: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE: Final = re.compile(rf"({_TCHAR}+) ([\x21\x22\x24-\x7e]+) (HTTP/[0-9]\.[0-9])", re.ASCII)
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_VERSIONS: Final = frozenset(("HTTP/1.1", "HTTP/1.0"))
# RFC 9112, 5: no space before the colon; RFC 9110, 5.5: VCHAR, SP, HTAB and obs-text in values.
_FIELD_LINES: Final = re.compile(rf"(?:{_TCHAR}+:[\t\x20-\x7e\x80-\xff]*\r\n)*".encode("ascii"))
# RFC 9112, 3.2.2: absolute-form. The authority ends at the first of / and ?; its host is not empty (RFC 9110,
# 4.2.1).
_ABSOLUTE_FORM: Final = re.compile(r"https?://([^/?:][^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)
# RFC 9110, 7.2 and RFC 3986, 3.2.2: uri-host [":" port]; no userinfo (RFC 9110, 4.2.4).
HOST: Final = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-fvV:.]+\])(?::[0-9]*)?")
# RFC 9110, 8.6: 1*DIGIT. 18 digits stay far below 2**63.
_CONTENT_LENGTH: Final = re.compile(r"[0-9]{1,18}")


class BadRequestError(ValueError):
    """The client's fault: `status` is the answer it gets, `reason` says why, in words of our own."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Fields:
    """What the header fields of a request say; shared by all requests with the same bytes, never changed."""

    __slots__ = (
        "begun",
        "begun_for",
        "block",
        "chunked",
        "close",
        "content_length",
        "count",
        "environ",
        "expects_continue",
        "fits",
        "has_host",
        "is_kept",
        "keep_alive",
        "upgrade",
    )

    def __init__(self, block: bytes) -> None:
        #: The field lines as received, each with its CRLF.
        self.block = block
        #: How many they are.
        self.count = block.count(b"\n")
        #: CGI variables: HTTP_*, CONTENT_TYPE and CONTENT_LENGTH.
        self.environ: dict[str, str] = {}
        self.content_length: int | None = None
        self.chunked = False
        self.close = False
        self.keep_alive = False
        self.upgrade = False
        self.expects_continue = False
        self.has_host = False
        #: The limits that a request of HTTP/1.1 with these fields is within.
        self.fits: Limits | None = None
        #: They are remembered for the next request that has the same bytes,
        self.is_kept = False
        #: and with them the environ that it begins with; see `parked.server.environ`.
        self.begun_for: object = None
        self.begun: dict[str, Any] = {}


class RequestHead:
    """One request line and its fields."""

    __slots__ = ("fields", "keeps_connection", "line", "method", "path", "query", "size", "target", "version")

    line: str
    method: str
    #: The request target as received.
    target: str
    #: Path with %XX decoded (PATH_INFO) and query as received (QUERY_STRING).
    path: str
    query: str
    version: str
    fields: Fields
    #: What the client asks for (RFC 9112, 9.3).
    keeps_connection: bool
    #: Bytes of the head, up to and with the empty line.
    size: int


# By their block without its last CRLF.
_parsed_fields: dict[bytes, Fields] = {}
_seen_once: Final = Doorkeeper(MAX_SEEN_ONCE)


class HeadScan:
    """How far an incomplete head was looked at: one that drips is not read from its start for each byte."""

    __slots__ = ("at", "eol", "line_checked", "lines")

    def __init__(self) -> None:
        #: Bytes that have been looked at.
        self.at = 0
        #: Where the request line ends; -1 if it is incomplete.
        self.eol = -1
        self.line_checked = False
        #: Complete lines.
        self.lines = 0


def parse_head(data: bytes, limits: Limits, scan: HeadScan | None = None) -> RequestHead | None:
    """Read the request head that *data* begins with; `None` while it is incomplete.

    :param scan: of former calls, with less of the same data.
    :raises BadRequestError: as soon as it is certain that no valid head can come of it.
    """
    # PERF: partition() takes half the time of find() and slices.
    start = _skip_empty_lines(data) if data and data[0] == _CR else 0
    if scan is not None and data.find(b"\r\n\r\n", max(start, scan.at - 3)) < 0:
        _check_incomplete(data, start, limits, scan)
        return None
    received, end, _ = (data[start:] if start else data).partition(b"\r\n\r\n")
    if not end:
        _check_incomplete(data, start, limits, HeadScan())
        return None
    first, _, block = received.partition(b"\r\n")
    if len(first) > limits.request_line_bytes:
        raise BadRequestError(HTTPStatus.REQUEST_URI_TOO_LONG, "request line too long")
    line = first.decode("latin-1")
    method, _, rest = line.partition(" ")
    target, _, version = rest.partition(" ")
    # PERF: a usual line is known to match _REQUEST_LINE without it, in half the time.
    if not (
        version in _VERSIONS
        and method in _METHODS
        and target
        and target.isascii()
        and target.isprintable()
        and "#" not in target
    ):
        method, target, version = _read_request_line(line)
    fields = _parsed_fields.get(block)
    # PERF: what was found to be within these limits is not compared with them again.
    if fields is None or fields.fits is not limits or version != "HTTP/1.1":
        fields = _fitting_fields(block, version, fields, limits)
    if target[0] == "/" and method != "CONNECT":
        path, _, query = target.partition("?")
    else:
        path, query, fields = _read_other_target(method, target, fields)
    if "%" in path:
        path = unquote(path, "latin-1")
    # PERF: an __init__ in Python would cost as much again.
    head = RequestHead()
    head.line = line
    head.method = method
    head.target = target
    head.path = path
    head.query = query
    head.version = version
    head.fields = fields
    head.keeps_connection = not fields.close and (version == "HTTP/1.1" or fields.keep_alive)
    head.size = start + len(received) + 4
    return head


def _fitting_fields(block: bytes, version: str, known: Fields | None, limits: Limits) -> Fields:
    """What *block* says, which is *known* if it was seen before, within *limits*."""
    fields = known
    if fields is None or len(block) + 2 > limits.header_bytes or fields.count > limits.header_count:
        fields = _read_fields(block + b"\r\n" if block else b"", limits)
    if version == "HTTP/1.1":
        if not fields.has_host:
            raise BadRequestError(HTTPStatus.BAD_REQUEST, "no Host field")  # RFC 9112, 3.2
    elif fields.chunked:
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "Transfer-Encoding in HTTP/1.0")  # RFC 9112, 6.1
    if limits.body_bytes and (fields.content_length or 0) > limits.body_bytes:
        raise BadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "content too long")
    if version == "HTTP/1.1":
        fields.fits = limits
    return fields


def _skip_empty_lines(data: bytes) -> int:
    """RFC 9112, 2.2: ignore empty lines before the request line."""
    start = 0
    while data.startswith(b"\r\n", start):
        start += 2
        if start > 2 * MAX_EMPTY_LINES:
            raise BadRequestError(HTTPStatus.BAD_REQUEST, "too many empty lines")
    return start


def _read_request_line(line: str) -> tuple[str, str, str]:
    """Method, target and version, which is one that we speak."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "malformed request line")
    method, target, version = match.groups()
    if version not in _VERSIONS:
        if not version.startswith("HTTP/1."):
            raise BadRequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP version not supported")
        version = "HTTP/1.1"  # RFC 9110, 2.5: read a higher minor version as the highest that we speak
    return method, target, version


def _check_incomplete(data: bytes, start: int, limits: Limits, scan: HeadScan) -> None:
    """Refuse a head that is already too long or already wrong, rather than wait for the rest of it."""
    new = max(start, scan.at)
    before = max(start, new - 1)  # a CR may have come before its LF
    if scan.eol < 0:
        scan.eol = data.find(b"\r\n", before)
    eol = scan.eol
    line_bytes = (eol if eol >= 0 else len(data)) - start
    if line_bytes > limits.request_line_bytes + (eol < 0):  # the last byte may be the CR
        raise BadRequestError(HTTPStatus.REQUEST_URI_TOO_LONG, "request line too long")
    if eol >= 0 and len(data) - eol > limits.header_bytes + 4:
        raise BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "header fields too large")
    lines = data.count(b"\n", new)
    if lines != data.count(b"\r\n", before) or data.find(b"\0", new) >= 0:
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "bare LF or NUL in the header")  # RFC 9112, 2.2
    scan.lines += lines
    if scan.lines - 1 > limits.header_count:
        raise BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
    # Something that is not HTTP at all (a TLS client hello, say) shows in its first bytes.
    if eol < 0:
        well_formed = data[start : start + 8].isascii()
    else:
        well_formed = scan.line_checked or bool(_REQUEST_LINE.fullmatch(data[start:eol].decode("latin-1")))
        scan.line_checked = well_formed
    if not well_formed:
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "malformed request line")
    scan.at = len(data)


def _read_fields(block: bytes, limits: Limits) -> Fields:
    if len(block) > limits.header_bytes:
        raise BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "header fields too large")
    fields = Fields(block)
    if fields.count > limits.header_count:
        raise BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
    if not _FIELD_LINES.fullmatch(block):
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "malformed header field")
    environ = fields.environ
    transfer_encoding: str | None = None
    upgrade_to = ""
    private = False
    for field_line in block.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = field_line.partition(":")
        value = value.strip(" \t")
        name = name.upper()
        if name == "HOST":
            if fields.has_host or not HOST.fullmatch(value):
                raise BadRequestError(HTTPStatus.BAD_REQUEST, "repeated or malformed Host")
            fields.has_host = True
        elif name == "CONTENT-LENGTH":
            if fields.content_length is not None or not _CONTENT_LENGTH.fullmatch(value):
                raise BadRequestError(HTTPStatus.BAD_REQUEST, "repeated or malformed Content-Length")
            fields.content_length = int(value)
            environ["CONTENT_LENGTH"] = value
            continue
        elif name == "CONTENT-TYPE":
            environ.setdefault("CONTENT_TYPE", value)
            continue
        elif name == "TRANSFER-ENCODING":
            transfer_encoding = value if transfer_encoding is None else f"{transfer_encoding},{value}"
        elif name == "CONNECTION":
            _read_connection(fields, value)
        elif name == "UPGRADE":
            upgrade_to = value.lower()
        elif name == "EXPECT":
            if value.lower() != "100-continue":
                raise BadRequestError(
                    HTTPStatus.EXPECTATION_FAILED, "unknown expectation"
                )  # RFC 9110, 10.1.1
            fields.expects_continue = True
        private = private or is_private(name)
        if "_" in name:
            continue  # as pywsgi: X_User would reach the application under the name of X-User
        key = "HTTP_" + name.replace("-", "_")
        if key in environ:
            environ[key] += ("; " if "COOKIE" in name else ",") + value
        else:
            environ[key] = value
    # RFC 9110, 7.8: it takes both fields; proxies send "Connection: upgrade" with every request. And nobody
    # can take the offer of HTTP/2 that curl makes (RFC 9113, 3.1): such a request is like any other.
    fields.upgrade = fields.upgrade and upgrade_to not in ("", "h2c")
    if transfer_encoding is not None:
        _read_transfer_encoding(fields, transfer_encoding)
    # A block with credentials is nobody else's and is not kept in memory beyond its request.
    if len(block) <= MAX_REMEMBERED_BYTES and not private and _seen_once.admits(block):
        if len(_parsed_fields) >= MAX_REMEMBERED_BLOCKS:
            _parsed_fields.clear()
        _parsed_fields[block[:-2]] = fields
        fields.is_kept = True
    return fields


def _read_connection(fields: Fields, value: str) -> None:
    """RFC 9110, 7.6.1: a comma-separated list of case-insensitive options."""
    for option in value.lower().split(","):
        option = option.strip(" \t")
        if option == "close":
            fields.close = True
        elif option == "keep-alive":
            fields.keep_alive = True
        elif option == "upgrade":
            fields.upgrade = True


def _read_transfer_encoding(fields: Fields, value: str) -> None:
    """RFC 9112, 6.1 and 6.3: chunked, once and last, and never beside a Content-Length."""
    if fields.content_length is not None:
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "Transfer-Encoding beside Content-Length")
    codings = [coding.strip(" \t").lower() for coding in value.split(",")]
    if "chunked" in codings[:-1] or "" in codings:
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "chunked is not the last transfer coding")
    if codings != ["chunked"]:
        raise BadRequestError(HTTPStatus.NOT_IMPLEMENTED, "unknown transfer coding")
    fields.chunked = True


def _read_other_target(method: str, target: str, fields: Fields) -> tuple[str, str, Fields]:
    """The rarer forms of RFC 9112, 3.2; returns path, query and the fields that hold for them."""
    if method == "CONNECT":
        raise BadRequestError(HTTPStatus.NOT_IMPLEMENTED, "CONNECT is for proxies")
    if target == "*":
        if method != "OPTIONS":
            raise BadRequestError(HTTPStatus.BAD_REQUEST, "* is a target for OPTIONS only")
        return "*", "", fields
    match = _ABSOLUTE_FORM.fullmatch(target)
    if match is None or not HOST.fullmatch(match[1]):
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "malformed request target")
    # RFC 9112, 3.2.2: the authority of the target replaces what Host says.
    replaced = Fields(fields.block)
    for name in Fields.__slots__:
        setattr(replaced, name, getattr(fields, name))
    replaced.environ = {**fields.environ, "HTTP_HOST": match[1]}
    replaced.is_kept = False
    replaced.begun_for = None
    return match[2] or "/", (match[3] or "?")[1:], replaced
