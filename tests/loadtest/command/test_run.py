"""run_test as a user runs it: real Locust workers, a real server, bad input and bad weather."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import psutil
import pytest

from parked.loadtest.command import run as run_module
from parked.loadtest.command.processes import LOCUST, MODE_VARIABLES, Stop
from parked.loadtest.report import verify
from tests import commands
from tests.commands import free_ports
from tests.loadtest.runs import NO_PICTURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROJECT = Path(__file__).resolve().parents[3]

#: Seconds that a run of a few thousand connections may take here before a test calls it hung.
RUN_S = 150


class RunTest:
    """One run_test process and what it leaves."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        before: Callable[[], object] | None = None,
        pictures: bool = False,
    ) -> None:
        self.folder = folder
        server_port, master_port = free_ports(2)
        given = options
        defaults = {
            "--host": f"http://127.0.0.1:{server_port}",
            "--master-port": str(master_port),
            "--results": str(folder),
        }
        for name, value in defaults.items():
            if name not in options:
                options += (name, value)
        if "--host" not in given and not {"--plan", "--join"} & set(options):
            options += ("--start-server",)
        self.output = folder.parent / f"{folder.name}.out"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "loadtest", *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(PROJECT) if pictures else NO_PICTURES},
                preexec_fn=before,
            )
        self._family: dict[int, psutil.Process] = {}

    def family(self) -> list[psutil.Process]:
        """Every process that it has started so far and that is still there."""
        unseen = [self.process.pid]
        while unseen:
            for pid in children(unseen.pop()):
                unseen.append(pid)
                if pid not in self._family:
                    with suppress(psutil.NoSuchProcess):
                        self._family[pid] = psutil.Process(pid)
        return [process for process in self._family.values() if process.is_running()]

    def text(self) -> str:
        return self.output.read_text()

    def await_text(self, wanted: str, within_s: float = RUN_S) -> None:
        deadline = time.monotonic() + within_s
        while wanted not in self.text():
            assert self.process.poll() is None, f"ended before {wanted!r}:\n{self.text()}"
            assert time.monotonic() < deadline, f"no {wanted!r} within {within_s} s:\n{self.text()}"
            self.family()
            time.sleep(0.1)

    def await_fact(self, name: str, wanted: object, within_s: float = RUN_S) -> None:
        deadline, facts = time.monotonic() + within_s, self.folder / "run.json"
        while not facts.exists() or json.loads(facts.read_text()).get(name) != wanted:
            assert time.monotonic() < deadline, f"{name} not {wanted} within {within_s} s:\n{self.text()}"
            self.family()
            time.sleep(0.1)

    def end(self, within_s: float = RUN_S) -> int:
        """Wait for its end; nothing that it started may be left then."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"did not end within {within_s} s:\n{self.text()}"
            self.family()
            time.sleep(0.1)
        left = [process for process in self.family() if process.status() != psutil.STATUS_ZOMBIE]
        assert not left, f"left running: {left}"
        return self.process.returncode

    def summary(self) -> dict[str, object]:
        loaded: dict[str, object] = json.loads((self.folder / "summary.json").read_text())
        return loaded

    def end_well(self) -> dict[str, Any]:
        """Wait for its end, and for nothing wrong but its rate: how fast this machine is just now is another
        matter."""
        code, summary = self.end(), self.summary()
        reasons = cast(list[str], summary["reasons"])
        assert [reason for reason in reasons if not reason.endswith(" offered")] == [], self.text()
        assert code == bool(reasons), self.text()
        return summary

    def kill(self) -> None:
        for process in [*self.family(), psutil.Process(self.process.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def children(pid: int) -> list[int]:
    """Of a process, as the kernel lists them: psutil would look at all processes there are."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


@contextmanager
def run_test(
    folder: Path, *options: str, before: Callable[[], object] | None = None, pictures: bool = False
) -> Iterator[RunTest]:
    run = RunTest(folder, *options, before=before, pictures=pictures)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.kill()


def refusal(folder: Path, *options: str, before: Callable[[], object] | None = None) -> tuple[int, str]:
    """Exit code and output of a run that is expected to be refused."""
    with run_test(folder, *options, before=before) as run:
        return run.end(), run.text()


