"""How a running server becomes its next version (HUP): the supervisor executes itself anew.

The process stays, and with it its id, its children and its descriptors; the code is new. What the new image
has to know comes in one environment variable, valid for this process id only. The order of events:

    HUP -> a child tries the new code, as far as a worker that is ready (`parked.prefork.trial`)
        -> the supervisor executes itself, keeping the listening sockets and the pipes to its workers
        -> it imports, forks new workers on the same sockets, waits until all are ready
        -> the old workers retire: they accept no more, and each response is their connection's last
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass
from socket import SO_ACCEPTCONN, SOL_SOCKET, socket
from typing import Any, Final

from gevent import monkey

VARIABLE: Final = "PARKED_HANDOVER"
_Socket: Any = monkey.get_original("socket", "socket")  # gevent's would make an event loop


class HandoverError(Exception):
    """An environment variable that no server has left to us, in a line."""


@dataclass(frozen=True)
class Handover:
    """What the old image leaves to the new one. Sockets are named by their descriptors."""

    listeners: list[int]
    metrics: int | None
    workers: int
    #: Processes that have to retire when the new workers are ready, and those that are retiring already.
    old: list[int]
    #: Writing ends of the pipes that tell these that the supervisor lives.
    lifelines: list[int]
    #: The scoreboard, whose figures go on, and the layout that it has.
    scoreboard: int = -1
    layout: int = 0
    #: Where it was started, with the links in its path as they were written.
    folder: str = ""
    #: Files that this server has made, by path, device and inode, and who removes them
    #: (`parked.prefork.made`).
    files: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)
    remover: tuple[int, int] = (0, -1)
    #: The file with the process id, locked.
    pid_fd: int = -1
    #: Workers that its settings asked for, before TTIN and TTOU; 0 if it has not said.
    planned: int = 0

    def check(self) -> None:
        """:raises ValueError: a part is of another kind than it should be."""
        numbers = [*self.listeners, *self.old, *self.lifelines, *self.remover, self.workers]
        numbers += [self.scoreboard, self.layout, self.pid_fd, -1 if self.metrics is None else self.metrics]
        numbers.append(self.planned)
        numbers += [number for _, device, inode in self.files for number in (device, inode)]
        texts = [self.folder, *(name for name, _, _ in self.files)]
        if not all(type(number) is int for number in numbers) or not all(type(text) is str for text in texts):
            raise ValueError("numbers and texts in each other's places")
        if self.workers < 1 or not self.listeners or min(self.old, default=1) < 1 or len(self.remover) != 2:
            raise ValueError("no workers, no sockets or no processes")

    def descriptors(self) -> list[int]:
        """All that the next image keeps open."""
        single = (
            self.metrics if self.metrics is not None else -1,
            self.scoreboard,
            self.remover[1],
            self.pid_fd,
        )
        return [*self.listeners, *self.lifelines, *(fd for fd in single if fd >= 0)]


def is_waiting(environment: Mapping[str, str]) -> bool:
    """Whether something was left to us that has not been received yet."""
    try:
        return receive(dict(environment)) is not None
    except HandoverError:
        return False


def receive(environment: MutableMapping[str, str]) -> Handover | None:
    """What was left to us, if this is a new image of a running server; taken out of *environment*."""
    text = environment.pop(VARIABLE, "")
    if not text:
        return None
    try:
        fields = json.loads(text)
        if fields.pop("pid") != os.getpid():
            return None
        # An image of another version may say more than we know.
        known = {field.name for field in dataclasses.fields(Handover)}
        handover = Handover(**{name: value for name, value in fields.items() if name in known})
        handover.check()
        for fd in handover.descriptors():
            os.set_inheritable(fd, False)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        OSError,
    ) as error:
        raise HandoverError(f"{VARIABLE} is not what a server left: {describe(error)}") from error
    return handover


def leave(handover: Handover, environment: MutableMapping[str, str]) -> None:
    """Put it where the next image of this process will look."""
    environment[VARIABLE] = json.dumps({"pid": os.getpid(), **asdict(handover)})


def execute(handover: Handover) -> None:
    """Become the new image; nothing after this runs.

    :raises OSError: it cannot be done, and this image goes on.
    """
    descriptors = handover.descriptors()
    environment = {**os.environ}
    leave(handover, environment)
    before = os.open(".", os.O_PATH)  # not by its name: the old release's folder may be gone
    try:
        os.chdir(handover.folder)
        for fd in descriptors:
            os.set_inheritable(fd, True)
        os.execve(sys.executable, sys.orig_argv, environment)
    except OSError:
        for fd in descriptors:
            os.set_inheritable(fd, False)
        os.fchdir(before)
        os.close(before)
        raise


def describe(error: BaseException) -> str:
    """What an error says, in a line and no longer than one."""
    return f"{type(error).__name__} {error}".replace("\n", " ")[:120].strip()


def adopt(fd: int) -> socket:
    """A socket object for an inherited descriptor, closed on the next exec.

    :raises HandoverError: it is no socket that listens.
    """
    try:
        sock: socket = _Socket(fileno=fd)
        if not sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
            sock.detach()
            raise ValueError("it does not listen")
    except (OSError, ValueError, OverflowError) as error:
        raise HandoverError(f"descriptor {fd} is not a listening socket: {error}") from error
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
