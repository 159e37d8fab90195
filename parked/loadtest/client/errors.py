"""Failures by kind.

Every failed request carries exactly one kind, counted separately to the end. `docs/errors.md` gives each
one's usual cause and remedy. The texts hold no port, time or length, so that Locust, which groups errors by
their text, keeps one row a kind instead of one a request.
"""

from __future__ import annotations

from socket import gaierror
from ssl import SSLError
from typing import ClassVar


class RequestFailure(ConnectionError):
    """A request that brought no usable response. `kind` is the key in samples and reports."""

    kind: ClassVar[str] = "other"


class ConnectFailed(RequestFailure):
    """The connection could not be opened: refused, unreachable, no local port or descriptor left."""

    kind = "connect"


class SendFailed(RequestFailure):
    """The request could not be handed to the kernel."""

    kind = "send"


class ReceiveFailed(RequestFailure):
    """The connection broke while the response was awaited or read."""

    kind = "receive"


class ClosedByPeer(RequestFailure):
    """The server closed the connection before the response was complete."""

    kind = "closed_by_peer"


class CutOff(ClosedByPeer, ConnectionResetError):
    """The same, by a reset or by TLS without its close_notify: not the end of a body without a length."""


class Refused(ConnectFailed, ConnectionRefusedError):
    """The same, where nobody listens."""


class NoAddress(ConnectFailed, gaierror):
    """The same, where the name has no address."""


class TlsFailed(ConnectFailed, SSLError):
    """The same, where there was no agreement on TLS."""

    __str__ = OSError.__str__  # SSLError has one of its own


class TimedOut(RequestFailure, TimeoutError):
    """No answer within `connection_timeout` or `network_timeout`, or not all of it in `total_timeout`."""

    kind = "timeout"


class BadResponse(RequestFailure):
    """The bytes that came are not an HTTP/1 response, or came without a request."""

    kind = "protocol"


class TooLarge(RequestFailure):
    """A body, received or decoded, of more than `max_body_bytes`, or for which there was no memory."""

    kind = "too_large"


class BadStatus(RequestFailure):
    """A complete response whose status says failure: 400 and above, and others that are no success."""

    kind = "status"


class WrongLength(RequestFailure):
    """A complete response whose body has not the length that was asked for."""

    kind = "body_length"


class StreamEnded(RequestFailure):
    """The server has ended an event stream in order; its client comes back."""

    kind = "stream_ended"


class NoEvents(RequestFailure):
    """A response that is no event stream, where one was asked for: another content type, or a 204."""

    kind = "no_events"


KINDS = tuple(
    failure.kind
    for failure in (
        ConnectFailed,
        SendFailed,
        ReceiveFailed,
        ClosedByPeer,
        TimedOut,
        BadResponse,
        TooLarge,
        BadStatus,
        WrongLength,
        StreamEnded,
        NoEvents,
        RequestFailure,
    )
)


def kind_of(exception: BaseException | str) -> str:
    """The kind of any failure, also of those that a user's own task reports."""
    return exception.kind if isinstance(exception, RequestFailure) else RequestFailure.kind
