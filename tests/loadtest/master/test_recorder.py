"""The recorder follows one run after the other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from locust.event import Events

from parked.loadtest.master import recorder
from tests.loadtest.scene import Scene, sample


def test_a_second_run_of_the_same_workers_counts_from_its_own_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a web UI starts them: the workers go on counting."""
    monkeypatch.setattr(recorder.gevent, "spawn", lambda *_: None)
    scene = Scene(tmp_path / "run", monkeypatch)
    scene.run.end()
    scene.environment.dispatcher_class = None
    scene.environment.events = Events()
    scene.runner.register_message = lambda *_: None
    both = recorder.Recorder(scene.environment)

    def tell(**counts: Any) -> None:
        both._take(SimpleNamespace(node_id="local", data=sample(unix_time_s=next(times), **counts)))

    times = iter(range(1000, 2000))
    scene.environment.events.test_start.fire()
    tell(requests=40, failures=3, failures_by_kind={"timeout": 3}, opened=10, cpu_s=1.5)
    both._test_stopped()
    scene.environment.events.test_start.fire()
    tell(requests=45, failures=4, failures_by_kind={"timeout": 3, "status": 1}, opened=20, cpu_s=1.75)
    second = both._fleet.second()
    assert (second.totals["requests"], second.totals["failures"], second.totals["opened"]) == (5, 1, 10)
    assert second.totals["cpu_s"] == 0.25
    assert second.failures_by_kind == {"status": 1}
    both._test_stopped()


def test_seconds_that_a_busy_machine_missed_have_one_row_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder.gevent, "spawn", lambda *_: None)
    scene = Scene(tmp_path / "run", monkeypatch)
    scene.environment.events = Events()
    scene.runner.register_message = lambda *_: None
    both = recorder.Recorder(scene.environment)
    began, rows = scene.now, []

    def sleep(seconds: float) -> None:
        scene.now += seconds

    def second() -> None:
        rows.append(scene.now - began)
        scene.now += 3.5 if len(rows) == 2 else 0.01
        run.ended = len(rows) == 5

    monkeypatch.setattr(recorder.gevent, "sleep", sleep)
    run = SimpleNamespace(ended=False, over="", second=second)
    both._follow(run)  # type: ignore[arg-type]
    assert rows == pytest.approx([1, 2, 6, 7, 8])
    scene.run.end()
