"""The supervisor's signals, taken by its loop one by one, and at their defaults in all that it starts.

Handlers, not a mask: a blocked or an ignored signal stays so in every program that the application starts
when it is imported, and a thread that it starts would take the signal with its default effect. A handler is a
default again behind exec, and behind fork by :mod:`parked.prefork.forks`. Handlers do nothing; Python writes
the number of each signal to a pipe (`signal.set_wakeup_fd`), which the loop reads.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from os import close  # as it is before gevent patches it: its own waits for a loop
from typing import Any, Final

from gevent import monkey

from parked.prefork import forks

# As they are before gevent patches them: its own would keep the handler of SIGCHLD to themselves.
_set_handler: Any = monkey.get_original("signal", "signal")
_get_handler: Any = monkey.get_original("signal", "getsignal")
_Poll: Any = monkey.get_original("select", "poll")

STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
#: Seconds of one wait: poll(2) takes milliseconds in an int, 24 days. A graceful timeout may be longer.
_LONGEST_S: Final = 3600.0
_COMMANDS: Final = (*STOPPING, signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU)
#: Would end the supervisor by their default, and mean nothing to it. If the application has a handler of
#: its own for one of them, that stays.
HARMLESS: Final[tuple[int, ...]] = (
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)


class StopRequested(SystemExit):
    """TERM, INT or QUIT in the midst of an import. The signal is in the pipe, too."""


class Signals:
    """Take the signals of this process from now on."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        #: Whether a signal to stop interrupts what is under way.
        self.interrupts = True
        forks.in_child(self._let_go)
        self._take((*_COMMANDS, *HARMLESS))

    def take_all(self) -> None:
        """Take back what the application has changed, and from now on the ends of children, too."""
        self._take((*_COMMANDS, *HARMLESS, signal.SIGCHLD))

    def _take(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if number not in HARMLESS or _get_handler(number) is signal.SIG_DFL:
                _set_handler(number, self._note)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # An image before us had them blocked until we would be ready for them.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _note(self, number: int, _frame: Any) -> None:
        if self.interrupts and number in STOPPING:
            raise StopRequested

    def wait(self, timeout: float) -> bytes:
        """The numbers of signals in their order; empty after *timeout* seconds without one, or an hour."""
        poll = _Poll()
        poll.register(self._reader, 1)  # POLLIN
        poll.poll(min(timeout, _LONGEST_S) * 1000)
        try:
            return os.read(self._reader, 4096)
        except BlockingIOError:
            return b""

    def _let_go(self) -> None:
        """In a forked child: defaults, and no word to the parent."""
        signal.set_wakeup_fd(-1)
        for number in (*_COMMANDS, *HARMLESS, signal.SIGCHLD):
            if _get_handler(number) == self._note:
                _set_handler(number, signal.SIG_DFL)
        _set_handler(signal.SIGINT, signal.default_int_handler)
        close(self._reader)
        close(self._writer)


def block() -> None:
    """Hold back what the next image of this process is to take: it can't before it is there."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_COMMANDS, *HARMLESS))
