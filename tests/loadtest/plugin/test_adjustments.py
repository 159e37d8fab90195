"""The adjustments to Locust: that upstream is what they were written for, and what each changes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import locust
import pytest
from gevent.pool import Group
from locust import User, argument_parser, constant, runners, task
from locust import stats as locust_stats
from locust.env import Environment
from locust.runners import Runner, WorkerRunner
from locust.stats import StatsCSVFileWriter

from parked.loadtest.client.process import Process
from parked.loadtest.client.turns import UserHandle
from parked.loadtest.plugin import adjustments, upstream
from parked.user import KeepAliveUser
from tests.commands import free_port
from tests.loadtest.peers import DEADLINE_S, Peer, answering, eventually, response

CHECKOUT = Path(__file__).parents[3]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: here the functions are replaced already."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False
    )


#: What a forked worker has still to make and to import.
FORKED = """
import os, socket, sys
from parked.loadtest.plugin import adjustments
adjustments.apply()
from locust import argument_parser, main
worker = main.gevent.fork()
if not worker:
    known = set(sys.modules)
    socket.getaddrinfo("127.0.0.1", 80)
    argument_parser.default_args_dict()
    made = argument_parser.default_args_dict.cache_info()
    print(made.hits, [name for name in set(sys.modules) - known if name.startswith("gevent.resolver")])
    sys.stdout.flush()
    os._exit(0)
