"""How a child process begins and how it ended."""

from __future__ import annotations

import ctypes
import os
from typing import Final

#: prctl(2): the signal for this process when its parent dies.
_PR_SET_PDEATHSIG: Final = 1


def end_with_parent(number: int, parent: int) -> None:
    """To be called in a child: have the kernel send it signal *number* when its parent ends, however it does.

    :param parent: the parent's process id; if it has ended already, so does this process, with code 1.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def cause(status: int) -> str:
    """How a child ended, in words; *status* as from `os.waitpid`."""
    if os.WIFSIGNALED(status):
        return f"was killed by signal {os.WTERMSIG(status)}"
    return f"exited with code {os.WEXITSTATUS(status)}"
