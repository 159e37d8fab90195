"""`--abort-on-fail`: whether a run that goes on has failed already, by what it has written so far."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from parked.loadtest.command.live import Asked, Run
from parked.loadtest.report.goals import Goal
from parked.loadtest.report.record import NoRun, Record, sense
from parked.loadtest.report.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Seconds between two looks: the facts are written every five.
LOOK_S = 1.0
#: Seconds of the hold after which a percentile so far says something about that of the whole.
JUDGED_FROM_S = 10.0


class Watch:
    """Follows one results folder."""

    def __init__(self, folder: Path, asked: Asked, goals: Sequence[str]) -> None:
        self._folder = folder
        self._run = Run(folder, asked)
        # What is too small may still grow: only conditions with > are missed before the end.
        self._goals = [goal for goal in map(Goal.parse, goals) if goal.sign.startswith(">")]
        self._look_at = 0.0
        self._facts: object = None

    def why(self) -> str:
        """Why the run fails, as far as that is certain; empty if it may still pass."""
        if time.monotonic() < self._look_at:
            return ""
        self._look_at = time.monotonic() + LOOK_S
        self._run.update()
        if self._run.facts is self._facts:
            return ""
        self._facts = self._run.facts
        return next(iter(self._run.reasons()), "") or self._missed()

    def _missed(self) -> str:
        if not self._goals or self._run.facts.get("hold_s", 0.0) < JUDGED_FROM_S:
            return ""
        try:
            record = Record.read(self._folder)
            with sense(self._folder):
                so_far = summarise(record)
        except NoRun:  # it is just being written
            return ""
        return next((why for goal in self._goals if (why := goal.missed(so_far))), "")
