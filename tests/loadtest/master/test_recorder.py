"""What the recorder writes, fed with samples as workers send them."""

from __future__ import annotations

import csv
import errno
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from locust.event import Events
from locust.runners import STATE_RUNNING, STATE_SPAWNING

from parked.loadtest.master import recorder
from parked.loadtest.master.fleet import Fleet
from parked.loadtest.master.recorder import Run
from parked.loadtest.report import report, witnesses
from parked.loadtest.report.record import Record
from parked.loadtest.terms.histogram import new_histogram
from parked.loadtest.terms.sample import PARTS_A_SECOND
from parked.user import KeepAliveUser

if TYPE_CHECKING:
    from collections.abc import Iterator


def sample(**changes: Any) -> dict[str, Any]:
    latencies = new_histogram()
    latencies.record_value(2000)
    return {
        "unix_time_s": time.time(),
        "pid": os.getpid(),
        "source": "127.1.0.1",
        "server": "test",
        "users": 10,
        "connections": 10,
        "connections_min": 10,
        "opened": 10,
        "reconnects": 0,
        "closed_by_peer": 0,
        "requests": 5,
        "failures": 0,
        "failures_by_kind": {},
        "late_sends": 0,
        "received_bytes": 5000,
        "sent_bytes": 500,
        "cpu_s": 0.1,
        "send_delay_s": 0.0,
        "requests_sent": 5,
        "gc_pause_s": 0.0,
        "gc_pause_max_s": 0.0,
        "loop_lag_max_s": 0.001,
        "thinks_s": [],
        "lengths": [],
        "sends": [0] * PARTS_A_SECOND,
        "latencies": latencies.encode(),
    } | changes


