"""Bounds on what a request may be, each with the status that refuses what goes beyond."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a request; what goes beyond is refused with the status named."""

    #: Bytes of the request line without its CRLF; 414. RFC 9112, 3 asks for 8,000 at least.
    request_line_bytes: int = 8192
    #: Bytes of all field lines together; 431. Browsers send 1-4 KB, single sign-on cookies up to 32 KB.
    header_bytes: int = 65536
    #: Number of field lines; 431.
    header_count: int = 100
    #: Bytes of a request's content; 413. 0 sets no bound, since only the application knows what it takes.
    body_bytes: int = 0
