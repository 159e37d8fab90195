"""Whether a client has left: asked of the kernel when an application wants to know, and not before."""

from __future__ import annotations

import select
from typing import Any, Final

from gevent import monkey

#: Where applications find it; a callable, as waitress has one.
KEY: Final = "parked.client_disconnected"

_poll: Any = monkey.get_original("select", "poll")  # gevent's would wait in its loop
_LEFT: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR


def has_left(fd: int) -> bool:
    """Whether the peer of a connected socket has closed it, or its sending half, or has broken off.

    What it has sent before stays to be read. One that vanishes without a word is not noticed.
    """
    if fd < 0:
        return True
    poll = _poll()
    poll.register(fd, select.POLLRDHUP)
    return any(events & _LEFT for _, events in poll.poll(0))