def test_two_thousand_connections_are_held_and_everything_is_written(tmp_path: Path) -> None:
    options = ("-c", "2000", "--hold", "4s", "--think", "1:3")
    with run_test(tmp_path / "run", *options, pictures=True) as run:
        summary = run.end_well()
    assert summary["peak_connections"] == summary["min_connections_in_hold"] == 2000
    assert (summary["failures"], summary["reconnects"]) == (0, 0)
    assert summary["kernel"]["sockstat_tcp_inuse_peak"] >= 4000
    assert summary["hold_rps"] == pytest.approx(summary["offered_rps"], rel=0.5)
    assert summary["hold_seconds"] >= 4
    names = {file.name for file in run.folder.iterdir()}
    assert {"logfile", "samples.csv", "summary.json", "locust.html", "locust_stats.csv"} <= names
    assert {"connections.png", "throughput.png", "latency.png", "cpu.png", "memory.png"} <= names
    with (run.folder / "locust_stats.csv").open(newline="") as file:
        aggregated = list(csv.DictReader(file))[-1]
    assert int(aggregated["Request Count"]) == summary["requests"]
    log = (run.folder / "logfile").read_text()
    assert "concurrency: 2000, total requests: " in log


def test_one_request_of_any_kind_is_judged_by_conditions_and_told_to_programs(tmp_path: Path) -> None:
    options = ("-c", "20", "--think", "1", "--hold", "1s", "--path", "/?length=7&token=sesame")
    options += ("--header", "Authorization: sesame")
    options += ("--expect-status", "200", "--fail-if", "latency_ms.max > 0", "--json")
    with run_test(tmp_path / "run", *options, "--junit", str(tmp_path / "junit.xml")) as run:
        assert run.end() == 1
    text = run.text()  # with what is for people, which is on standard error
    printed, _ = json.JSONDecoder().raw_decode(text[text.index("\n{\n") + 1 :])
    assert printed == run.summary()
    assert (printed["failures"], len(printed["reasons"])) == (0, 1)
    assert printed["workload"]["length_characters"] is None
    assert "latency_ms.max" in (tmp_path / "junit.xml").read_text()
    assert "GET,/?length=7&token=***," in (run.folder / "locust_stats.csv").read_text()
    assert [file.name for file in run.folder.iterdir() if b"sesame" in file.read_bytes()] == []


class Mute(BaseHTTPRequestHandler):
    """Never answers on the connections from number 50 to 53."""

    protocol_version = "HTTP/1.1"
    numbers = itertools.count()

    def setup(self) -> None:
        super().setup()
        self.number = next(self.numbers)

    def do_GET(self) -> None:
        if 50 <= self.number < 54:
            self.rfile.read(1)  # until the client gives up
            return
        self.send_response_only(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")


class Many(ThreadingHTTPServer):
    request_queue_size = 200
    daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()  # or the thread goes on asking for a descriptor that is closed
        self.server_close()


def test_a_server_that_never_answers_some_clients_fails_the_run(tmp_path: Path) -> None:
    with Many(("127.0.0.1", 0), Mute) as server:
        host = f"http://127.0.0.1:{server.server_port}"
        options = ("--host", host, "-c", "100", "--think", "2:3", "--hold", "8s", "--path", "/")
        with run_test(tmp_path / "run", *options) as run:
            assert run.end() == 1
    summary = run.summary()
    reasons = str(summary["reasons"])
    # The others are served by this process, which may be slow.
    assert re.search(
        r"\b([4-9]|\d\d) requests were unanswered at the end of the hold for longer than", reasons
    )
    assert summary["failures"] == 0
    assert summary["latency_ms"]["max"] > 5_000  # type: ignore[index]
    with (run.folder / "samples.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row["phase"] == "hold"][-1]
    assert int(last["requests_open"]) >= 4
    assert float(last["open_oldest_ms"]) > 5_000
    assert verify.main([str(run.folder)]) == 0


IN_A_HURRY = """
import sys
from parked.loadtest.command import arguments, run, settings
run.END_S, settings.SPARE_S = 1.0, 1
sys.exit(arguments.main())
"""


def test_a_run_that_does_not_end_is_ended_when_its_plan_is_over(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(
        f"import os, time\nwith open({str(tmp_path / 'pid')!r}, 'w') as file:\n"
        "    file.write(str(os.getpid()))\ntime.sleep(1e6)\n"
    )
    with Many(("127.0.0.1", 0), Mute) as server:
        options = ["-c", "1", "--hold", "5s", "-f", str(tmp_path / "hangs.py"), "--plain"]
        options += ["--host", f"http://127.0.0.1:{server.server_port}", "--results", str(tmp_path / "run")]
        options += ["--master-port", str(free_ports(1)[0])]
        done = commands.run([sys.executable, "-c", IN_A_HURRY, *options], cwd=PROJECT, timeout=RUN_S)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "Locust ended with code -9" in done.stdout + done.stderr
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(("is_set", "within_s", "code"), [(True, 120.0, 130), (False, 0.1, 5)])
def test_a_locustfile_that_does_not_load_is_waited_for_until_a_bound_or_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_set: bool, within_s: float, code: int
) -> None:
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(1e6)\n")
    monkeypatch.setattr(run_module, "LOAD_S", within_s)
    settings: Any = SimpleNamespace(
        of_locust=["--tags", "x"], locustfile=tmp_path / "hangs.py", workload="keepalive"
    )
    interrupted: Any = SimpleNamespace(is_set=is_set)
    before = children(os.getpid())
    with pytest.raises(Stop) as stopped:
        run_module._check_locust_options(settings, interrupted)
    assert stopped.value.code == code
    assert children(os.getpid()) == before


def test_a_run_that_stops_no_further_after_an_interrupt_is_ended(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'loading')!r}, 'w').close()\n"
        "while True:\n    time.sleep(0.1)\n    print('waiting', file=sys.stderr, flush=True)\n"
    )
    script = (
        "import sys\nfrom parked.loadtest.command import arguments, run\nrun.STILL_S = 1.0\n"
        "sys.exit(arguments.main())\n"
    )
    with Many(("127.0.0.1", 0), Mute) as server:
        options = ["-c", "1", "--hold", "5s", "-f", str(tmp_path / "deaf.py"), "--plain"]
        options += ["--host", f"http://127.0.0.1:{server.server_port}", "--results", str(tmp_path / "run")]
        options += ["--master-port", str(free_ports(1)[0])]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *options], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        try:
            deadline = time.monotonic() + RUN_S
            while not (tmp_path / "loading").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.terminate()
            said = process.communicate(timeout=30)[0]
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130, said
    assert "nothing has happened for 1 s" in said


