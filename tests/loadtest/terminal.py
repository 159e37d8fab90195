"""A program in a terminal of its own: a pseudo-terminal that controls it, and what it would look like."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Self

import pyte

from tests.loadtest.runs import NO_PICTURES

if TYPE_CHECKING:
    from collections.abc import Callable

#: xterm's control sequences for the alternate screen and the cursor.
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


class Terminal:
    """`with Terminal(command) as terminal`; the command is killed at the end if need be.

    :ivar output: everything that it has written.
    """

    def __init__(self, command: list[str], columns: int = 80, lines: int = 24, **environment: str) -> None:
        self._command = command
        self._size = columns, lines
        self._environment = (
            {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
            | {"TERM": "xterm-256color", "PYTHONPATH": NO_PICTURES, "PYTHONUTF8": "1"}
            | environment
        )
        self.output = b""

    def __enter__(self) -> Self:
        self.master, slave = pty.openpty()
        self.resize(*self._size)

        def control() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            self._command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=self._environment,
            preexec_fn=control,
        )
        self.slave = slave  # kept open, so that its settings can be read when the program has gone
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """The window is closed: the kernel sends HUP. (os.close may be gevent's, which puts it off.)"""
        for descriptor in (self.master, self.slave):
            if descriptor >= 0:
                os.closerange(descriptor, descriptor + 1)
        self.master = self.slave = -1

    def resize(self, columns: int, lines: int) -> None:
        self._size = columns, lines
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def await_(self, condition: Callable[[], bool], within_s: float = 30.0) -> None:
        """Read on until it is true."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, self.output.decode(errors="replace")[-4000:]
            if select.select([self.master], [], [], 0.05)[0]:
                self.output += os.read(self.master, 1 << 16)

    def end(self, within_s: float = 60.0) -> int:
        """Its exit code, when it has ended and everything is read."""
        self.await_(lambda: self.process.poll() is not None, within_s)
        while select.select([self.master], [], [], 0)[0]:
            self.output += os.read(self.master, 1 << 16)
        return self.process.returncode

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)

    def picture(self) -> list[str]:
        """The lines of the alternate screen as they stand now, or stood last; [] before it was entered."""
        shown = self.output.rpartition(ENTER)[2].partition(LEAVE)[0] if ENTER in self.output else b""
        return drawn(shown, *self._size) if shown else []

    def scrollback(self) -> str:
        """What is left in the ordinary screen: all that was written outside of the alternate one."""
        first, *rest = self.output.split(ENTER)
        kept = first + b"".join(part.partition(LEAVE)[2] for part in rest)
        return "\n".join(drawn(kept, 200, 500)).rstrip()


def drawn(output: bytes, columns: int, lines: int) -> list[str]:
    screen = pyte.Screen(columns, lines)
    pyte.ByteStream(screen).feed(output)
    return list(screen.display)
