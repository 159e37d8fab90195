"""Files of the application that have changed, for --reload: looked at again and again, without any help.

Watched is what the import of the application has loaded, less what is installed; and the configuration. What
it imports only when a request comes is not.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: Seconds between two looks. A thousand files take 2 ms.
LOOK_S: Final = 1.0


class Changes:
    """Whether any of some files is another than it was.

    :param files: those to watch.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._times = {name: _changed(name) for name in files}

    def look(self) -> str:
        """The name of one that has changed since the last look; empty if none has."""
        found = ""
        for name, before in self._times.items():
            now = _changed(name)
            if now != before:
                self._times[name] = now
                found = name
        return found


def of_application(configuration: str) -> Changes:
    """All modules that are loaded now, less those that were installed, and the configuration file."""
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    modules = [getattr(module, "__file__", None) for module in [*sys.modules.values()]]
    files = {name for name in modules if name and not name.startswith(installed)}
    return Changes({*files, configuration} - {""})


def _changed(name: str) -> int:
    """When, in nanoseconds; 0 if it is not there."""
    try:
        return Path(name).stat().st_mtime_ns
    except OSError:
        return 0