def test_variables_that_give_locust_another_part_do_not_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in MODE_VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / "elsewhere.log") if name == "LOCUST_LOGFILE" else "1")
    with run_test(tmp_path / "run", "-c", "10", "--hold", "1s", "--think", "0.2:0.4", "--plain") as run:
        run.end_well()
    assert not (tmp_path / "elsewhere.log").exists()
    # All of them are Locust's.
    look = "from locust import argument_parser as it; print(*(a.env_var for a in it.get_parser()._actions))"
    for name in MODE_VARIABLES:
        monkeypatch.delenv(name)
    done = commands.run([sys.executable, "-c", look], timeout=60)
    assert set(MODE_VARIABLES) <= set(done.stdout.split()), done.stderr


def test_results_that_somebody_has_removed_are_not_the_fault_of_locust(tmp_path: Path) -> None:
    settings: Any = SimpleNamespace(results=tmp_path / "gone", fail_if=())
    with pytest.raises(Stop, match="its results are gone: ") as stopped:
        run_module._report(settings, 0, "", SimpleNamespace(is_set=False))  # type: ignore[arg-type]
    assert stopped.value.code == 6


def test_a_run_that_has_failed_is_ended_early_if_asked_for(tmp_path: Path) -> None:
    options = ("-c", "20", "--think", "0.2", "--hold", "10m", "--expect-status", "404", "--abort-on-fail")
    with run_test(tmp_path / "run", *options) as run:
        assert run.end() == 1
    reasons = run.summary()["reasons"]
    assert any("ended early (--abort-on-fail): " in reason for reason in reasons), reasons  # type: ignore[attr-defined]


def test_an_interrupt_in_the_hold_writes_everything_and_leaves_nothing_running(tmp_path: Path) -> None:
    with run_test(tmp_path / "run", "-c", "300", "--hold", "60s") as run:
        run.await_text("| hold")
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
    summary = run.summary()
    assert summary["peak_connections"] == 300
    assert "held for" in str(summary["reasons"])
    assert (run.folder / "locust.html").exists()


def test_an_interrupt_in_the_ramp_writes_what_was_measured(tmp_path: Path) -> None:
    with run_test(tmp_path / "run", "-c", "5000", "-r", "100", "--hold", "60s") as run:
        run.await_text("time 3s")
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
    summary = run.summary()
    assert summary["verdict"] == "fail"
    assert 100 <= summary["peak_connections"] < 5000  # type: ignore[operator]


