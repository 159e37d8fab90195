from __future__ import annotations

import pytest

from parked.server import deadlines, parking


@pytest.fixture(autouse=True)
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts are looked at fifty times a second, so that tests need not wait for the next look."""
    monkeypatch.setattr(parking, "TICK_S", 0.02)
    monkeypatch.setattr(deadlines, "GRAIN_S", 0.02)
