"""The head of a pending response: checked and encoded in one go, by the rules of `start_response`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from parked.server.fields import (
    CONNECTION,
    CONTENT_LENGTH,
    DATE,
    date_field,
    encode_field,
    encode_status,
    encoded_statuses,
    known_field,
    says_close,
)


class Head(NamedTuple):
    """Status line and fields as they go onto the wire, without what frames the content and the empty line."""

    code: int
    lines: bytes
    #: Content-Length, if the application has given one.
    length: int | None
    #: The application says `Connection: close`.
    closes: bool

    @property
    def has_content(self) -> bool:
        """RFC 9110, 15.3.5 and 15.4.5: these two never have any."""
        return self.code not in (204, 304)


def encode_head(status: str, headers: Iterable[tuple[str, str]]) -> Head:
    """Check and encode.

    :raises ValueError: a part of it would be something else to the client, or is the server's to say.
    """
    known = encoded_statuses.get(status) or encode_status(status)
    code = known[1]
    if code < 200:
        raise ValueError(f"{code} is not a final status")
    parts = [b"HTTP/1.1 ", known[0]]
    length = None
    connection = ""
    dated = False
    for name, value in headers:
        try:
            encoded, framing = known_field((name, value)) or encode_field(name, value)
        except TypeError:  # no text, and no key either
            encoded, framing = encode_field(name, value)
        if framing == CONTENT_LENGTH:
            if code == 204 and value == "0":
                continue  # frameworks say so; RFC 9110, 8.6: none at all
            if length is not None or not (value.isascii() and value.isdigit()):
                raise ValueError(f"repeated or malformed Content-Length: {value!r}")
            length = int(value)
        elif framing == CONNECTION:
            connection += "," + value
            continue  # said by the server, with what it knows
        elif framing == DATE:
            dated = True
        elif framing:
            raise ValueError("Transfer-Encoding is the server's business (PEP 3333)")
        parts += (b"\r\n", encoded[0], b": ", encoded[1])
    if not dated:
        parts += (b"\r\nDate: ", date_field()[1])
    parts.append(b"\r\n")
    if code == 204 and length is not None:
        raise ValueError("a 204 has no Content-Length (RFC 9110, 8.6)")
    return Head(code, b"".join(parts), length, says_close(connection))
