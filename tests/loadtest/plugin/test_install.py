"""What importing and installing change, by real Locust commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import free_port, run
from tests.loadtest.peers import Peer, answering, response

CHECKOUT = Path(__file__).parents[3]


def run_locust(folder: Path, *arguments: str, path: bool = True) -> subprocess.CompletedProcess[str]:
    """Locust in the folder, with this project on the path or not."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-m", "locust", *arguments]
    return run(command, cwd=folder, env=environ | ({"PYTHONPATH": str(CHECKOUT)} if path else {}), timeout=60)


TWO_KINDS = """
import gevent
from locust import HttpUser, constant, task
from parked.user import KeepAliveUser

class Stock(HttpUser):
    host = {stock!r}
    wait_time = constant(0.1)
    @task
    def get(self):
        self.client.get("/stock")

class Ours(KeepAliveUser):
    host = {ours!r}
    wait_time = constant(0.1)
    @task
    def get(self):
        self.client.get("/ours")
"""


def test_classes_beside_ours_keep_their_hosts(tmp_path: Path) -> None:
    with Peer(answering(response())) as stock, Peer(answering(response())) as ours:
        (tmp_path / "locustfile.py").write_text(TWO_KINDS.format(stock=stock.url, ours=ours.url))
        done = run_locust(tmp_path, "--headless", "-u", "4", "-r", "4", "-t", "6s")
        assert done.returncode == 0, done.stderr[-2000:]
        assert {request.split()[1] for request in stock.requests} == {b"/stock"}
        assert {request.split()[1] for request in ours.requests} == {b"/ours"}


SLOW_TO_IMPORT = """
import time
from locust import task
from parked.user import KeepAliveUser

until = time.monotonic() + 2
while time.monotonic() < until:
    pass

class Ours(KeepAliveUser):
    think_time = 0.1, 0.1
    @task
    def get(self):
        self.client.get("/")
"""


def test_a_run_time_does_not_count_the_imports(tmp_path: Path) -> None:
    with Peer(answering(response())) as peer:
        (tmp_path / "locustfile.py").write_text(SLOW_TO_IMPORT)
        done = run_locust(tmp_path, "--headless", "-u", "1", "-r", "1", "-t", "2s", "--host", peer.url)
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(peer.requests) >= 5


def test_a_file_without_a_class_of_ours_runs_as_if_we_were_not_imported(tmp_path: Path) -> None:
    (tmp_path / "locustfile.py").write_text(
        "from locust import HttpUser, argument_parser, events, runners, task\n"
        "from parked.user import KeepAliveUser\n"
        "class Stock(HttpUser):\n"
        "    @task\n"
        "    def get(self): pass\n"
        "@events.init.add_listener\n"
        "def show(environment, **_):\n"
        "    chosen = environment.parsed_options\n"
        "    print(chosen.num_users, chosen.host, chosen.run_time, hasattr(chosen, 'think'))\n"
        "    print(runners.HEARTBEAT_LIVENESS, hasattr(environment, 'parked_recorder'))\n"
        "    environment.process_exit_code = 0\n"
        "    environment.runner.quit()\n"
        "    raise SystemExit\n"
    )
    done = run_locust(tmp_path, "--headless")
    assert done.stdout.splitlines()[:2] == ["None None None False", "3 False"], done.stderr[-2000:]


#: Modules of Python's own whose names this project uses too, in one folder or another.
NAMES = ["statistics", "errors", "page", "run", "process", "server", "wsgi", "limits", "record", "session"]

SHADOWS = """
import sys
for name in {names!r}:
    try:
        module = __import__(name)
    except ImportError:
        continue
    where = getattr(module, "__file__", "") or ""
    print({when!r}, name, "OURS" if {checkout!r} in where and "site-packages" not in where else "fine")
"""


