"""The fleet: samples that come late, twice or not at all cost resolution, never a count."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from types import SimpleNamespace
from typing import Any

import pytest

from parked.loadtest.client.counters import Counters
from parked.loadtest.master import fleet as fleet_module
from parked.loadtest.master.fleet import LOST_S, SILENT_S, Fleet


class WorkerProcess:
    """Counts as a worker does, and makes its samples."""

    def __init__(self, name: str, pid: int | None = None) -> None:
        self.name = name
        self.counters = Counters()
        self._pid = os.getpid() if pid is None else pid
        self._at = 1000.0

    def work(self, requests: int, latency_ms: float = 5.0) -> None:
        for _ in range(requests):
            self.counters.request_sent(100)
            self.counters.request_done(latency_ms, 900, 1000, None)
            self.counters.thinks_s.append(10.0 * latency_ms)

    def sample(self) -> dict[str, Any]:
        self._at += 1.0
        timer: Any = SimpleNamespace(lag_max_s=0.0)
        process = {"open_s": [], "server": "", "pid": self._pid, "gc_pause_s": 0.0, "gc_pause_max_s": 0.0}
        process |= dict.fromkeys(("elsewhere", "others", "others_failed", "users_ended"), 0)
        return self.counters.sample(timer, "", 1) | process | {"unix_time_s": self._at}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_the_fleets_totals_are_the_sums_of_its_workers(fleet: Fleet) -> None:
    workers = [WorkerProcess(f"host_{number}") for number in range(3)]
    for number, worker in enumerate(workers, 1):
        worker.counters.connection_opened(again=False)
        worker.work(10 * number, latency_ms=number)
        fleet.take(worker.name, worker.sample())
    second = fleet.second()
    assert (second.users, second.connections, second.totals["requests"]) == (3, 3, 60)
    assert second.totals["received_bytes"] == 60_000
    assert second.latencies.get_total_count() == 60
    assert second.latencies.get_value_at_percentile(100) == pytest.approx(3000, rel=0.001)
    assert second.latencies.get_value_at_percentile(50) == pytest.approx(2000, rel=0.001)
    assert second.burst_10ms_max >= 20  # 60 sends in at most three hundredths of a second


def test_latencies_bursts_and_minima_are_of_one_second_only(fleet: Fleet) -> None:
    worker = WorkerProcess("host_1")
    worker.work(5)
    fleet.take(worker.name, worker.sample())
    assert fleet.news
    fleet.second()
    assert not fleet.news
    again = fleet.second()
    assert again.latencies.get_total_count() == again.burst_10ms_max == 0
    assert again.totals["requests"] == 5


def test_two_seconds_of_one_worker_are_no_larger_burst(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parked.loadtest.client.counters.time.time", lambda: 1000.5)  # all in the same 10 ms
    workers = [WorkerProcess("host_1"), WorkerProcess("host_2")]
    for worker in (*workers, *workers):
        worker.work(20)
        fleet.take(worker.name, worker.sample())
    assert fleet.second().burst_10ms_max == 40


def test_the_longest_silence_is_that_of_a_living_worker(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fleet.second().silent_s == 0
    now = time.monotonic()
    for name, silent_s in (("host_1", 0.2), ("host_2", 1.5), ("host_3", 9.0)):
        worker = WorkerProcess(name)
        fleet.take(name, worker.sample())
        fleet.workers[name].heard = now - silent_s
    fleet.workers["host_3"].lost = True
    monkeypatch.setattr(fleet_module.time, "monotonic", lambda: now)
    assert fleet.second().silent_s == pytest.approx(1.5)


def test_a_lost_sample_loses_no_count(fleet: Fleet) -> None:
    worker = WorkerProcess("host_1")
    worker.work(5)
    worker.sample()
    worker.work(7)
    fleet.take(worker.name, worker.sample())
    assert fleet.second().totals["requests"] == 12


def test_a_sample_that_comes_twice_or_too_late_counts_once(fleet: Fleet) -> None:
    worker = WorkerProcess("host_1")
    worker.work(5)
    first = worker.sample()
    worker.work(7)
    second = worker.sample()
    for message in (first, first, second, first, second):
        fleet.take(worker.name, message)
    result = fleet.second()
    assert result.totals["requests"] == 12
    assert result.latencies.get_total_count() == 12


def test_any_order_of_losses_and_repeats_ends_at_the_true_totals() -> None:
    drawn = random.Random(7)
    for _ in range(20):
        fleet = Fleet()
        workers = [WorkerProcess(f"host_{number}") for number in range(4)]
        last = 0.0
        for _ in range(30):
            worker = drawn.choice(workers)
            worker.work(drawn.randrange(5))
            message = worker.sample()
            for _ in range(drawn.choice((0, 1, 1, 2))):
                fleet.take(worker.name, message)
            total = fleet.second().totals["requests"]
            assert total >= last, "a total went back"
            last = total
        for worker in workers:
            fleet.take(worker.name, worker.sample())
        assert fleet.second().totals["requests"] == sum(worker.counters.requests for worker in workers)


def test_the_least_number_of_connections_is_that_between_two_seconds(fleet: Fleet) -> None:
    one, other = WorkerProcess("host_1"), WorkerProcess("host_2")
    for worker in (one, other):
        for _ in range(10):
            worker.counters.connection_opened(again=False)
        worker.sample()
        fleet.take(worker.name, worker.sample())
    assert fleet.second().connections_min == 20
    one.counters.connection_closed(by_peer=True)
    one.counters.connection_closed(by_peer=True)
    one.counters.connection_opened(again=True)
    fleet.take(one.name, one.sample())
    one.counters.connection_opened(again=True)
    fleet.take(one.name, one.sample())  # a second sample in the same second must not hide the dip
    second = fleet.second()
    assert (second.connections, second.connections_min) == (20, 18)


def test_a_worker_on_this_machine_is_lost_when_its_process_is_gone(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = WorkerProcess(f"{socket.gethostname()}_a", ended.pid)
    busy = WorkerProcess(f"{socket.gethostname()}_b")
    for worker in (gone, busy):
        worker.counters.connection_opened(again=False)
        worker.work(5)
        fleet.take(worker.name, worker.sample())
    assert fleet.lose_silent() == [], "not silent for long enough"
    now = time.monotonic()
    monkeypatch.setattr(fleet_module.time, "monotonic", lambda: now + SILENT_S + 1)
    assert [worker.name for worker in fleet.lose_silent()] == [gone.name]
    assert fleet.lose_silent() == [], "told once"
    second = fleet.second()
    assert (second.connections, second.users) == (1, 1), "its connections went with it"
    assert second.totals["requests"] == 10, "what it had counted stays"
    assert [row["lost"] for row in fleet.table()] == [True, False]
    fleet.take(gone.name, gone.sample())
    assert fleet.second().connections == 2, "it was late, not lost"


def test_a_stopped_worker_is_stuck_and_not_lost(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        for name, pid in (("stopped", process.pid), ("busy", os.getpid())):
            worker = WorkerProcess(f"{socket.gethostname()}_{name}", pid)
            fleet.take(worker.name, worker.sample())
        now = time.monotonic()
        monkeypatch.setattr(fleet_module.time, "monotonic", lambda: now + SILENT_S + 1)
        assert fleet.lose_silent() == []
        assert [worker.sample["pid"] for worker, _ in fleet.stuck()] == [process.pid]
    finally:
        process.kill()
        process.wait()
    assert [worker.sample["pid"] for worker in fleet.lose_silent()] == [process.pid]
    assert fleet.stuck() == []


def test_a_worker_elsewhere_is_lost_after_a_longer_silence(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WorkerProcess("elsewhere_a", pid=2**22 + 1)
    fleet.take(worker.name, worker.sample())
    now = time.monotonic()
    monkeypatch.setattr(fleet_module.time, "monotonic", lambda: now + SILENT_S + 1)
    assert fleet.lose_silent() == []
    monkeypatch.setattr(fleet_module.time, "monotonic", lambda: now + LOST_S + 1)
    assert [lost.name for lost in fleet.lose_silent()] == [worker.name]


def test_failures_of_all_workers_are_added_by_kind(fleet: Fleet) -> None:
    for name, kinds in (("a_1", {"connect": 2}), ("a_2", {"connect": 1, "mine": 4})):
        worker = WorkerProcess(name)
        fleet.take(name, worker.sample() | {"failures_by_kind": kinds})
    assert fleet.second().failures_by_kind == {"connect": 3, "mine": 4}


def test_the_servers_name_is_the_first_that_a_worker_tells(fleet: Fleet) -> None:
    assert fleet.server_software == ""
    for name, server in (("a_1", ""), ("a_2", "nginx"), ("a_3", "other")):
        fleet.take(name, WorkerProcess(name).sample() | {"server": server})
    assert fleet.server_software == "nginx"


def test_think_times_and_lengths_of_all_workers_merge_without_loss(fleet: Fleet) -> None:
    for number in range(1, 4):
        worker = WorkerProcess(f"host_{number}")
        worker.work(10, latency_ms=number)
        fleet.take(worker.name, worker.sample())
    second = fleet.second()
    assert (second.thinks_s.count, second.thinks_s.least, second.thinks_s.most) == (30, 10.0, 30.0)
    assert second.thinks_s.sum == pytest.approx(600)
    assert (second.lengths.count, second.lengths.sum) == (30, 27_000)
    assert fleet.second().lengths.count == 0


def test_what_each_worker_held_when_the_hold_began_and_when_it_was_lost_is_kept(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WorkerProcess("elsewhere_a", pid=2**22 + 1)
    for _ in range(3):
        worker.counters.connection_opened(again=False)
    fleet.take(worker.name, worker.sample() | {"gc_pause_max_s": 0.5})
    fleet.hold_begins()
    worker.counters.connection_opened(again=False)
    fleet.take(worker.name, worker.sample())
    (row,) = fleet.table()
    assert (row["connections"], row["connections_at_hold"], row["gc_pause_max_s"]) == (4, 3, 0.5)
    assert row["lost_unix_s"] is None
    now = time.monotonic()
    monkeypatch.setattr(fleet_module.time, "monotonic", lambda: now + LOST_S + 1)
    fleet.lose_silent()
    assert fleet.table()[0]["lost_unix_s"] == pytest.approx(time.time(), abs=5)
