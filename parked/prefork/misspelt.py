"""Variables that look like settings of the server and are none: each is named, none ends the start.

A wrong flag ends it. A variable may be somebody else's, as Kubernetes' for a service of this name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

from parked.prefork import handover, settings, trial

PREFIX: Final = "PARKED_"
#: What is no setting of the server, but read by the load test (which may start it), by scripts/environment,
#: by the server's next image, or by this project's tests.
_OTHERS: Final = frozenset(
    (
        *("PARKED_THINK", "PARKED_LENGTH", "PARKED_SOURCE", "PARKED_LOADTEST_METRICS"),
        *("PARKED_REPORT", "PARKED_COMMAND", "PARKED_MASTER_KEYS"),
        *("PARKED_EXPECT_HOSTS", "PARKED_JOIN_TIMEOUT_S", "PARKED_HOST_ID"),
        "PARKED_VENV",
        handover.VARIABLE,
        trial.VARIABLE,
        *("PARKED_DRILL_INSIDE", "PARKED_MODEL_EXAMPLES", "PARKED_TEST_USERS"),
    )
)
#: What Kubernetes tells a pod of services whose names begin with ours ("Discovering services" in its docs).
_SERVICE: Final = re.compile(r"PARKED_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_[A-Z]+(_[A-Z]+)?)?)")


def hints(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable that nobody reads, with the one that was meant, sorted by name."""
    known = [name for field in dataclasses.fields(settings.Settings) for name in settings.variables(field)]
    return [
        f"{name} is not read: " + _meant(name, known)
        for name in sorted(environment)
        if name.startswith(PREFIX)
        and name not in known
        and name not in _OTHERS
        and not _SERVICE.fullmatch(name)
    ]


def _meant(name: str, known: list[str]) -> str:
    # Without what all have in common, which would make all alike.
    ours = [other.removeprefix(PREFIX) for other in known if other.startswith(PREFIX)]
    close = get_close_matches(name.removeprefix(PREFIX), ours, 1, 0.75)
    return f"did you mean {PREFIX}{close[0]}?" if close else "no setting has this name"
