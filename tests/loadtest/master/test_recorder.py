"""The recorder follows one run after the other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from locust.env import Environment
from locust.event import Events

from parked.loadtest.master import recorder
from tests.loadtest.scene import Scene, sample


def test_a_run_of_a_program_that_has_no_command_line_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """As in https://docs.locust.io/en/stable/use-as-lib.html"""
    environment = Environment(events=Events())
    recorder.attach(environment.events)
    runner = environment.create_local_runner()
    environment.events.init.fire(environment=environment, runner=runner, web_ui=None)
    environment.events.test_start.fire(environment=environment)
    runner.quit()
    assert caplog.records == []
    assert environment.process_exit_code is None


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
    scene.environment.host = "http://user:secret@127.0.0.1:9"
    scene.environment.parsed_options.headless = True
    both._test_stopped()
    assert scene.environment.host == "http://user:***@127.0.0.1:9"


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

    # Its own alone: whatever else of this process sleeps in a loop would never let go.
    monkeypatch.setattr(recorder, "gevent", SimpleNamespace(sleep=sleep))
    run = SimpleNamespace(ended=False, over="", second=second)
    both._follow(run)  # type: ignore[arg-type]
    assert rows == pytest.approx([1, 2, 6, 7, 8])
    scene.run.end()


@pytest.mark.parametrize(
    "spoilt",
    [
        None,
        [],
        {},
        {"unix_time_s": 1.0, "pid": 1, "users": 2},
        sample() | {"requests": "many"},
        sample() | {"unix_time_s": float("nan")},
        sample() | {"sends": [1]},
        sample() | {"latencies": [0, 1, 1]},
        sample() | {"latencies": [1000, 1000, 1 << 40, 1]},
        sample() | {"thinks_s": [1, 2]},
        sample() | {"thinks_s": [1.0, 2.0, 2, [[float("inf"), 2]]]},
        sample() | {"lengths": [10**400, 2.0, 2, [[1, 2]]]},
        sample() | {"open_s": [1.0, float("nan"), 2, [[1, 2]]]},
        sample() | {"open_s": [1.0, 1.0, 2, [[1, 10**30]]]},
        sample() | {"open_s": [1.0, 1.0, 1.0, [[10**7, 1]]]},
        sample() | {"failures_by_kind": {"a": "b"}},
        sample() | {"failures_by_kind": {str(number): 1 for number in range(recorder.MOST_KINDS + 1)}},
    ],
)
def test_a_message_of_the_wrong_shape_is_counted_and_named_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: Any
) -> None:
    monkeypatch.setattr(recorder.gevent, "spawn", lambda *_: None)
    scene = Scene(tmp_path / "run", monkeypatch)
    scene.run.end()
    scene.environment.events = Events()
    scene.runner.register_message = lambda *_: None
    both = recorder.Recorder(scene.environment)
    scene.environment.events.test_start.fire()
    for _ in range(3):
        both._take(SimpleNamespace(node_id="stranger\x1b", data=spoilt))
    both._take(SimpleNamespace(node_id="local", data=sample(unix_time_s=5.0)))
    assert both._run is not None
    both._run.second()
    assert both._run.row["connections"] == 10
    assert both._refused == {"stranger\x1b": 3}
    both._test_stopped()
    notes = scene.facts()["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("a message of stranger\\x1b makes no sense and is not counted: ")


def test_a_run_that_can_not_be_written_ends_before_it_goes_on_unfollowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[Any] = []
    monkeypatch.setattr(recorder.gevent, "spawn", lambda *call: spawned.append(call[0]))
    scene = Scene(tmp_path / "run", monkeypatch)
    scene.run.end()
    scene.environment.events = Events()
    scene.environment.parsed_options.results = str(tmp_path / "run" / "samples.csv")
    scene.runner.register_message = lambda *_: None
    both = recorder.Recorder(scene.environment)
    scene.environment.events.test_start.fire()
    assert spawned == [both._end]
    assert scene.environment.process_exit_code == 1
    both._test_stopped()  # of a run that there is not


def test_a_run_that_can_not_be_followed_ends_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[Any] = []
    own = SimpleNamespace(spawn=lambda *call: spawned.append(call[0]), sleep=lambda _: None)
    monkeypatch.setattr(recorder, "gevent", own)
    scene = Scene(tmp_path / "run", monkeypatch)
    scene.environment.events = Events()
    scene.runner.register_message = lambda *_: None
    both = recorder.Recorder(scene.environment)

    def second() -> None:
        run.ended = bool(notes)
        raise KeyError("facts")

    notes: list[str] = []
    run: Any = SimpleNamespace(ended=False, over="", second=second, note=notes.append)
    both._follow(run)
    assert spawned[-1] == both._end
    assert notes[0] == "the run could not be followed any more: KeyError: 'facts'"
    scene.run.end()
