"""How many files a process may open: the soft limit raised to the hard one."""

from __future__ import annotations

import resource
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