os.waitpid(worker, 0)
"""


def test_the_installed_locust_gets_every_adjustment_and_workers_what_they_need_without_a_word() -> None:
    done = run_python(FORKED)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 []\n"


#: Locust with one function as no version has it.
CHANGED = """
import locust
from locust import main, runners, stats, web
from importlib import import_module
def other(self, *arguments, **named): ...
{change}
from parked.loadtest.plugin import adjustments
adjustments.apply()
print(runners.Runner.stop_users is other, runners.HEARTBEAT_LIVENESS)
"""


def test_a_changed_function_is_left_alone_and_one_line_says_what_that_costs() -> None:
    done = run_python(CHANGED.format(change="runners.Runner.stop_users = other"))
    assert done.returncode == 0
    assert done.stdout == f"True {adjustments.HEARTBEAT_LIVENESS}\n", "the others are made"
    (line,) = done.stderr.splitlines()
    assert "Runner.stop_users changed" in line
    assert "a greenlet per user" in line


def test_a_function_that_is_gone_is_a_changed_one() -> None:
    done = run_python(CHANGED.format(change="del runners.MasterRunner.heartbeat_worker"))
    assert done.returncode == 0
    assert done.stdout == "False 3\n"
    assert "MasterRunner.heartbeat_worker changed" in done.stderr


def test_statistics_that_are_kept_otherwise_are_told_of_each_request() -> None:
    code = CHANGED.format(change="stats.StatsEntry.extend = other")
    done = run_python(
        code + "from parked.loadtest.client.locust_stats import BatchedStatistics as B; print(B.may_fold)"
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "StatsEntry.extend changed" in done.stderr


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("import_module('locust.user.task').TaskSet.run = other", "TaskSet.run"),
        ("import_module('locust.user.users').User.stop = other", "User.stop"),
    ],
)
def test_a_locust_in_which_users_would_do_something_else_is_refused_by_name(change: str, name: str) -> None:
    done = run_python(CHANGED.format(change=change))
    assert done.returncode == 1
    assert f"UpstreamChanged: Locust {locust.__version__}" in done.stderr
    assert name in done.stderr.splitlines()[-1]


def test_a_group_that_asks_more_of_a_greenlet_than_a_handle_has_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def add(self: Any, greenlet: Any) -> None:
        greenlet.link_value(self)

    monkeypatch.setattr(Group, "add", add)
    assert upstream.unknown_to_handles() == ["Group (greenlet.link_value)"]


def test_applying_twice_is_applying_once() -> None:
    adjustments.apply()
    before = Runner.stop_users
    adjustments.apply()
    assert Runner.stop_users is before


def test_the_descriptor_limit_is_raised_and_heartbeats_may_be_late() -> None:
    adjustments.apply()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
    assert runners.HEARTBEAT_LIVENESS == adjustments.HEARTBEAT_LIVENESS > 3
    assert runners.HEARTBEAT_DEAD_INTERNAL == adjustments.HEARTBEAT_DEAD < -(10**9)


def test_a_worker_beats_less_often_but_in_time_for_a_usual_master(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfWorker(WorkerRunner):
        def __init__(self) -> None: ...

        def __del__(self) -> None: ...

    monkeypatch.setattr(runners, "HEARTBEAT_INTERVAL", 1)
    usual_liveness = 3
    adjustments._beat_less_often(SimpleNamespace(runner=None))
    assert runners.HEARTBEAT_INTERVAL == 1
    adjustments._beat_less_often(SimpleNamespace(runner=OfWorker()))
    assert 1 < runners.HEARTBEAT_INTERVAL < usual_liveness


def test_default_arguments_are_built_once() -> None:
    adjustments.apply()
    assert argument_parser.default_args_dict() is argument_parser.default_args_dict()


class Kept(KeepAliveUser):
    abstract = True
    wait_time = constant(30)

    @task
    def get(self) -> None:
        self.client.get("/")


class Plain(User):
    abstract = True
    wait_time = constant(0.01)

    @task
    def nothing(self) -> None: ...


def named(name: str, base: type[User], **attributes: Any) -> Any:
    return type(name, (base,), attributes)


def test_users_are_counted_without_a_walk_and_rightly(environment: Environment) -> None:
    runner: Any = environment.runner
    with Peer(answering(response())) as peer:
        environment.user_classes = [named("A", Kept, host=peer.url), named("B", Kept, host=peer.url)]
        assert runner.user_classes_count == {"A": 0, "B": 0}
        runner.spawn_users({"A": 3, "B": 1})
        assert runner.user_classes_count == {"A": 3, "B": 1}
        eventually(lambda: len(peer.requests) == 4)
        runner.stop_users({"A": 2})
        eventually(lambda: runner.user_count == 2)
        assert runner.user_classes_count == {"A": 1, "B": 1}
        runner.stop_users({"A": 1, "B": 1})
        eventually(lambda: runner.user_count == 0)
        assert runner.user_classes_count == {"A": 0, "B": 0}


def test_all_else_goes_on_while_users_are_stopped(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjustments, "STOP_BATCH", 1)
    runner: Any = environment.runner
    left: list[int] = []

    def look() -> None:
        while True:
            gevent.sleep(0.0005)
            left.append(runner.user_count)

    with Peer(answering(response())) as peer:
        environment.user_classes = [named("A", Kept, host=peer.url)]
        runner.spawn_users({"A": 40})
        eventually(lambda: len(peer.requests) == 40)
        looking = gevent.spawn(look)
        try:
            runner.stop_users({"A": 40})
        finally:
            looking.kill()
    assert [count for count in left if 0 < count < 40]


def test_other_users_beside_ours_are_counted_and_stopped_as_before(environment: Environment) -> None:
    runner: Any = environment.runner
    with Peer(answering(response())) as peer:
        environment.user_classes = [named("A", Kept, host=peer.url), named("P", Plain)]
        runner.spawn_users({"A": 2, "P": 3})
        assert runner.user_classes_count == {"A": 2, "P": 3}
        runner.stop_users({"P": 2})
        eventually(lambda: runner.user_count == 3)
        assert runner.user_classes_count == {"A": 2, "P": 1}
        runner.stop_users({"A": 2, "P": 1})
        eventually(lambda: runner.user_count == 0)
        assert Process.of(environment).counters.connections == 0


def test_a_user_in_its_task_is_stopped_beside_users_that_end_at_once(environment: Environment) -> None:
    """They have ended, but nobody may have been told so when it comes to the one in its task."""
    runner: Any = environment.runner
    began: list[object] = []

    class Waits(KeepAliveUser):
        wait_time = constant(30)

        @task
        def take_long(self) -> None:
            began.append(self)
            if len(began) == 5:
                gevent.sleep(DEADLINE_S)

    with Peer(answering(response())) as peer:
        Waits.host = peer.url
        environment.user_classes = [Waits]
        runner.spawn_users({"Waits": 10})
        eventually(lambda: len(began) == 10)
        runner.stop_users({"Waits": 10})
        eventually(lambda: runner.user_count == 0)


def test_users_in_a_task_are_stopped_beside_users_that_say_good_bye(environment: Environment) -> None:
    """Those at rest are in their last turns when it comes to the others."""
    runner: Any = environment.runner
    environment.stop_timeout = DEADLINE_S
    began, ended = [], []

    class Leaves(KeepAliveUser):
        wait_time = constant(30)

        @task
        def take_long(self) -> None:
            began.append(self)
            gevent.sleep(1.0 if len(began) > 10 else 0)

        def on_stop(self) -> None:
            gevent.sleep(0.05)
            ended.append(self)

    with Peer(answering(response())) as peer:
        Leaves.host = peer.url
        environment.user_classes = [Leaves]
        runner.spawn_users({"Leaves": 20})
        eventually(lambda: len(began) == 20)
        runner.stop_users({"Leaves": 20})
        assert (len(set(ended)), runner.user_count) == (20, 0)


def test_a_handle_has_all_that_upstream_uses_of_a_greenlet() -> None:
    assert upstream.unknown_to_handles() == []
    code = (
        "from locust.runners import Runner; from parked.loadtest.plugin import upstream\n"
        "print(*upstream.asked_of_greenlets(Runner.stop, Runner.stop_users, Runner.user_classes_count))"
    )
    used = set(run_python(code).stdout.split())
    assert used
    assert not {name for name in used if not hasattr(UserHandle, name)}


#: Waits as Locust's main greenlet does, beside one that is always busy and lets nothing through.
GREEDY = """
import sys, time
import gevent
from parked.loadtest.plugin import adjustments

adjustments.hear_interrupts()

def greedy():
    while True:
        try:
            until = time.perf_counter() + 0.05
            while time.perf_counter() < until:
                pass
            gevent.sleep(0)
        except KeyboardInterrupt:
            pass

