"""When a worker fetches its events at intervals instead of as they come: the server's and the load test's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import app.moderation
import loadtest.moderation

WINDOWS_S = app.moderation.WINDOWS_S


class Core:
    """A /proc/self/schedstat in which a process waits so long each time, 300 times a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 0.0
        self._waited_ns, self._turns = 0, 1
        self.wait(0.0, 1.0)

    def wait(self, seconds: float, passing_s: float) -> None:
        self.now += passing_s
        self._waited_ns += int(300 * seconds * 1e9)
        self._turns += 300
        self.path.write_text(f"123456 {self._waited_ns} {self._turns}\n")


@pytest.fixture
def core(tmp_path: Path) -> Core:
    return Core(tmp_path / "schedstat")


@pytest.fixture(params=[app.moderation, loadtest.moderation], ids=["server", "load test"])
def moderating(request: pytest.FixtureRequest) -> Any:
    return request.param.Moderation


@pytest.fixture
def moderation(core: Core, moderating: Any) -> Any:
    moderation = moderating(core.path, lambda: core.now)
    moderation.look(0)
    return moderation


def window(
    core: Core, moderation: Any, wait_s: float, events_per_s: float = 400, passing_s: float = 1.0
) -> float:
    core.wait(wait_s, passing_s)
    return float(moderation.look(round(events_per_s * passing_s)))


def test_fetches_at_once_where_there_are_cores_to_spare(core: Core, moderation: Any) -> None:
    assert [window(core, moderation, 0.001) for _ in range(5)] == [0.0] * 5


def test_opens_a_window_when_cores_are_short_and_keeps_it(core: Core, moderation: Any) -> None:
    assert window(core, moderation, 0.004) == WINDOWS_S[1]
    assert [window(core, moderation, 0.001) for _ in range(5)] == [WINDOWS_S[1]] * 5


def test_widens_the_window_while_the_wait_is_longer_and_no_further(core: Core, moderation: Any) -> None:
    assert [window(core, moderation, 1.0) for _ in range(6)] == [*WINDOWS_S[1:], WINDOWS_S[-1], WINDOWS_S[-1]]


def test_goes_back_step_by_step_when_cores_are_free_again(core: Core, moderation: Any) -> None:
    for _ in range(4):
        window(core, moderation, 1.0)
    assert [window(core, moderation, 0.0001) for _ in range(5)] == [*reversed(WINDOWS_S[:-1]), 0.0]


def test_takes_a_window_in_which_several_events_come(core: Core, moderation: Any) -> None:
    assert window(core, moderation, 0.004, events_per_s=60) == 0.04
    assert window(core, moderation, 0.001, events_per_s=5) == 0.0  # none would save a wake-up


def test_knows_how_long_the_events_took(core: Core, moderation: Any) -> None:
    assert window(core, moderation, 0.004, events_per_s=300, passing_s=0.5) == 0.01
    assert window(core, moderation, 0.001, events_per_s=150, passing_s=1.5) == 0.02


def test_does_without_a_kernel_that_counts(tmp_path: Path, moderating: Any) -> None:
    assert moderating(tmp_path / "none").look(400) == 0.0
    (tmp_path / "odd").write_text("no numbers\n")
    assert moderating(tmp_path / "odd").look(400) == 0.0
