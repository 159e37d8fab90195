"""Space that is kept back in the results folder, for when somebody else has filled the disk.

A file without a name: the kernel frees it at the latest when this process has ended, however it ends.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import IO

from parked.loadtest.terms import files

#: Enough for seven hours of rows and lines (300 bytes a second), and for the report with its plots (1 MiB).
RESERVE_BYTES = 8 * 1024 * 1024
#: write(2): the device has no room, or this user has none on it.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """The space, and the writing that may fall back on it.

    :ivar spent: whether it has been given up.
    """

    def __init__(self, folder: Path, size: int = RESERVE_BYTES) -> None:
        self.spent = False
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed in spend() or close()
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError:  # a small disk, or a file system that can't: then there is none
            self._file.close()

    def spend(self, error: OSError) -> bool:
        """Give it up if that error is a full disk; whether there is reason to try again."""
        if error.errno not in _FULL or self._file.closed:
            return False
        self._file.close()
        self.spent = True
        return True

    def close(self) -> None:
        self._file.close()

    def replace(self, path: Path, text: str) -> None:
        """`files.replace`."""
        try:
            files.replace(path, text)
        except OSError as error:
            if not self.spend(error):
                raise
            files.replace(path, text)

    def lines(self, path: Path) -> Lines:
        """A new text file that is written line by line."""
        return Lines(files.new(path, newline="", buffering=1), self)


class Lines:
    """What csv and the log need of a file."""

    def __init__(self, file: IO[str], reserve: Reserve) -> None:
        self._file = file
        self._reserve = reserve

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            if not self._reserve.spend(error):
                raise
            self._file.flush()  # what could not be written is still in its buffer

    def close(self) -> None:
        self._file.close()
