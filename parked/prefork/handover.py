"""How a running server becomes its next version (HUP): the supervisor executes itself anew.

The process stays, and with it its id, its children and its descriptors; the code is new. What the new image
has to know comes in one environment variable, valid for this process id only. The order of events:

    HUP -> a child imports the application, to see whether it can be done at all
        -> the supervisor executes itself, keeping the listening sockets and the pipes to its workers
        -> it imports, forks new workers on the same sockets, waits until all are ready
        -> the old workers retire: they accept no more, and each response is their connection's last
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, NoReturn

_VARIABLE: Final = "PARKED_HANDOVER"


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


def receive(environment: Mapping[str, str]) -> Handover | None:
    """What was left to us, if this is a new image of a running server."""
    text = environment.get(_VARIABLE)
    if not text:
        return None
    fields = json.loads(text)
    if fields.pop("pid") != os.getpid():
        return None
    # An image of another version may say more than we know.
    known = {field.name for field in dataclasses.fields(Handover)}
    handover = Handover(**{name: value for name, value in fields.items() if name in known})
    for fd in [*handover.lifelines, *([handover.scoreboard] if handover.scoreboard >= 0 else [])]:
        os.set_inheritable(fd, False)
    return handover


def execute(handover: Handover) -> NoReturn:
    """Become the new image; nothing after this runs."""
    metrics = [handover.metrics] if handover.metrics is not None else []
    for fd in [*handover.listeners, *handover.lifelines, *metrics, handover.scoreboard]:
        os.set_inheritable(fd, True)
    environment = {**os.environ, _VARIABLE: json.dumps({"pid": os.getpid(), **asdict(handover)})}
    os.execve(sys.executable, sys.orig_argv, environment)


def adopt(fd: int) -> socket.socket:
    """A socket object for an inherited descriptor, closed on the next exec."""
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
