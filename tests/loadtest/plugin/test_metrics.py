"""/metrics of the load test, as Prometheus reads it."""

from __future__ import annotations

import dataclasses
import http.client
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from parked.loadtest.client.event_stream import Event
from parked.loadtest.client.heard import HeardByProcess
from parked.loadtest.machine.monitor import MachineSample
from parked.loadtest.master import rows
from parked.loadtest.master.fleet import Fleet
from parked.loadtest.plugin import metrics
from parked.loadtest.terms.histogram import counts_of, new_histogram
from parked.loadtest.terms.sample import CUMULATIVE
from parked.shared import exposition
from tests import commands
from tests.commands import free_port
from tests.loadtest.command.test_run import run_test
from tests.loadtest.runs import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from parked.loadtest.master.run import Run

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
#: A monitor's sample in which everything is known, and 3.
MACHINE = MachineSample(
    **{field.name: () if field.name == "lost" else 3 for field in dataclasses.fields(MachineSample)}
)


def sample(connections: int, latencies_ms: list[float], **counts: int) -> dict[str, Any]:
    totals = dict.fromkeys(CUMULATIVE, 0) | {"requests": len(latencies_ms)} | counts
    return totals | {
        "unix_time_s": 1.0,
        "pid": 1,
        "source": "127.1.0.1",
        "users": connections,
        "connections": connections,
        "connections_min": connections,
        "failures_by_kind": {"timeout": 2},
        "loop_lag_max_s": 0.5,
        "gc_pause_max_s": 0.0,
        "sends": [0],
        "latencies": counts_of([round(latency_ms * 1000) for latency_ms in latencies_ms]),
        "thinks_s": [],
        "lengths": [],
        "open_s": [],
        "server": "",
        "host": "",
    }


def run_of(*samples: dict[str, Any], machine: MachineSample | None = MACHINE) -> Any:
    """What stands for a recorder's Run: a second after these samples of as many workers."""
    fleet = Fleet()
    for number, message in enumerate(samples):
        fleet.take(f"worker_{number}", message)
    second = fleet.second()
    hold_latencies = new_histogram()
    hold_latencies.add(second.latencies)
    row: dict[str, Any] = dict.fromkeys(rows.FLEET_COLUMNS, 0) | {
        "phase": "hold",
        "connections_wanted": 30,
        "connections": sum(message["connections"] for message in samples),
        "latency_max_ms": 1500.0,
    }
    if machine is not None:
        row |= {name: getattr(machine, name) for name in rows.MACHINE_COLUMNS}
    return SimpleNamespace(
        fleet=fleet,
        row=row,
        ended=False,
        second_now=second,
        machine_now=machine,
        offered_per_s=0.6,
        hold=SimpleNamespace(latencies=hold_latencies),
    )


def read(text: str) -> Series:
    return {
        (found.name, tuple(sorted(found.labels.items()))): found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
    }


def scraped(served: metrics.Metrics, path: str = "/metrics") -> Series:
    said: list[str] = []
    body = b"".join(
        exposition.application(served)(
            {"PATH_INFO": path, "REQUEST_METHOD": "GET"}, lambda status, _headers: said.append(status)
        )
    )
    assert said == ["200 OK"]
    return read(body.decode())


def taken(*runs: Run) -> Series:
    served = metrics.Metrics()
    for run in runs:
        served.take(run)
    return scraped(served)


def test_percentiles_of_the_hold_are_as_exact_as_its_histogram() -> None:
    run = run_of(sample(1000, [latency_us / 1000 for latency_us in range(1, 1001)]))
    series = taken(run)
    for quantile, seconds in (("0.5", 500e-6), ("0.99", 990e-6), ("0.999", 999e-6), ("1", 1000e-6)):
        assert series["parked_loadtest_hold_latency_seconds", (("quantile", quantile),)] == pytest.approx(
            seconds
        )
    run.hold.latencies = new_histogram()  # the hold has not begun
    assert not any(name == "parked_loadtest_hold_latency_seconds" for name, _ in taken(run))


def test_what_is_heard_is_told_where_users_wait_for_it_and_nowhere_else() -> None:
    process = HeardByProcess()
    last = None
    for number in (1, 2, 4):
        last = process.take(last, Event(b"%d" % number, b"", number, time.time() - 2.0))
    told = process.sample() | {"streams": 7, "streams_min": 7}
    run = run_of(sample(10, []) | {"heard": told})
    run.row["streams"] = 7
    series = taken(run)
    assert series["parked_loadtest_streams", ()] == 7
    assert series["parked_loadtest_events_total", ()] == 3
    assert series["parked_loadtest_events_lost_total", ()] == 1
    assert series["parked_loadtest_delivery_seconds_count", ()] == 3
    assert series["parked_loadtest_delivery_seconds_bucket", (("le", "1.6"),)] == 0
    assert not any("events" in name or "delivery" in name for name, _ in taken(run_of(sample(10, []))))


