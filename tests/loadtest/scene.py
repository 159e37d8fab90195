"""A run on the master, fed with samples as workers send them."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from locust.runners import STATE_SPAWNING

from parked.loadtest.master import run
from parked.loadtest.master.fleet import Fleet
from parked.loadtest.terms.histogram import counts_of
from parked.loadtest.terms.sample import PARTS_A_SECOND
from parked.user import KeepAliveUser


def sample(**changes: Any) -> dict[str, Any]:
    return {
        "unix_time_s": time.time(),
        "pid": os.getpid(),
        "source": "127.1.0.1",
        "server": "test",
        "host": "",
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
        "elsewhere": 0,
        "others": 0,
        "others_failed": 0,
        "users_ended": 0,
        "open_s": [],
        "gc_pause_s": 0.0,
        "gc_pause_max_s": 0.0,
        "loop_lag_max_s": 0.001,
        "thinks_s": [],
        "lengths": [],
        "sends": [0] * PARTS_A_SECOND,
        "latencies": counts_of([2000]),
    } | changes


class Scene:
    """A run with one worker and a clock that is moved by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.now = 1000.0
        monkeypatch.setattr(run.time, "monotonic", lambda: self.now)
        self.runner = SimpleNamespace(
            target_user_count=10, target_user_classes_count={}, state=STATE_SPAWNING
        )
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
        self.run = run.Run(self.environment, self.fleet)
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
