"""Whether a run may still come to something: one in which nothing but failures comes is ended early."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds from the first failure on, and failures, after which a run without any good request is hopeless. A
#: server that is just being started again answers sooner; a ramp of a few seconds opens more connections.
HOPELESS_S, HOPELESS_FAILURES = 10.0, 10


class Hope:
    """Looks at a run's totals once a second, until the first good request."""

    def __init__(self) -> None:
        self._has_had_a_good_one = False
        self._failing_since: float | None = None

    def is_lost(self, now: float, totals: Mapping[str, float]) -> bool:
        """:param totals: since the start of the run, of all users and hosts (`terms.sample`)."""
        if self._has_had_a_good_one:
            return False
        failed = totals["failures"] + totals["others_failed"]
        if totals["requests"] + totals["others"] + totals["elsewhere"] > failed:
            self._has_had_a_good_one = True
            return False
        if not failed:
            return False
        if self._failing_since is None:
            self._failing_since = now
        return failed >= HOPELESS_FAILURES and now - self._failing_since >= HOPELESS_S
