"""Child processes, as their supervisor sees them: whether they have ended, and the signals that they get."""

from __future__ import annotations

import os
from os import WNOHANG, waitpid  # as they are before gevent patches them


def ended(pid: int) -> int | None:
    """The status of a child that has ended; 0 if somebody else was told it, None while it runs."""
    try:
        found, status = waitpid(pid, WNOHANG)
    except ChildProcessError:
        return 0
    return status if found else None


def bury_orphans() -> None:
    """As process 1, of a container."""
    try:
        while waitpid(-1, WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def kill(pid: int, number: int) -> None:
    """Send a signal, unless the process was quicker, or has become another user."""
    try:
        os.kill(pid, number)
    except OSError:
        pass
