"""TLS handshakes under way, and PROXY headers awaited: bounded by themselves, whatever the connection cap.

Each holds a greenlet and what OpenSSL allocates, 57 KB, for a client that may never say a word.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import gevent
from greenlet import getcurrent

#: At once in a process: 29 MB. A core does a thousand a second, so that honest ones are rarely so many.
MAX_HANDSHAKES: Final = 512
#: Seconds after which one gives way to a newcomer when there are so many. Lower cuts off slow links when many
#: come at once, higher lets who keeps all places keep others out for longer.
GRACE_S: Final = 1.0


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