def test_all_workers_are_added_up_and_each_is_shown() -> None:
    series = taken(run_of(sample(10, [1.0, 2.0], opened=11), sample(20, [3.0], opened=20)))
    assert series["parked_loadtest_connections", ()] == 30
    assert series["parked_loadtest_requests_total", ()] == 3
    assert series["parked_loadtest_connections_opened_total", ()] == 31
    assert series["parked_loadtest_failures_total", (("kind", "timeout"),)] == 4
    assert series["parked_loadtest_failures_total", (("kind", "status"),)] == 0, (
        "a rate needs the 0 before the first"
    )
    by_worker = {
        dict(labels)["worker"]: value
        for (name, labels), value in series.items()
        if name == "parked_loadtest_worker_connections"
    }
    assert by_worker == {"0": 10, "1": 20}
    assert series["parked_loadtest_phase", (("phase", "hold"),)] == 1
    assert sum(value for (name, _), value in series.items() if name == "parked_loadtest_phase") == 1
    assert series["parked_loadtest_latency_max_seconds", ()] == 1.5
    assert series["parked_loadtest_cpu_seconds_total", (("side", "client"),)] == 3


def test_latencies_are_in_the_buckets_that_they_belong_to_and_add_up_over_seconds() -> None:
    run = run_of(sample(10, [0.5, 3.0, 3.1, 40.0, 70_000.0]))
    served = metrics.Metrics()
    served.take(run)
    run.second_now = run_of(sample(10, [3.0])).second_now
    served.take(run)
    series = scraped(served)
    upto = {
        dict(labels)["le"]: value
        for (name, labels), value in series.items()
        if name == "parked_loadtest_latency_seconds_bucket"
    }
    assert [upto[bound] for bound in ("0.001", "0.0025", "0.00315", "0.04", "63.0", "+Inf")] == [
        1,
        1,
        4,
        5,
        5,
        6,
    ]
    assert series["parked_loadtest_latency_seconds_count", ()] == 6
    assert series["parked_loadtest_latency_seconds_sum", ()] == pytest.approx(70.0496, rel=1e-3)


def test_the_same_second_counts_once_and_the_next_run_begins_anew() -> None:
    first, second = run_of(sample(10, [1.0])), run_of(sample(10, [1.0, 1.0, 1.0]))
    assert taken(first, first)["parked_loadtest_latency_seconds_count", ()] == 1
    assert taken(first, second)["parked_loadtest_latency_seconds_count", ()] == 3


def test_what_is_not_known_is_left_out() -> None:
    before = scraped(metrics.Metrics())
    assert before["parked_loadtest_phase", (("phase", "idle"),)] == 1
    assert {name for name, _ in before} == {"parked_loadtest_phase"}
    assert ("parked_loadtest_busy_cores", ()) not in taken(run_of(sample(1, []), machine=None))


@pytest.fixture
def busy_address() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        yield f"127.0.0.1:{busy.getsockname()[1]}"


def locust(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/keepalive.py", "--headless", *options]
    return commands.run(command, cwd=PROJECT, timeout=60)


def test_a_busy_address_is_one_line_and_no_run(busy_address: str) -> None:
    done = locust("-u", "1", "--metrics", busy_address)
    assert done.returncode == 1
    assert f"--metrics {busy_address}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_is_none_is_refused() -> None:
    done = locust("-u", "1", "--metrics", "here")
    assert done.returncode == 2
    assert "'here': needs HOST:PORT" in done.stderr


def test_other_paths_are_not_found() -> None:
    said: list[str] = []
    answer = exposition.application(metrics.Metrics())
    body = answer({"PATH_INFO": "/"}, lambda status, _: said.append(status))
    assert (said, list(body)) == (["404 Not Found"], [b"see /metrics\n"])


def get(address: str) -> Series:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.status == 200
    text = response.read().decode()
    connection.close()
    return read(text)


def test_a_run_is_scraped_while_it_goes_on(tmp_path: Path) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    with run_test(
        tmp_path / "run", "-c", "200", "--hold", "60s", "--think", "1:2", "--metrics", address
    ) as run:
        run.await_text("| hold")
        series = get(address)
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
    assert (
        series["parked_loadtest_connections", ()] == series["parked_loadtest_connections_wanted", ()] == 200
    )
    assert (
        series["parked_loadtest_requests_total", ()]
        == series["parked_loadtest_latency_seconds_count", ()]
        > 0
    )
    assert series["parked_loadtest_memory_bytes", (("side", "server"),)] > 1 << 20
