"""Lines for people, written where they can be, and of no consequence where they can't.

A disk is full, a pipe's reader is gone or asleep: none of that is a reason for a connection, a process or a
service to end or to wait. What could not be written is counted, and said as soon as writing works again.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import Any


class GuardedLog:
    """A text file whose `write` neither raises nor waits for a reader.

    Files of Python's own that would be flushed at each line anyhow, as standard error is, are written to by
    their descriptor: what cannot leave their buffer would fail again with each line that comes after.

    :param file: anything with a `write`.
    """

    def __init__(self, file: Any) -> None:
        self._file: Any = None
        self.change(file)
        self._never_waits = True
        self._terminal = -1
        self._is_torn = False
        #: Lines that could not be written since the last that could.
        self.lost = 0

    def write(self, text: str) -> None:
        """Write *text*, a line or several, or count it."""
        if not isinstance(text, str):  # who asks whether this is a binary file is told as by any text file
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        try:
            if not self.lost:
                self._put(text)
                return
            torn = "\n" if self._is_torn else ""
            self._put(f"{torn}{self.lost} lines could not be written here\n{text}")
            self.lost = 0
            self._is_torn = False
        except Exception:  # whatever a log of somebody's own may raise
            self.lost += max(1, text.count("\n"))

    def note_lost(self, lines: int = 1) -> None:
        """Somebody else could not write here."""
        self.lost += lines

    def change(self, file: Any) -> Any:
        """From the next line on write to *file*, one of the same kind; returns the one before."""
        before, self._file = self._file, file
        self._by_descriptor = isinstance(file, io.TextIOWrapper) and file.line_buffering
        return before

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """What is still buffered goes out, if it can."""
        try:
            self._file.flush()
        except Exception:
            self.lost += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _put(self, text: str) -> None:
        if not self._by_descriptor:
            self._file.write(text)
            return
        data = text.encode(self._file.encoding, "backslashreplace")
        written = self._write(self._file.fileno(), data)
        if written < len(data):
            self._is_torn = True
            raise BlockingIOError("no room for all of it")

    def _write(self, fd: int, data: bytes) -> int:
        """Bytes written; fewer than all if the rest would have to wait.

        :raises OSError: nothing could be written.
        """
        kind = os.fstat(fd).st_mode
        if self._never_waits and (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
            try:
                # O_NONBLOCK would hold for everybody who has the pipe open; this holds for one call.
                return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
                self._never_waits = False  # pipes can do it since Linux 5.5
        if stat.S_ISCHR(kind) and os.isatty(fd):
            fd = self._opened_anew(fd)
        return os.write(fd, data)

    def _opened_anew(self, fd: int) -> int:
        """The terminal *fd*, by a descriptor whose O_NONBLOCK holds for nobody else.

        Whoever stops its output (^S, a selection, a window that hangs) would stop us with it.
        """
        if self._terminal < 0:
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._terminal = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:  # it is another user's
                return fd
        return self._terminal
