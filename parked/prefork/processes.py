"""Child processes, as their supervisor sees them: whether they have ended, and the signals that they get."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from os import WNOHANG, waitpid  # as they are before gevent patches them
from typing import Final

from parked.prefork.settings import EXIT_KILLED
from parked.prefork.signals import STOPPING, Signals

#: Seconds in which a second TERM or INT is taken for an echo of the first: timeout(1) and some shells signal
#: a process and then its group.
_ECHO_S: Final = 0.5
#: Seconds beyond its graceful timeout that a worker may take to exit.
_EXIT_GRACE_S: Final = 2.0
#: Seconds to wait where nothing is due: a killed process ends, if the kernel lets it, and its end wakes us.
_IDLE_S: Final = 3600.0


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


def stop(pids: Iterable[int], signals: Signals, graceful_s: float | None) -> int:
    """Let them finish within *graceful_s* seconds, and end them then, or with a second signal to stop.

    :param graceful_s: None ends them at once.
    :returns: the exit code: 0 if each of them has ended well.
    """
    left = {pid for pid in pids if ended(pid) is None}  # who has died before is not our doing
    began = time.monotonic()
    deadline = began if graceful_s is None else began + graceful_s + _EXIT_GRACE_S
    for pid in left:
        kill(pid, signal.SIGTERM)
    code = 0
    while left:
        now = time.monotonic()
        if now >= deadline:
            for pid in left:
                kill(pid, signal.SIGKILL)
            code = EXIT_KILLED
            deadline = now + _IDLE_S
        received = signals.wait(deadline - now)
        is_echo = time.monotonic() <= began + _ECHO_S
        if signal.SIGQUIT in received or (not is_echo and {*received} & {*STOPPING}):
            deadline = now
        for pid in [*left]:
            if (status := ended(pid)) is not None:
                left.discard(pid)
                code = EXIT_KILLED if status else code
    return code
