"""TLS handshakes under way, and PROXY headers awaited: bounded by themselves, whatever the connection cap.

Each holds a greenlet and what OpenSSL allocates, 57 KB, for a client that may never say a word.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from socket import MSG_PEEK
from time import monotonic
from typing import Any, Final

import gevent
from gevent.socket import wait_read, wait_write
from greenlet import getcurrent

from parked.server.turns import Turns

#: At once in a process: 29 MB. A core does a thousand a second, so that honest ones are rarely so many.
MAX_HANDSHAKES: Final = 512
#: Seconds after which one gives way to a newcomer when there are so many. Lower cuts off slow links when many
#: come at once, higher lets who keeps all places keep others out for longer.
GRACE_S: Final = 1.0
#: Bytes of a ClientHello: clients send 0.2 to 3 KB, OpenSSL takes 131 KB, and all that is there of one in one
#: go. In records of a byte that would be half a second, 3 us for each.
LARGEST_HELLO: Final = 8_192
#: Bytes in which its length stands, and the seconds between looks for it, five in all. There is nothing to
#: wait for, since the socket stays readable; ever longer, since all who shake hands may send a byte each.
_SEEN_BYTES: Final = 512
_LOOKS_S: Final = tuple(0.02 * 2**look for look in range(8))
_CHANGE_CIPHER_SPEC, _HANDSHAKE, _CLIENT_HELLO = 20, 22, 1


class Handshakes:
    """Greenlets that shake hands.

    :param shake: shakes hands with a client of the address given; it handles its own errors and survives a
        `GreenletExit`, which means that its time is up.
    :param on_fault: told of what it raises all the same.
    """

    def __init__(
        self,
        shake: Callable[[Any, Any], None],
        on_fault: Callable[[str, BaseException], None],
        limit: int = MAX_HANDSHAKES,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.count = 0
        self.given_up = 0
        self._shake = shake
        self._on_fault = on_fault
        self._limit = limit
        self._clock = clock
        self._began: dict[Any, float] = {}  # those that have started, the oldest first

    def begin(self, client: Any, address: Any) -> None:
        gevent.spawn(self._run, client, address)
        self.count += 1

    def have_room(self) -> bool:
        """Whether one more may begin; for that the oldest is given up if it has had its time."""
        if self.count < self._limit:
            return True
        oldest = next(iter(self._began.items()), None)
        if oldest is None or self._clock() - oldest[1] < GRACE_S:
            return False
        del self._began[oldest[0]]
        self.count -= 1
        self.given_up += 1
        oldest[0].kill(block=False)
        return True

    def _run(self, client: Any, address: Any) -> None:
        me = getcurrent()
        self._began[me] = self._clock()
        try:
            self._shake(client, address)
        except BaseException as error:
            client.close()
            self._on_fault("shaking hands", error)
        finally:
            if self._began.pop(me, None) is not None:
                self.count -= 1


def shake(sock: Any, turns: Turns) -> None:
    """Shake hands in TLS, in a greenlet; in turns, for an answer takes a millisecond or more.

    :param sock: a gevent `SSLSocket` of a server, whose handshake has not begun.
    :raises OSError: it failed, or what the client sends is not waited for.
    """
    sock.setblocking(False)
    while True:
        wait_read(sock.fileno())
        # Also behind a first one: the server may ask for another (RFC 8446, 4.1.4).
        for pause_s in _LOOKS_S:
            size = hello_bytes(sock._sock.recv(_SEEN_BYTES, MSG_PEEK))
            if size is not None:
                break
            gevent.sleep(pause_s)
        if size is None or size > LARGEST_HELLO:
            raise OSError(f"a ClientHello of {size or 'unknown'} bytes")
        turns.share()
        while True:
            try:
                sock.do_handshake()
                return
            except ssl.SSLWantReadError:
                break
            except ssl.SSLWantWriteError:
                wait_write(sock.fileno())


def hello_bytes(seen: bytes) -> int | None:
    """The length of the ClientHello that *seen* begins with, in however many records; 0 if it begins with
    something else, None if more has to come to tell (RFC 8446, 5.1 and 4)."""
    message = b""
    at = 0
    while seen and len(message) < 4:
        if len(seen) - at < 5:
            return None
        kind, size = seen[at], int.from_bytes(seen[at + 3 : at + 5], "big")
        if kind == _HANDSHAKE:
            message += seen[at + 5 : at + 5 + size]
        elif kind != _CHANGE_CIPHER_SPEC:
            return 0
        at += 5 + size
    return int.from_bytes(message[1:4], "big") if message[:1] == bytes([_CLIENT_HELLO]) else 0
