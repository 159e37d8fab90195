"""A KeepAliveUser beside an HttpUser, each with a host of its own, in Locust's own workers."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.commands import free_port, run
from tests.loadtest.runs import NO_PICTURES

PROJECT = Path(__file__).resolve().parents[3]
#: Users of each of the two classes, and seconds that the run may take.
USERS, RUN_S = int(os.environ.get("PARKED_TEST_USERS", "60")), 150

SERVER = """
import sys
from parked.server import KeepAliveWSGIServer

count = 0

def application(environ, start_response):
    global count
    if environ["PATH_INFO"] == "/count":
        start_response("200 OK", [])
        return [str(count).encode()]
    count += 1
    start_response("200 OK", [])
    return [b"x" * 1024]

server = KeepAliveWSGIServer(("127.0.0.1", 0), application, log=None)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""

LOCUSTFILE = """
from locust import HttpUser, between, task
from parked.user import KeepAliveUser


class Held(KeepAliveUser):
    host = "http://127.0.0.1:{held}"
    think_time = (0.5, 1.0)

    @task
    def ask(self):
        self.client.get("/held", name="held")

    def on_stop(self):
        self.client.get("/bye", name="bye")


class Stock(HttpUser):
    host = "http://127.0.0.1:{stock}"
    wait_time = between(2, 4)

    @task
    def ask(self):
        self.client.get("/stock", name="stock")
"""


@contextmanager
def server() -> Iterator[int]:
    """A server of one process, which counts; the value is its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(PROJECT)}
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def counted(port: int) -> int:
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/count") as answer:
        return int(answer.read())


def test_each_class_loads_its_own_server_and_all_counts_agree(tmp_path: Path) -> None:
    results = tmp_path / "run"
    port = str(free_port())
    with server() as held, server() as stock:
        (tmp_path / "mixed.py").write_text(LOCUSTFILE.format(held=held, stock=stock))
        done = run(
            [sys.executable, "-m", "locust", "-f", "mixed.py", "--headless", "-u", str(2 * USERS)]
            + ["-r", str(USERS), "--processes", "2", "--hold", "5s", "--stop-timeout", "10"]
            + ["--think", "0.5:1", "--results", str(results), "--csv", str(results / "locust")]
            + ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": NO_PICTURES},
            timeout=RUN_S,
        )
        at_servers = counted(held), counted(stock)
    assert done.returncode == 0, done.stdout + done.stderr
    with (results / "locust_stats.csv").open(newline="") as file:
        rows = {row["Name"]: int(row["Request Count"]) for row in csv.DictReader(file)}
    assert at_servers[0] == rows["held"] + rows["bye"]
    assert at_servers[1] == rows["stock"]
    assert rows["bye"] == USERS
    summary = json.loads((results / "summary.json").read_text())
    # How fast this machine is just now is another matter.
    assert [reason for reason in summary["reasons"] if not reason.endswith(" offered")] == []
    assert summary["target_connections"] == summary["min_connections_in_hold"] == USERS
    assert summary["requests"] == rows["held"] + rows["bye"]
