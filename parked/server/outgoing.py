"""Bytes on their way to one client, without anybody waiting for it.

What the socket does not take at once lies here, within bounds, and goes when epoll reports room. The
descriptor is in the epoll set already; `EPOLLOUT` is asked for only while bytes wait. A client that takes
none of them for the write timeout, or lets too many pile up, is too slow.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol

from parked.server.connection import Connection
from parked.server.deadlines import Deadlines

#: Bytes sent to one client in one go, in 0.1 ms; then others have their turn, hundreds of them maybe before
#: the sockets are looked at. The kernel would take any number as long as the client reads as fast.
BYTES_A_TURN: Final = 1 << 18
#: Different sums of bytes that are remembered: streams of one kind have mostly sent equally much, and share
#: the number, 32 bytes each.
MOST_TOTALS: Final = 1024


class Roads(Protocol):
    """What is asked of those who keep connections."""

    deadlines: Deadlines[Any]
    #: Seconds in which a client takes not one byte of what waits for it; 0 for ever.
    write_timeout: float
    #: Bytes that may wait for a client.
    max_outgoing_bytes: int
    #: Sums of bytes, each by itself.
    totals: dict[int, int]

    def watch_room(self, connection: Connection, wanted: bool) -> None:
        """Report room for more bytes, or do not; OSError if the connection is lost."""


class Outgoing:
    """The sending half of a pending response. Slots, because there are many."""

    __slots__ = ("_connection", "_host", "_outgoing", "_touched", "due", "sent_bytes")

    def __init__(self, host: Roads, connection: Connection) -> None:
        self._host: Roads = host
        self._connection: Connection | None = connection
        self._outgoing: bytes | memoryview = b""
        #: Slot of `Deadlines` in which bytes went out last.
        self._touched = 0
        self.due = 0
        self.sent_bytes = 0

    def _is_bounded(self) -> bool:
        """Whether there may be ever more to come, so that what waits has to have a bound."""
        raise NotImplementedError

    def _lose(self, reason: Literal["client", "slow"]) -> None:
        """Nothing more will reach the client."""
        raise NotImplementedError

    def _on_drained(self) -> None:
        """In the hub: nothing waits any more."""
        raise NotImplementedError

    def _put(self, data: bytes) -> bool:
        """Send, and keep what the socket does not take. False if the connection is lost by that."""
        connection, waiting, host = self._connection, self._outgoing, self._host
        assert connection is not None
        if waiting:
            if self._is_bounded() and len(waiting) + len(data) > host.max_outgoing_bytes:
                self._lose("slow")
                return False
            self._outgoing = b"".join((waiting, data))
            return True
        try:
            sent = connection.sock.send(
                data if len(data) <= BYTES_A_TURN else memoryview(data)[:BYTES_A_TURN]
            )
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose("client")
            return False
        total = self.sent_bytes + sent
        totals = host.totals
        if len(totals) >= MOST_TOTALS:
            totals.clear()
        self.sent_bytes = totals.setdefault(total, total)
        self._touched = host.deadlines.now
        return sent == len(data) or self._await_room(memoryview(data)[sent:])

    def _await_room(self, rest: memoryview) -> bool:
        assert self._connection is not None
        self._outgoing = rest
        try:
            self._host.watch_room(self._connection, True)
        except OSError:
            self._lose("client")
            return False
        if self._host.write_timeout:
            self._host.deadlines.set(self, self._host.write_timeout)
        return True

    def _send_outgoing(self) -> None:
        """In the hub: there may be room for what waits."""
        assert self._connection is not None
        rest = memoryview(self._outgoing)
        budget = BYTES_A_TURN
        try:
            while rest and budget > 0:
                sent = self._connection.sock.send(rest[:budget])
                rest = rest[sent:]
                budget -= sent
        except BlockingIOError:
            pass
        except OSError:
            self._lose("client")
            return
        moved = len(self._outgoing) - len(rest)
        if moved:
            self.sent_bytes += moved
            self._touched = self._host.deadlines.now
        self._outgoing = rest
        try:
            if not rest or budget <= 0:  # asked for once more, room is reported once more
                self._host.watch_room(self._connection, bool(rest))
        except OSError:
            self._lose("client")
            return
        if not rest:
            self._outgoing = b""
            self._host.deadlines.cancel(self)
            self._on_drained()

    def _check_progress(self) -> None:
        """In the hub: bytes wait, and the deadline has passed."""
        deadlines, timeout = self._host.deadlines, self._host.write_timeout
        if not timeout:
            return  # it was the deadline of a heartbeat, which has to wait
        due = self._touched + deadlines.slots(timeout)
        if due >= deadlines.now:
            deadlines.set_slot(self, due)
            return
        before = self.sent_bytes
        self._send_outgoing()  # the kernel reports no room before a third of its buffer is free, or more
        if not self._outgoing:
            return
        if self.sent_bytes != before:
            deadlines.set(self, timeout)
        else:
            self._lose("slow")
