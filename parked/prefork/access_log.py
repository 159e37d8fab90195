"""The access log: lines of all workers in one file, which logrotate may rename at any time."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TextIO

from parked.shared.log import GuardedLog


class LogError(Exception):
    """A log that cannot be opened, in a line."""


class LogFile(GuardedLog):
    """A file that is appended to, line by line: short lines of several processes do not mix (write(2),
    O_APPEND). Each process opens it for itself.
    """

    def __init__(self, name: str) -> None:
        self._path = Path(name).absolute()
        super().__init__(None)

    def open(self) -> None:
        """To be called before the first line.

        :raises LogError: it cannot be opened.
        """
        try:
            self.change(self._open())
        except OSError as error:
            raise LogError(f"cannot open {self._path}: {error.strerror}") from error

    def reopen(self) -> None:
        """Go on in the file that has this name now. Where there is none to be had, the old one will do."""
        try:
            new = self._open()
        except OSError as error:
            print(f"cannot open {self._path} again: {error.strerror}", file=sys.stderr, flush=True)
            return
        self.change(new).close()

    def _open(self) -> TextIO:
        return open(
            self._path, "a", buffering=1, encoding="utf-8", errors="backslashreplace", opener=_open_at_once
        )


def _open_at_once(name: str, flags: int) -> int:
    """Open a file that may be a pipe whose reader has not come yet, or has gone, and is not waited for."""
    try:
        return os.open(name, flags | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    return os.open(name, flags & ~os.O_WRONLY | os.O_RDWR | os.O_NONBLOCK)  # fifo(7)


def log_of(name: str) -> GuardedLog | None:
    """The log by its name as a setting: - is standard output, empty is none; a file is still to be opened."""
    if not name or (name == "-" and sys.stdout is None):
        return None
    return GuardedLog(sys.stdout) if name == "-" else LogFile(name)