def test_a_killed_locust_worker_is_named_and_the_run_ends_by_itself(tmp_path: Path) -> None:
    with run_test(tmp_path / "run", "-c", "400", "--processes", "2", "--hold", "8s") as run:
        run.await_text("| hold")
        master = next(process for process in run.family() if LOCUST[-1] in process.cmdline())
        worker = master.children()[0]
        worker.kill()
        assert run.end() == 1
    assert f"Locust worker pid {worker.pid} ended" in str(run.summary()["reasons"])
    assert run.summary()["min_connections_in_hold"] == 200


def test_a_run_without_a_worker_left_ends(tmp_path: Path) -> None:
    with run_test(tmp_path / "run", "-c", "100", "--hold", "60s") as run:
        run.await_text("hold 100%")
        killed = time.monotonic()
        master = next(process for process in run.family() if LOCUST[-1] in process.cmdline())
        (worker,) = master.children()
        worker.kill()
        assert run.end() == 1
    assert time.monotonic() - killed < 45  # neither the rest of the hold nor Locust's run time of minutes
    reasons = cast("list[str]", run.summary()["reasons"])
    assert any(re.search(r"pid \d+ ended at \d+ s with 100 connections", text) for text in reasons)
    assert not [text for text in reasons if "witnesses" in text]


def test_a_killed_server_worker_shows_as_lost_connections(tmp_path: Path) -> None:
    with run_test(tmp_path / "run", "-c", "400", "--think", "1:2", "--hold", "6s") as run:
        run.await_text("| hold")
        supervisor = next(process for process in run.family() if "parked.prefork" in process.cmdline())
        supervisor.children()[0].kill()
        assert run.end() == 1
    summary = run.summary()
    assert summary["min_connections_in_hold"] < 400  # type: ignore[operator]
    assert summary["reconnects"] > 0  # type: ignore[operator]
    assert "server process" in str(summary["reasons"])


def test_a_killed_master_leaves_its_results_and_no_workers(tmp_path: Path) -> None:
    with run_test(tmp_path / "run", "-c", "300", "--hold", "60s") as run:
        run.await_fact("peak_connections", 300)  # they are written every five seconds
        master = next(process for process in run.family() if LOCUST[-1] in process.cmdline())
        master.kill()
        assert run.end() == 1
    assert "master was killed by signal 9" in str(run.summary()["reasons"])
    assert run.summary()["peak_connections"] == 300


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("-c", "0"), "positive whole number"),
        (("--zzz",), "unrecognized arguments"),
        (("--holld", "3s"), "did you mean --hold?"),
    ],
)
def test_a_wrong_option_is_one_clear_line_and_exit_code_2(
    tmp_path: Path, options: tuple[str, ...], wanted: str
) -> None:
    code, text = refusal(tmp_path / "run", *options)
    assert code == 2
    assert wanted in text.splitlines()[-1]
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("host", ["http://127.0.0.2:9", "ftp://127.0.0.1", "http://"])
def test_a_host_that_cannot_be_tested_is_exit_code_4(tmp_path: Path, host: str) -> None:
    code, text = refusal(tmp_path / "run", "-c", "10", "--host", host)
    assert code == 4, text
    assert len(text.splitlines()) == 1
    assert "Traceback" not in text


def test_a_host_that_was_named_and_where_nobody_listens_is_not_replaced_by_our_own_server(
    tmp_path: Path,
) -> None:
    (port,) = free_ports(1)
    code, text = refusal(tmp_path / "run", "-c", "10", "--host", f"http://127.0.0.1:{port}")
    assert code == 4, text
    assert "--start-server" in text


@pytest.mark.parametrize(
    ("words", "variables", "wanted"),
    [
        (["NoSuchClass"], {}, "Unknown User(s): NoSuchClass"),
        (["-f", "MISSING.py"], {}, "cannot read MISSING.py: no such file or folder"),
        (["-f", "BROKEN.py"], {}, "SyntaxError"),
        (["--tags", "nosuch"], {}, "No tasks defined in KeepAliveConnection"),
        ([], {"LOCUST_TAGS": "nosuch"}, "No tasks defined in KeepAliveConnection"),
    ],
)
def test_a_wrong_word_costs_no_run_that_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    variables: dict[str, str],
    wanted: str,
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "BROKEN.py").write_text("class Broken(:\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = [str(tmp_path / word) if word == "BROKEN.py" else word for word in words]
    code, text = refusal(tmp_path / "run", "-c", "10", "--hold", "1s", "--overwrite", *words)
    assert code == 2, text
    assert "run_test: error: " in text.splitlines()[-1]
    assert wanted in text.splitlines()[-1]
    assert (tmp_path / "run" / "run.json").read_text() == "{}"


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    code, text = refusal(tmp_path / "run", "-c", "10")
    assert code == 6, text
    assert "--overwrite" in text
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["server.log", "locust_stats.csv", "run.json"])
def test_a_folder_that_leads_elsewhere_is_not_written_to(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "elsewhere")
    code, text = refusal(folder, "-c", "10", "--hold", "1s", "--overwrite")
    assert code == 6
    assert f"{name} is a link" in text.splitlines()[-1]
    assert not (tmp_path / "elsewhere").exists()