class Scene:
    """A run with one worker and a clock that is moved by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.now = 1000.0
        monkeypatch.setattr(recorder.time, "monotonic", lambda: self.now)
        self.runner = SimpleNamespace(target_user_count=10, state=STATE_SPAWNING)
        chosen = {
            "hold": "3s",
            "metrics": None,
            "results": str(folder),
            "server_metrics": "",
            "adaptive": False,
            "spawn_rate": 1,
            "think": "10:90",
            "length": "1024:10240",
        }
        self.environment: Any = SimpleNamespace(
            runner=self.runner,
            host="http://127.0.0.1:9",
            user_classes=[KeepAliveUser],
            parsed_options=SimpleNamespace(**chosen | options),
        )
        self.fleet = Fleet()
        self.run = Run(self.environment, self.fleet)
        self.folder = folder

    def second(self, **changes: Any) -> None:
        self.fleet.take("local", sample(**changes))
        self.now += 1
        self.run.second()

    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "samples.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def facts(self) -> Any:
        return json.loads((self.folder / "run.json").read_text())


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    scene = Scene(tmp_path / "run", monkeypatch)
    yield scene
    scene.run.end()


def test_the_hold_begins_when_all_are_established_and_ends_after_its_time(scene: Scene) -> None:
    scene.second(connections=4, requests=1)
    scene.second(requests=10)
    assert scene.run.over == ""
    scene.runner.state = STATE_RUNNING
    scene.second(requests=20)
    for second in range(1, 4):
        assert scene.run.over == ""
        scene.second(requests=20 + 7 * second)
    assert "held for 3 s" in scene.run.over
    scene.run.stopping()
    scene.second(connections=0, requests=42)
    scene.run.end()
    assert [row["phase"] for row in scene.rows()] == ["ramp"] * 3 + ["hold"] * 3 + ["stop"]
    facts = scene.facts()
    assert (facts["hold_s"], facts["hold"]["requests"]) == (3, 21)
    assert facts["min_connections_in_hold"] == 10
    assert facts["totals"]["requests"] == 42
    assert facts["notes"] == []
    assert (facts["rows"], facts["ended"]) == (7, True)


def test_a_row_has_the_seconds_figures_and_the_log_the_originals_line(scene: Scene) -> None:
    scene.second(requests=5, received_bytes=1024 * 1024)
    scene.second(requests=12, received_bytes=3 * 1024 * 1024, failures=2)
    row = scene.rows()[1]
    assert (row["requests"], row["requests_total"], row["failures"]) == ("7", "12", "2")
    assert row["received_bytes"] == str(2 * 1024 * 1024)
    assert float(row["latency_p50_ms"]) == pytest.approx(2, rel=0.01)
    assert int(row["memory_available_bytes"]) > 0
    last = (scene.folder / "logfile").read_text().splitlines()[-1]
    assert last.startswith(
        "time 2s, concurrency: 10, total requests: 12, throughput: 1.50M/s, 6.00 requests/seconds | ramp 100%"
    )


def test_a_dip_between_two_samples_shows_in_the_minimum(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    scene.second()
    scene.second(connections_min=9, reconnects=1)
    scene.run.end()
    assert scene.facts()["min_connections_in_hold"] == 9


def test_a_run_that_is_asked_for_more_ramps_again_and_its_hold_counts_from_then(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    for second in range(1, 4):
        scene.second(requests=10 * second)
    scene.runner.target_user_count = 20
    scene.second(requests=40, connections_min=10)
    assert scene.run.row["connections_wanted"] == 20
    for second in range(1, 5):
        scene.second(requests=40 + 7 * second, connections=20, connections_min=20, opened=20)
    assert "held for 3 s" in scene.run.over
    scene.run.stopping()
    scene.second(requests=70, connections=0, connections_min=0, opened=20)
    scene.run.end()
    assert [row["phase"] for row in scene.rows()] == [
        "ramp",
        *["hold"] * 2,
        *["ramp"] * 2,
        *["hold"] * 3,
        "stop",
    ]
    facts = scene.facts()
    assert (facts["hold_s"], facts["min_connections_in_hold"], facts["hold"]["requests"]) == (3, 20, 21)
    assert facts["changes"] == [{"time_s": 4, "connections": 20, "think_s": [10, 90]}]
    record = Record.read(scene.folder)
    assert [row["connections"] for row in record.hold()] == ["20"] * 3
    before = record.before_hold()
    assert before is not None
    assert before["time_s"] == "5.0"
    assert not [text for text in witnesses.hear(record).disagreements if "order" in text]
    facts["changes"] = []
    (scene.folder / "run.json").write_text(json.dumps(facts))
    assert "samples.csv: phases not in order" in witnesses.hear(Record.read(scene.folder)).disagreements


def test_who_quits_while_the_last_row_is_made_waits_for_the_facts(scene: Scene) -> None:
    scene.second()
    server: Any = SimpleNamespace(stop=lambda: None, settle=lambda: gevent.sleep(0.05))
    scene.run._server = server
    scene.run.second = lambda: None  # type: ignore[method-assign]
    stopping = gevent.spawn(scene.run.end)
    gevent.sleep(0)
    scene.run.end()
    assert scene.facts()["ended"] is True
    stopping.join()
    scene.run._server = None


def test_a_run_that_is_asked_for_fewer_holds_those(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    scene.second()
    scene.runner.target_user_count = 4
    scene.second(connections=4, connections_min=4)
    scene.second(connections=4, connections_min=4)
    assert [row["phase"] for row in scene.rows()] == ["ramp", "ramp", "hold"]
    assert scene.run.offered_per_s == 4 / 50
    scene.runner.target_user_count = 0
    for _ in range(recorder.STALLED_S + 2):
        scene.second(connections=0)
    assert scene.run.over == ""  # none is what was asked for


def test_a_ramp_that_makes_no_progress_is_given_up(scene: Scene) -> None:
    scene.runner.state = STATE_RUNNING
    for _ in range(recorder.STALLED_S + 2):
        scene.second(connections=7)
    assert "stalled" in scene.run.over
    scene.run.end()
    assert "the ramp stalled at 7 of 10 connections" in scene.facts()["notes"]


def test_a_worker_that_ended_is_named_and_its_counts_stay(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.runner.state = STATE_RUNNING
    scene.second(requests=30)
    monkeypatch.setattr("parked.loadtest.master.fleet.time.monotonic", lambda: scene.now + 10)
    monkeypatch.setattr("parked.loadtest.master.fleet._may_be_alive", lambda worker, silent_s: False)
    scene.now += 1
    scene.run.second()
    row = scene.rows()[-1]
    assert (row["connections"], row["requests_total"]) == ("0", "30")
    scene.run.end()
    assert f"Locust worker pid {os.getpid()} ended" in scene.facts()["notes"][0]


def test_a_full_disk_is_noted_once_and_the_run_goes_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.second()
    scene.run.cannot_write(OSError(errno.ENOSPC, "No space left on device"))
    scene.run.cannot_write(OSError(errno.ENOSPC, "No space left on device"))
    scene.second(requests=99)
    assert len(scene.rows()) == 1
    scene.run.end()
    facts = scene.facts()
    assert len([note for note in facts["notes"] if "No space left" in note]) == 1
    assert facts["totals"]["requests"] == 99


def test_a_rate_is_over_the_time_in_which_its_counts_were_made(scene: Scene) -> None:
    """Samples and rows come once a second each: here the last row has no new sample."""
    scene.runner.state = STATE_RUNNING
    scene.second(requests=20, unix_time_s=500.9)
    scene.second(requests=30, unix_time_s=501.9)
    scene.second(requests=40, unix_time_s=502.9)
    scene.now += 1
    scene.run.second()
    scene.run.end()
    facts = scene.facts()
    assert (facts["hold_s"], facts["hold"]["requests"]) == (3, 20)
    assert facts["hold_counted_s"] == pytest.approx(2)
    assert [row["counted_unix_s"] for row in scene.rows()] == ["500.9", "501.9", "502.9", "502.9"]
    assert report.summarise(Record.read(scene.folder))["hold_rps"] == pytest.approx(10)


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


def test_each_worker_keeps_its_longest_lag_of_the_run(scene: Scene) -> None:
    for lag_s in (0.001, 0.25, 0.002):
        scene.second(loop_lag_max_s=lag_s)
    scene.run.end()
    assert scene.facts()["workers"][0]["loop_lag_max_s"] == 0.25
    assert [row["loop_lag_max_ms"] for row in scene.rows()] == ["1.0", "250.0", "2.0"]


def test_facts_are_there_before_the_end(scene: Scene) -> None:
    for second in range(recorder.FACTS_S + 1):
        scene.second(requests=second)
    facts = scene.facts()
    assert facts["totals"]["requests"] >= recorder.FACTS_S - 1
    stated = scene.rows()[facts["rows"] - 1]
    assert (int(stated["requests_total"]), facts["ended"]) == (facts["totals"]["requests"], False)


def test_without_results_nothing_is_written_and_the_hold_still_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scene = Scene(tmp_path, monkeypatch, results="")
    scene.runner.state = STATE_RUNNING
    for _ in range(4):
        scene.second()
    assert "held for 3 s" in scene.run.over
    scene.run.end()
    assert list(tmp_path.iterdir()) == []


class OwnWait(KeepAliveUser):
    abstract = True

    def wait_time(self) -> float:
        return 1.0


class OwnThink(KeepAliveUser):
    abstract = True
    think_time = (1.0, 2.0)


@pytest.mark.parametrize(
    ("classes", "think_s"),
    [
        ([KeepAliveUser], (10.0, 90.0)),
        ([OwnThink], (1.0, 2.0)),
        ([OwnWait], (0.0, 0.0)),
        ([OwnThink, KeepAliveUser], (0.0, 0.0)),
    ],
)
def test_the_offered_rate_is_known_only_where_all_users_think_alike(
    classes: list[type[KeepAliveUser]], think_s: tuple[float, float]
) -> None:
    environment: Any = SimpleNamespace(user_classes=classes)
    assert recorder._think_time_of(environment) == think_s