gevent.spawn(greedy)
print("ready", flush=True)
try:
    gevent.sleep(30)
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_an_interrupt_ends_the_run_whatever_is_busy_when_it_comes() -> None:
    command = [sys.executable, "-c", GREEDY]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(DEADLINE_S) == 7
        finally:
            process.kill()


def test_an_interrupt_that_a_script_hears_itself_stays_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(gevent, "signal_handler", lambda number, *_: taken.append(number))
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        adjustments.hear_interrupts()
        assert taken == []
    finally:
        signal.signal(signal.SIGINT, before)
    adjustments.hear_interrupts()
    assert taken == [signal.SIGINT]


def test_a_run_from_outside_counts_the_same_everywhere_and_ends_with_its_master(tmp_path: Path) -> None:
    """A master and two workers, as processes: Locust's CSV, the server's own count, and an end by SIGKILL."""
    locustfile = tmp_path / "locustfile.py"
    with Peer(answering(response())) as peer:
        locustfile.write_text(
            "from locust import constant, task\n"
            "from parked.user import KeepAliveUser\n"
            "class Mine(KeepAliveUser):\n"
            f"    host = {peer.url!r}\n"
            "    wait_time = constant(0.2)\n"
            "    @task\n"
            "    def get(self):\n"
            "        self.client.get('/')\n"
        )
        command = [
            sys.executable,
            "-P",
            "-m",
            "locust",
            "-f",
            str(locustfile),
            "--headless",
            "--processes",
            "2",
        ]
        command += ["-u", "20", "-r", "100", "--csv", str(tmp_path / "run"), "--host", peer.url]
        master = str(free_port())
        command += ["--master-bind-port", master, "--master-port", master]
        environ = os.environ | {"PYTHONPATH": str(CHECKOUT), "GEVENT_TRACK_GREENLET_TREE": "0"}
        log = tmp_path / "log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [*command, "-t", "4s"],
                cwd=tmp_path,
                env=environ,
                stdout=output,
                stderr=output,
                start_new_session=True,
            ) as run,
        ):
            try:
                eventually_slowly(lambda: run.poll() is not None)
            finally:
                end_session(run)
        assert run.returncode == 0, log.read_text()[-2000:]
        aggregated = (tmp_path / "run_stats.csv").read_text().splitlines()[-1].split(",")
        assert aggregated[1] == "Aggregated"
        assert int(aggregated[2]) == len(peer.requests) > 100
        assert len(peer.connections) == 20

        with subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as run:
            try:
                eventually_slowly(lambda: len(peer.connections) == 40)
                workers = children(run.pid)
                assert len(workers) == 2
                run.kill()
                run.wait()
                eventually_slowly(lambda: not any(is_running(pid) for pid in workers))
            finally:
                end_session(run)


def end_session(run: subprocess.Popen[bytes]) -> None:
    """End a command and what it forked, whatever became of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)


def eventually_slowly(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        gevent.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_process_without_memory_says_so_and_ends() -> None:
    code = (
        "from parked.loadtest.plugin import adjustments; adjustments.apply(); import gevent\n"
        "def fail(): raise MemoryError\n"
        "gevent.get_hub().loop.run_callback(fail); gevent.sleep(10)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == adjustments.NO_MEMORY_EXIT
    assert done.stderr.splitlines() == [adjustments.NO_MEMORY.decode().strip()]


def test_heartbeats_do_not_see_that_the_wall_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    adjustments.apply()
    before_s = runners.time.time()
    monkeypatch.setattr("time.time", lambda: before_s + 3600)
    assert before_s <= runners.time.time() < before_s + 60


def test_csv_files_end_with_the_last_figures(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adjustments.apply()
    monkeypatch.setattr("locust.stats.CSV_STATS_INTERVAL_SEC", 0.01)
    writer = StatsCSVFileWriter(environment, [0.5], str(tmp_path / "run"))
    writing = gevent.spawn(writer.stats_writer)
    gevent.sleep(0)
    environment.stats.log_request("GET", "late", 5.0, 10)
    environment.stats.log_error("GET", "late", "it was")
    writer.close_files()
    writing.join(30)
    assert writing.successful(), "it has written to a closed file"
    lines = (tmp_path / "run_stats.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [["GET", "late", "1"], ["", "Aggregated", "1"]]
    assert "it was" in (tmp_path / "run_failures.csv").read_text()
    assert len((tmp_path / "run_exceptions.csv").read_text().splitlines()) == 1


def test_csv_files_have_their_lines_where_json_was_told_before(
    environment: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adjustments.apply()
    writer = StatsCSVFileWriter(environment, [0.5], str(tmp_path / "run"))
    environment.stats.log_request("GET", "page", 5.0, 10)
    locust_stats.print_stats_json(environment.stats)
    locust_stats.save_stats_json(environment.stats, str(tmp_path / "told"))
    writer.close_files()
    lines = (tmp_path / "run_stats.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [["GET", "page", "1"], ["", "Aggregated", "1"]]
    for text in (capsys.readouterr().out, (tmp_path / "told.json").read_text()):
        assert [(entry["name"], entry["num_requests"]) for entry in json.loads(text)] == [("page", 1)]