def test_a_host_that_does_not_speak_http_is_exit_code_4(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    peer.sendall(b"220 mail.example ESMTP\r\n")
                    peer.close()

        threading.Thread(target=speak, daemon=True).start()
        code, text = refusal(
            tmp_path / "run", "-c", "10", "--host", f"http://127.0.0.1:{listener.getsockname()[1]}"
        )
        listener.shutdown(socket.SHUT_RDWR)
    assert code == 4, text
    assert "HTTP" in text


def test_server_metrics_that_are_not_there_are_exit_code_4_before_anything_is_started(tmp_path: Path) -> None:
    with Many(("127.0.0.1", 0), Mute) as server:
        host = f"http://127.0.0.1:{server.server_port}"
        options = ("-c", "10", "--path", "/", "--host", host, "--hold", "1s")
        nobody = f"127.0.0.1:{free_ports(1)[0]}"
        for address, why in ((nobody, "refused"), (f"127.0.0.1:{server.server_port}", "no metrics")):
            code, text = refusal(tmp_path / "run", *options, "--server-metrics", address)
            assert code == 4, text
            assert len(text.splitlines()) == 1
            assert f"run_test: --server-metrics {address}: " in text
            assert why in text
            assert "--force" in text
    assert not (tmp_path / "run").exists()


def test_a_busy_master_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        code, text = refusal(tmp_path / "run", "-c", "10", "--master-port", port)
    assert code == 3
    assert port in text
    assert "Traceback" not in text


def test_a_descriptor_limit_that_is_too_low_is_named_with_its_remedy(tmp_path: Path) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))

    code, text = refusal(tmp_path / "run", "-c", "100000", before=lower)
    assert code == 3, text
    assert "nofile" in text or "descriptor" in text
    assert "--force" in text


def test_a_results_folder_that_cannot_be_made_is_exit_code_6(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    in_a_file = str(tmp_path / "file" / "run")
    code, text = refusal(tmp_path / "run", "-c", "10", "--results", in_a_file)
    assert code == 6, text
    assert "--results" in text
    assert "Traceback" not in text


def test_an_option_of_locusts_reaches_it(tmp_path: Path) -> None:
    locustfile = tmp_path / "tagged.py"
    locustfile.write_text(
        "from locust import tag, task\nfrom parked.user import KeepAliveUser\n\n\n"
        "class Tagged(KeepAliveUser):\n    @tag('one')\n    @task\n    def one(self):\n"
        "        self.client.get('/?length=1', name='one')\n\n"
        "    @tag('other')\n    @task\n    def other(self):\n"
        "        self.client.get('/?length=2', name='other')\n"
    )
    options = ("-c", "20", "--hold", "2s", "--think", "0.5:1", "-f", str(locustfile), "--plain")
    with run_test(tmp_path / "run", *options, "--tags", "one", "--stop-timeout", "2") as run:
        run.end_well()
    with (run.folder / "locust_stats.csv").open(newline="") as file:
        assert [row["Name"] for row in csv.DictReader(file)] == ["one", "Aggregated"]


def test_help_names_units_defaults_and_exit_codes() -> None:
    command = [sys.executable, "-m", "loadtest", "--help"]
    done = commands.run(command, env=os.environ | {"PYTHONPATH": str(PROJECT)}, timeout=60)
    assert done.returncode == 0, done.stderr
    for wanted in ("-c", "--hold", "or 10:90)", "exit codes", "PARKED_SOURCE"):
        assert wanted in " ".join(done.stdout.split())


def test_what_draws_the_pictures_is_read_while_locust_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    read, named = threading.Event(), []

    def lacking(name: str) -> None:
        named.append(name)
        read.set()
        raise ImportError(name)  # tells nobody: the report does

    monkeypatch.setattr(run_module.importlib, "import_module", lacking)
    run_module._read_ahead()
    assert read.wait(30)
    assert named == ["parked.loadtest.report.plots"]