def test_no_module_of_ours_stands_before_pythons_while_the_locustfile_is_loaded_and_after(
    tmp_path: Path,
) -> None:
    ours = [str(CHECKOUT), str(CHECKOUT / "loadtest")]
    look = SHADOWS.format(names=NAMES, when="task", checkout=str(CHECKOUT))
    (tmp_path / "locustfile.py").write_text(
        SHADOWS.format(names=NAMES, when="before", checkout=str(CHECKOUT))
        + "from locust import User, constant, task\n"
        + "class Looks(User):\n"
        + "    fixed_count = 1\n"
        + "    wait_time = constant(60)\n"
        + "    @task\n"
        + "    def look(self):\n"
        + "".join(f"        {line}\n" for line in look.splitlines())
        + f"        print('path', *(path in sys.path for path in {ours}))\n"
        + "        print('parked', sys.modules['parked'].__file__)\n"
    )
    with Peer(answering(response())) as peer:
        files = f"{CHECKOUT / 'loadtest/keepalive.py'},{tmp_path / 'locustfile.py'}"
        arguments = ["-f", files, "--headless", "-u", "2", "-r", "2", "-t", "3s", "--host", peer.url]
        done = run_locust(tmp_path, *arguments, path=False)
    said = done.stdout.splitlines()
    assert any(line.startswith("task statistics fine") for line in said), done.stderr[-2000:]
    assert not [line for line in said if line.endswith("OURS")]
    assert "path False False" in said
    assert f"parked {CHECKOUT / 'parked/__init__.py'}" in said


FORKS = """
import multiprocessing, os, subprocess, sys, time
from locust import constant, task
from locust.runners import LocalRunner
from parked.user import KeepAliveUser

def child():
    time.sleep(2.2)  # longer than it is to the next heartbeat
    sys.exit(5)

class Forks(KeepAliveUser):
    host = {url!r}
    wait_time = constant(30)
    @task
    def fork(self):
        made = multiprocessing.get_context("fork").Process(target=child)
        made.start()
        made.join()
        with_function = subprocess.run(["sh", "-c", "exit 6"], preexec_fn=os.setsid)
        print("children", made.exitcode, with_function.returncode, flush=True)
        self.client.get("/after")
        self.client.get("/after")
        if isinstance(self.environment.runner, LocalRunner):
            self.environment.runner.quit()
"""


@pytest.mark.parametrize("processes", [[], ["--processes", "1"]], ids=["alone", "worker"])
def test_what_a_task_forks_is_its_own_affair(tmp_path: Path, processes: list[str]) -> None:
    with Peer(answering(response())) as peer:
        (tmp_path / "locustfile.py").write_text(FORKS.format(url=peer.url))
        port = str(free_port())
        master = ["--master-port", port, "--master-bind-port", port]
        arguments = ["--headless", "-u", "1", "-t", "6s", *processes, *(master if processes else [])]
        done = run_locust(tmp_path, *arguments)
        assert "children 5 6" in done.stdout, done.stderr
        assert len(peer.requests) == 2
        assert done.returncode == 0


def test_users_without_tasks_are_named_before_a_run_that_is_recorded(tmp_path: Path) -> None:
    locustfile = tmp_path / "idle.py"
    locustfile.write_text(
        "from parked.user import KeepAliveUser\n\n\nclass Idle(KeepAliveUser):\n    host = 'http://127.0.0.1:9'\n"
    )
    done = run_locust(tmp_path, "-f", str(locustfile), "--headless", "-t", "1s", "--results", "run")
    assert done.returncode != 0
    assert "No tasks defined in Idle" in done.stderr + done.stdout


def test_users_that_tags_leave_without_tasks_are_named_before_a_run_that_is_recorded(tmp_path: Path) -> None:
    locustfile = tmp_path / "tagged.py"
    locustfile.write_text(
        "from locust import tag, task\nfrom parked.user import KeepAliveUser\n\n\n"
        "class Tagged(KeepAliveUser):\n    host = 'http://127.0.0.1:9'\n"
        "    @tag('one')\n    @task\n    def one(self): pass\n"
    )
    options = ["-f", str(locustfile), "--headless", "-t", "1s", "--results", "run", "--exclude-tags", "one"]
    done = run_locust(tmp_path, *options)
    assert done.returncode == 1
    assert "No tasks defined in Tagged" in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()
