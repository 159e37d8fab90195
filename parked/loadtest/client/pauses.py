"""How long garbage collections stopped this process: the collector calls us, so requests pay nothing."""

from __future__ import annotations

import gc
import time


class CollectorPauses:
    """From now on.

    :ivar total_s: of all collections.
    :ivar longest_s: since it was last reset by whoever reports it.
    """

    def __init__(self) -> None:
        self.total_s = self.longest_s = 0.0
        self._began = 0.0
        gc.callbacks.append(self._step)

    def close(self) -> None:
        gc.callbacks.remove(self._step)

    def _step(self, phase: str, _info: dict[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        else:
            self.total_s += now - self._began
            self.longest_s = max(self.longest_s, now - self._began)
