"""How many files a process may open: the soft limit raised to the hard one. And the first three."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Final

_NR_OPEN: Final = Path("/proc/sys/fs/nr_open")


def raise_nofile() -> int:
    """Raise the soft limit of open files to the hard one, and return it.

    "unlimited" is not possible for it: fs.nr_open bounds it (Documentation/admin-guide/sysctl/fs.rst).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = int(_NR_OPEN.read_text("ascii"))
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def fill_standard() -> None:
    """Have standard input, output and error be /dev/null, where the caller has closed them.

    The next files and sockets would get their numbers, and what is meant for people would end up there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for as long as the process
