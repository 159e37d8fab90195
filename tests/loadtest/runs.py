"""Runs for the tests of what reads them: made-up ones that are whole, and a real one."""

from __future__ import annotations

import atexit
import csv
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from parked.loadtest.master.rows import COLUMNS
from parked.loadtest.terms import console
from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.histogram import new_histogram
from tests.commands import free_ports
from tests.conftest import SHARED

PROJECT = Path(__file__).resolve().parents[2]
#: A source distribution, as packagers have it: without the committed runs.
IS_SDIST = (PROJECT / "PKG-INFO").is_file()
#: PYTHONPATH for runs whose pictures nobody looks at.
NO_PICTURES = f"{PROJECT}:{Path(__file__).with_name('plain_python')}"
MIB = 1024 * 1024
STARTED_UNIX_S = 1_700_000_000.0
#: Seconds that a real run of 10 s may take on a loaded machine.
REAL_RUN_S = 100


def write_run(
    folder: Path,
    *,
    target: int = 1000,
    ramp_s: int = 2,
    hold_s: int = 10,
    asked_s: int = 10,
    open_: int = 1000,
    dip: int = 0,
    requests_per_s: int = 500,
    latency_ms: float = 5.0,
    failures: dict[str, int] | None = None,
    reconnects: int = 0,
    closed: int = 0,
    sockets: int = 2003,
    **facts: Any,
) -> Path:
    """A run that passes but for the changes, and in which all witnesses agree but for `sockets` and `facts`.

    :param open_: connections at the end of the ramp; a hold of 0 s stays there.
    :param dip: connections that are missing in the middle of the hold.
    :param failures: by kind, in the middle of the hold; so are `reconnects` and `closed`.
    """
    failures = failures or {}
    totals = dict.fromkeys(
        ("opened", "reconnects", "closed_by_peer", "requests", "requests_sent", "failures", "late_sends",
         "received_bytes"), 0
    )  # fmt: skip
    hold_latencies, rows, at_begin = new_histogram(), [], dict(totals)
    for second in range(1, ramp_s + hold_s + 2):
        phase = "ramp" if second <= ramp_s else "hold" if second <= ramp_s + hold_s else "stop"
        middle = second == ramp_s + max(1, hold_s // 2)
        step = dict.fromkeys(totals, 0)
        step["requests"] = requests_per_s if phase == "hold" else requests_per_s // 10
        step["requests_sent"] = step["requests"]
        step["received_bytes"] = step["requests"] * MIB // 100
        if second <= ramp_s:
            step["opened"] = open_ // ramp_s
        if middle:
            step |= {"failures": sum(failures.values()), "reconnects": reconnects, "closed_by_peer": closed}
            step["opened"] += reconnects
        for name, grown in step.items():
            totals[name] += grown
        there = 0 if phase == "stop" else min(open_, open_ * second // ramp_s)
        least = there - dip if middle else there
        second_ms = _percentiles_ms(step["requests"], latency_ms)
        if second == ramp_s:
            at_begin = dict(totals)
        if second == ramp_s + hold_s:
            in_hold = {name: totals[name] - at_begin[name] for name in totals}
        row: dict[str, Any] = {
            "time_s": float(second),
            "unix_time_s": STARTED_UNIX_S + second,
            "counted_unix_s": STARTED_UNIX_S + second - 0.4,
            "phase": phase,
            "users": there,
            "connections_wanted": target,
            "connections": there,
            "connections_min": least,
            **{f"{name}_total": totals[name] for name in totals if name != "closed_by_peer"},
            **{name: step[name] for name in ("requests", "failures", "reconnects", "received_bytes")},
            **second_ms,
            "burst_10ms_max": 12,
            "loop_lag_max_ms": 4.5,
            "gc_pause_max_ms": 1.5,
            "server_counted_unix_s": STARTED_UNIX_S + second - 0.2,
            "server_connections": there,
            "server_accepted_total": totals["opened"],
            "server_requests_total": totals["requests"] - totals["failures"],
            "server_sent_bytes_total": totals["received_bytes"],
            "server_loop_lag_max_ms": 2.5,
            "server_gc_pause_max_ms": 0.5,
            "server_cores": 0.15,
            "client_cores": 0.25,
            "kernel_cores": 0.05,
            "busy_cores": 0.5,
            "server_pss_bytes": 30 * MIB,
            "client_pss_bytes": 50 * MIB,
            "slab_bytes": 100 * MIB + 8192 * there,
            "memory_available_bytes": 2048 * MIB,
            "sockstat_tcp_inuse": sockets * there // open_ if open_ else 0,
            "sockstat_tcp_tw": 0,
            "sockstat_tcp_mem_bytes": 4096,
            "listen_overflows": 0,
            "listen_drops": 0,
            "retrans_segs": 0,
            "server_processes": 2,
            "client_processes": 2,
        }
        rows.append(row)
    for item in _a_second(requests_per_s, latency_ms).get_recorded_iterator() if hold_s else ():
        hold_latencies.record_value(item.value_iterated_to, item.count_at_value_iterated_to * hold_s)
    worker = {"worker": 0, "name": "local_1", "lost": False, "pid": 1, "source": "127.1.0.1", "users": 0}
    worker |= {"connections_at_hold": open_ if hold_s else None, "lost_unix_s": None}
    thinks, lengths = Distribution(), Distribution()
    thinks.add([1 + 2 * draw / 997 for draw in range(998)])
    if hold_s:
        lengths.add([1024 + draw % 9217 for draw in range(in_hold["requests"] - in_hold["failures"])])
    made = {
        "host": "http://127.0.0.1:8000",
        "target_connections": target,
        "started_unix_s": STARTED_UNIX_S,
        "think_s": [1.0, 3.0],
        "length": [1024, 10240],
        "hold_asked_s": asked_s,
        "ramp_s": float(ramp_s),
        "hold_s": float(hold_s),
        "hold_counted_s": float(hold_s),
        "peak_connections": open_,
        "min_connections_in_hold": open_ - dip if hold_s else None,
        "totals": totals,
        "hold": in_hold if hold_s else {},
        "hold_cpu_s": {"server": 0.15 * hold_s, "client": 0.25 * hold_s},
        "burst_10ms_max": 12 if hold_s else 0,
        "failures_by_kind": failures,
        "workers": [worker | {"connections": 0} | totals],
        "server_software": "",
        "server_is_local": True,
        "server_metrics": True,
        "server_processes_lost": 0,
        "server_gc_pause_s": 0.25,
        "hold_thinks_s": thinks.as_list(),
        "hold_lengths": lengths.as_list(),
        "machine": {"cpu_count": 2, "cpu_model": "a CPU", "kernel": "6.1", "memory_total_bytes": 4096 * MIB},
        "versions": {"python": "3.11.2", "locust": "2.47.0"},
        "command": "./run_test",
        "notes": [],
        "rows": len(rows),
        "ended": True,
        "hold_latencies": hold_latencies.encode().decode(),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(made | facts))
    with (folder / "samples.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "logfile").write_text("".join(f"{console.line(row)}\n" for row in rows))
    return folder


@functools.cache
def _a_second(requests: int, latency_ms: float) -> Any:
    """Latencies from that to ten times as much."""
    latencies = new_histogram()
    for request in range(requests):
        latencies.record_value(round(latency_ms * 1000 * (1 + 9 * (request / requests) ** 8)))
    return latencies


@functools.cache
def _percentiles_ms(requests: int, latency_ms: float) -> dict[str, float]:
    latencies = _a_second(requests, latency_ms)
    return {
        f"latency_{name}_ms": round(latencies.get_value_at_percentile(percent) / 1000, 3)
        for name, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
    }


@functools.cache
def a_real_run() -> Path:
    """The folder of 1,000 real connections, made once, also for several processes that share the tests; tests
    copy it before they change it."""
    shared = os.environ.get(SHARED)
    place = Path(shared or tempfile.mkdtemp(prefix="run-of-the-tests-"))
    if not shared:
        atexit.register(shutil.rmtree, place)
    with (place / "run.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "run.made").exists():
            shutil.rmtree(place / "run", ignore_errors=True)  # of one that failed
            _run_really(place / "run")
            (place / "run.made").touch()
    return place / "run"


def _run_really(folder: Path) -> None:
    server_port, master_port = free_ports(2)
    command = [
        *(sys.executable, "-m", "loadtest", "-c", "1000", "--hold", "5s", "--think", "1:3"),
        *("--results", str(folder), "--master-port", str(master_port)),
        *("--host", f"http://127.0.0.1:{server_port}", "--start-server"),
    ]
    output = folder.parent / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | {"PYTHONPATH": NO_PICTURES},
        )
        try:
            process.wait(REAL_RUN_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it ends what it started
            process.wait(REAL_RUN_S)
        finally:
            process.kill()
            process.wait()
    reasons = json.loads((folder / "summary.json").read_text())["reasons"]
    # How fast this machine is just now is another matter.
    assert [reason for reason in reasons if not reason.endswith(" offered")] == [], output.read_text()
