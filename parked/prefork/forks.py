"""What a forked child must not keep of this process: descriptors, signal handlers, watchers, its row.

Applications fork, too: `multiprocessing`, `os.fork`, `subprocess` with a function to call first. Such a child
may live for minutes, and what it keeps of ours (a listening socket, the pipe whose end tells that the
supervisor is gone, an event loop with our watchers) would act in our place. Whoever has such things says here
how a child lets go of them. The supervisor's own forks, of workers, come this way as well.
"""

from __future__ import annotations

import os
import signal
from _thread import get_ident  # as it is before gevent patches it
from collections.abc import Callable, Set
from typing import Any

_let_go: list[Callable[[], None]] = []
#: By thread: the signal mask to go back to.
_masks: dict[int, Set[Any]] = {}


def in_child(let_go: Callable[[], None]) -> None:
    """From now on call *let_go* in each forked child, before anything else happens there.

    It must neither wait nor raise. A child starts without any: what its own children let go of is its affair.
    """
    _let_go.append(let_go)


def _before() -> None:
    """No signal between fork and the end of `_in_child`: its handler would speak for the parent."""
    _masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop(get_ident(), ()))


def _in_child() -> None:
    mask = _masks.pop(get_ident(), ())
    _masks.clear()
    for let_go in _let_go:
        let_go()
    _let_go.clear()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
