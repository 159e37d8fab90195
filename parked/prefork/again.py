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
from parked.prefork.processes import stop
from parked.prefork.settings import PROGRAM, Settings
from parked.prefork.signals import STOPPING, Signals, block

#: Seconds until the next attempt, unless HUP asks for one.
PAUSE_S: Final = 10.0


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
            # The settings that would say how long they may take are what is wrong.
            code = stop(left.old, signals, None if signal.SIGQUIT in heard else Settings().graceful_timeout)
            MadeFiles(left.files, left.remover, left.pid_fd).remove()
            return code
        block()
        try:
            handover.execute(left)
        except OSError as error:
            signals.take_all()
            handover.leave(left, os.environ)
            why = str(error.strerror)
