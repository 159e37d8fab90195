"""Connections whose last answer is out, and whose client still sends.

Closing with unread input resets the connection, and a reset may take our answer away from a client that reads
only when it has sent everything (RFC 9112, 9.6): a proxy in the middle of an upload makes a 502 of a 401. So
our side is shut, and what the client still sends is thrown away until it has read the end and closes.

What that costs is bounded in three ways, so that no crowd of senders turns it against us: a client that sends
less than `LINGER_BYTES` in `LINGER_S` is closed, each is closed after `LINGER_TOTAL_S` whatever it sends, and
all of them together are read no faster than `BYTES_A_GO` in `GO_S`; TCP makes the senders wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gevent.hub import get_hub

from parked.server.connection import Connection

#: Seconds after which a client has had its chance that has sent less than so many bytes. nginx waits as long
#: for the next byte (lingering_timeout), which a client that drips can stretch.
LINGER_S: Final = 5.0
LINGER_BYTES: Final = 16384
#: Seconds for each once the server is stopping.
HASTY_LINGER_S: Final = 2.0
#: Seconds that a client may go on sending: 3 GB at 100 Mbit/s.
LINGER_TOTAL_S: Final = 300.0
#: Bytes thrown away in one go, of all connections together, and seconds from one go to the next: 256 MB/s.
BYTES_A_GO: Final = 1 << 20
GO_S: Final = 0.004

_RECV_BYTES: Final = 65536


class Lingerer:
    """What holds one of them."""

    __slots__ = ("_connection", "_discard", "read_bytes")

    def __init__(self, connection: Connection, discard: Callable[[Connection, Lingerer], None]) -> None:
        self._connection = connection
        self._discard = discard
        #: Thrown away since it was last found quick enough.
        self.read_bytes = 0

    def begin(self) -> None:
        """Nobody else has it."""

    def on_events(self, _: int) -> None:
        self._discard(self._connection, self)


class Lingering:
    """The clients that are not read any more but emptied.

    :param close: closes a connection for good.
    :param guarded: makes a callback for the hub that cannot raise.
    :param give_up: tells of an error and closes its connection.
    """

    def __init__(
        self,
        close: Callable[[Connection], None],
        guarded: Callable[[str, Callable[[], None]], Callable[[], None]],
        give_up: Callable[[Connection, BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        #: When each has been slow for too long; in this order, since each waits equally long.
        self.deadlines: dict[Connection, float] = {}
        self._close = close
        self._go_on = guarded("lingering", self._go)
        self._give_up = give_up
        self._clock = clock
        self._left = BYTES_A_GO
        self._behind: dict[Connection, Lingerer] = {}  # they have sent more, which is not read yet
        self._timer: Any = None
        self._is_hasty = False

    def begin(self, connection: Connection) -> None:
        """Take over a connection whose sending side is shut."""
        now = self._clock()
        connection.buffer = b""
        connection.busy = lingerer = Lingerer(connection, self._discard)
        connection.since = int(now)
        self.deadlines[connection] = now + (HASTY_LINGER_S if self._is_hasty else LINGER_S)
        self._discard(connection, lingerer)

    def _discard(self, connection: Connection, lingerer: Lingerer) -> None:
        """Throw away what has come; close at its end."""
        if connection in self._behind:
            return
        now = self._clock()
        if now > connection.since + LINGER_TOTAL_S:
            self._close(connection)
            return
        try:
            while self._left > 0:
                data = connection.sock.recv(_RECV_BYTES)
                if not data:
                    self._close(connection)
                    return
                self._left -= len(data)
                lingerer.read_bytes += len(data)
                self._schedule()
        except BlockingIOError:
            pass
        except Exception:  # reset by the client, or broken TLS: the end, all the same
            self._close(connection)
            return
        else:
            self._behind[connection] = lingerer
            self._schedule()
        if lingerer.read_bytes >= LINGER_BYTES and not self._is_hasty:
            lingerer.read_bytes = 0
            del self.deadlines[connection]
            self.deadlines[connection] = now + LINGER_S

    def hasten(self) -> None:
        """Have all of them gone in `HASTY_LINGER_S` at most."""
        self._is_hasty = True
        latest = self._clock() + HASTY_LINGER_S
        self.deadlines = {connection: min(due, latest) for connection, due in self.deadlines.items()}

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self.deadlines.pop(connection, None)
        self._behind.pop(connection, None)

    def stop(self) -> None:
        """There are none left."""
        self._end_timer()
        self._is_hasty = False

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = get_hub().loop.timer(GO_S, ref=False)
            self._timer.start(self._go_on)

    def _go(self) -> None:
        self._end_timer()
        self._left = BYTES_A_GO
        behind, self._behind = self._behind, {}
        for connection, lingerer in behind.items():
            try:
                self._discard(connection, lingerer)
            except Exception as error:
                self._give_up(connection, error)
