"""A new image of the supervisor that cannot start, while the workers of the one before it serve.

What passed the trial (`parked.prefork.trial`) may have changed a moment later: a configuration that is just
being written, a certificate without its key. That is no reason to end those who serve.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

from parked.prefork import handover
from parked.prefork.made import MadeFiles
from parked.prefork.processes import ended, kill
from parked.prefork.settings import EXIT_KILLED, PROGRAM
from parked.prefork.signals import STOPPING, Signals, block

#: Seconds until the next attempt, unless HUP asks for one.
PAUSE_S: Final = 10.0
#: Seconds between looks at workers that end.
_LOOK_S: Final = 0.5


def try_again(why: str, signals: Signals) -> int:
    """Become this image once more, again and again; returns the exit code when a signal says stop.

    :param why: it could not start this time, in a line.
    """
    signals.interrupts = False
    signals.take_all()
    while True:
        print(f"{PROGRAM}: {why}; trying again in {PAUSE_S:g} s, the old workers stay", file=sys.stderr)
        heard = b""
        while not {*heard} & {*STOPPING, signal.SIGHUP}:
            heard = signals.wait(PAUSE_S)
            if not heard:
                break
        left = handover.receive(os.environ)
        assert left is not None
        if {*heard} & {*STOPPING}:
            return _stop(left, signals, at_once=signal.SIGQUIT in heard)
        block()
        try:
            handover.execute(left)
        except OSError as error:
            signals.take_all()
            handover.leave(left, os.environ)
            why = str(error.strerror)


def _stop(left: handover.Handover, signals: Signals, at_once: bool) -> int:
    """Let the old workers finish; *at_once*, or with a second signal, end them as they are."""
    code = 0
    number = signal.SIGKILL if at_once else signal.SIGTERM
    working = {*left.old}
    while working:
        for pid in working:
            kill(pid, number)
        working = {pid for pid in working if ended(pid) is None}
        if working and {*signals.wait(_LOOK_S)} & {*STOPPING}:
            number, code = signal.SIGKILL, EXIT_KILLED
    MadeFiles(left.files, left.remover, left.pid_fd).remove()
    return code
