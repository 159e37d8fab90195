"""What a service manager is told: ready, reloading, stopping (sd_notify(3), `Type=notify` of systemd)."""

from __future__ import annotations

import os
import time
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket  # gevent's would make an event loop
from typing import Final

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"


def reloading() -> str:
    """The state between HUP and the next `READY`; systemd wants the time with it, to tell reloads apart."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"


def notify(state: str, status: str = "") -> None:
    """Send *state*, and a line for people, to the manager that started us; without one, do nothing.

    A manager that does not listen is no reason to stop serving, so errors are ignored.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    message = f"{state}\nSTATUS={status}" if status else state
    try:
        with socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            # The @ stands for the NUL of an abstract address.
            sock.sendto(message.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
    except OSError:
        pass  # see above; there may be no descriptor left, too
