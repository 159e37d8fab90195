"""What the agent of a host tells the master and is answered, and how both are looked at where they enter.

Anybody who reaches the master may send one, so that nothing of it may end whoever works with it, or do
something to who reads it: numbers are within what a host can have, a name is one, and of the sample remain
the numbers that a machine has.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NotRequired, TypedDict

from parked.loadtest.machine.monitor import MachineSample
from parked.loadtest.terms.shape import wrong

#: Version of what agent and master say to each other; both come from the same release.
PROTOCOL = 1
#: Characters of a name (RFC 1035, 2.3.4), and of a text that is shown.
LONGEST_NAME, LONGEST_TEXT = 255, 300
#: Least and most of what a host may have; there are no more processes than that (PID_MAX_LIMIT; proc(5)).
_RANGES = {"cpu_count": (1, 1 << 16), "nofile_hard": (1, 1 << 31), "workers": (0, 1 << 22)}
_NUMBERS = frozenset(field.name for field in dataclasses.fields(MachineSample))
_without_odd = re.compile(r"[^0-9A-Za-z._:-]").sub


class HostMachine(TypedDict):
    """What a host is."""

    cpu_count: int
    kernel: str
    kernel_id: str
    namespace_id: int
    memory_total_bytes: int
    nofile_hard: int
    addresses: int
    workers: int


class HostClock(TypedDict):
    """Distance of the host's clock from the master's (`terms.clock.Offset`)."""

    offset_s: float
    error_s: float


class HostReport(TypedDict):
    """An agent's message."""

    protocol: int
    name: str
    facts: HostMachine
    clock: HostClock | None
    sample: dict[str, float | str | list[Any] | tuple[Any, ...] | None] | None
    pids: list[int]
    problem: str
    left: bool
    sent_unix_s: float


class Answer(TypedDict):
    """The master's."""

    protocol: int
    state: str  #: wait, go, over or refused
    why: NotRequired[str]
    echo_unix_s: float | None
    master_unix_s: float
    joined: int
    expected: int


class Part(Answer):
    """One that says go: what of the run is the host's."""

    workers: int
    connections: int
    host: str
    think: str
    length: str
    spawn_per_s: float


def is_answer(answer: Any) -> bool:
    """Whether a message is a master's of this version."""
    if wrong(answer, Answer) or answer["protocol"] != PROTOCOL:
        return False
    return answer["state"] != "go" or not wrong(answer, Part)


def objection(report: Any) -> str:
    """Why a message is no agent's; "" if it is."""
    if why := wrong(report, HostReport, "a host's report"):
        return why
    for name, (least, most) in _RANGES.items():
        if not least <= report["facts"][name] <= most:
            return f"{name} is not between {least:,} and {most:,}"
    return ""


def made_harmless(report: dict[str, Any]) -> dict[str, Any]:
    """A report without objections, as it is kept and shown."""
    sample = report["sample"] or {}
    return report | {
        "name": _without_odd("?", report["name"][:LONGEST_NAME]).lstrip("-") or "unnamed",
        "problem": report["problem"][:LONGEST_TEXT],
        "sample": {
            name: value
            for name, value in sample.items()
            if name in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool)
        },
    }
