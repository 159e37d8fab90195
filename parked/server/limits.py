"""Bounds on what a request may be, each with the status that refuses what goes beyond."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from parked.server.arguments import check_bounds


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a request; what goes beyond is refused.

    :param request_line_bytes: bytes of the request line without its CRLF; longer ones get a 414.
    :param header_bytes: bytes of all field lines together; more get a 431.
    :param header_count: number of field lines; more get a 431.
    :param body_bytes: bytes of the content; more get a 413. 0 for no bound.
    :raises ValueError: one is negative.
    """

    # RFC 9112, 3 asks for 8,000 at least.
    request_line_bytes: int = 8192
    # Browsers send 1-4 KB, single sign-on cookies up to 32 KB.
    header_bytes: int = 65536
    header_count: int = 100
    # Only the application knows what it takes.
    body_bytes: int = 0

    def __post_init__(self) -> None:
        check_bounds(**asdict(self))
