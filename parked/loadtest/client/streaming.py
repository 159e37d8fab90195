"""A response that is read as it comes, instead of whole: `stream=True`, `iter_lines`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parked.loadtest.client.coding import decoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from parked.loadtest.client.wire import Incoming


class Stream:
    """The body of a response, its content coding undone as it comes.

    :param over: called once: with True if the response came to its end, with False if it was given up.
    """

    def __init__(self, incoming: Incoming, most_bytes: int, over: Callable[[bool], None]) -> None:
        self._incoming = incoming
        self._over = over
        codings = incoming.raw.field(b"content-encoding")
        self._decoder = decoder(codings, most_bytes) if codings else None
        self.complete = False

    def piece(self) -> bytes:
        """Some bytes of it; none at its end. Raises a :class:`RequestFailure`, after which it is over."""
        if self.complete:
            return b""
        try:
            while data := self._incoming.piece():
                if piece := data if self._decoder is None else self._decoder.feed(data):
                    return piece
            last = b"" if self._decoder is None else self._decoder.end()
        except BaseException:
            self.close()
            raise
        self.complete = True
        self._over(self._incoming.raw.keep_alive)
        return last

    def close(self) -> None:
        """Read no more of it."""
        if not self.complete:
            self.complete = True
            self._over(False)
