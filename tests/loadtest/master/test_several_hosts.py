"""Runs of several hosts: on a network of namespaces, and as processes of this machine."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from parked.loadtest.report import verify
from tests.cluster import Cluster, cluster
from tests.commands import free_ports
from tests.loadtest.command.test_run import RUN_S, run_test
from tests.loadtest.runs import NO_PICTURES
from tests.network import NotPermitted, network

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", NO_PICTURES)


@contextlib.contextmanager
def hosts(folder: Path, clients: int, servers: int, connections: int) -> Iterator[Cluster]:
    try:
        with (
            network(clients, servers, delay_ms=5, loss_percent=0.1) as made,
            cluster(made, connections, folder) as running,
        ):
            yield running
    except NotPermitted as error:
        pytest.skip(str(error))


def test_two_hosts_through_a_balancer_to_two_servers_add_up(tmp_path: Path) -> None:
    with hosts(tmp_path, 2, 2, 600) as made:
        urls = made.start_servers(balanced=bool(shutil.which("haproxy")))
        made.start_run(urls, "--hold", "4s", "--think", "1:3")
        made.await_text("master", "| hold", RUN_S)
        seen = [made.network.sockets(server) for server in made.network.servers]
        assert made.master is not None
        code = made.end(made.master, RUN_S, "master")
        assert [made.end(process, RUN_S, name) for name, process in made.joined.items()] == [0, 0]
        summary = made.summary()
    # How fast this machine is just now is another matter.
    assert [reason for reason in summary["reasons"] if not reason.endswith(" offered")] == []
    assert (code, summary["peak_connections"]) == (bool(summary["reasons"]), 600)
    assert [host["name"] for host in summary["hosts"]] == ["c1", "c2"]
    assert [host["peak_connections"] for host in summary["hosts"]] == [300, 300]
    for name in ("requests", "failures", "reconnects", "hold_requests"):
        assert sum(host[name] for host in summary["hosts"]) == summary[name]
    assert all(300 <= host["sockstat_tcp_inuse_peak"] <= 320 for host in summary["hosts"])
    assert all(abs(host["clock_offset_ms"]) < 50 for host in summary["hosts"]), "it is one clock"
    assert 600 <= sum(seen) <= 650, "sockets, as the servers' kernels count them"
    assert all(abs(count - 300) < 50 for count in seen), "spread evenly"
    assert not verify.verify(made.results).disagreements
    page = (made.results / "index.html").read_text()
    assert "<td>c1</td>" in page
    addresses = {worker["source"] for worker in verify.Record.read(made.results).facts["workers"]}
    assert addresses == {"10.77.1.11-10.77.1.66", "10.77.1.12-10.77.1.70"}, "those of sysconfig/addresses too"


class Answering(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The URL of a server that can be reached: the run is over before it begins."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:  # or it goes on asking for a descriptor that is closed
            server.shutdown()


def joined(folder: Path, name: str, port: str, *options: str) -> subprocess.Popen[bytes]:
    """One of several hosts on this machine, which have a folder for temporary files in common."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    with (folder / f"{name}.out").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "loadtest", "--join", f"127.0.0.1:{port}", *options],
            env=os.environ | {"TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def test_of_hosts_one_dies_one_leaves_one_is_late_and_the_rest_goes_on(tmp_path: Path) -> None:
    server_port, master_port = map(str, free_ports(2))
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "app", "--bind", f"127.0.0.1:{server_port}"],
        stdout=subprocess.PIPE,
    )
    started: list[subprocess.Popen[bytes]] = []
    try:
        assert server.stdout is not None
        assert b"listening" in server.stdout.readline()
        options = ["--master", "127.0.0.1", "--expect-hosts", "3", "-c", "300", "--hold", "90s"]
        addresses = ["--host", f"http://127.0.0.1:{server_port}", "--master-port", master_port]
        with run_test(tmp_path / "run", *options, *addresses) as run:
            started += [joined(tmp_path, name, master_port) for name in ("one", "two", "three")]
            of_another = tmp_path / "temporary" / "keepalive.py"
            of_another.write_text("# somebody else's\n")
            run.await_text("| hold")
            dying, leaving, staying = started
            workers = psutil.Process(dying.pid).children(recursive=True)
            dying.kill()
            psutil.wait_procs(workers, RUN_S)
            assert not any(process.is_running() for process in workers), "a host's workers go with its agent"
            late = joined(tmp_path, "late", master_port)
            assert late.wait(RUN_S) == 7
            assert "the run has its 3 hosts" in (tmp_path / "late.out").read_text()
            leaving.send_signal(signal.SIGINT)
            assert leaving.wait(RUN_S) == 130
            assert "interrupted" in (tmp_path / "two.out").read_text()
            run.await_text("concurrency: 100,")
            run.process.send_signal(signal.SIGINT)
            assert run.end() == 130
            assert staying.wait(RUN_S) == 0
            assert "the run has ended" in (tmp_path / "three.out").read_text()
            assert of_another.read_text() == "# somebody else's\n", "no host writes where another reads"
            assert len(list(of_another.parent.iterdir())) <= 2, "what is left is of the host that was killed"
        summary = run.summary()
        reasons = str(summary["reasons"])
        assert re.search(r"host \S+ left \(interrupted; .*\) at \d+ s with 100 connections", reasons)
        assert re.search(r"host \S+ ended or was cut off at \d+ s with 100 connections", reasons)
        assert "Locust worker" not in reasons, "a host's workers went with it"
        assert summary["peak_connections"] == 300
        assert summary["min_connections_in_hold"] == 100, "nobody takes over what a host carried"
        assert summary["failures"] == 0
        held = [host["min_connections_in_hold"] for host in summary["hosts"]]  # type: ignore[attr-defined]
        assert sorted(held) == [0, 0, 100]
    finally:
        for process in (*started, server):
            process.terminate()
            process.wait(20)
        server.stdout.close()  # type: ignore[union-attr]


def test_a_master_names_who_has_not_joined_and_a_host_a_master_that_is_not_there(tmp_path: Path) -> None:
    port = str(free_ports(1)[0])
    alone = joined(tmp_path, "alone", port, "--join-timeout", "2s")
    with serving() as url:
        options = ["--master", "127.0.0.1", "--expect-hosts", "2", "-c", "10", "--join-timeout", "3s"]
        with run_test(tmp_path / "run", *options, "--host", url) as run:
            assert run.end() == 7
            assert "only 0 of 2 hosts joined within 3 s: none" in run.text()
            assert "Traceback" not in run.text()
    assert alone.wait(RUN_S) == 7
    assert f"no master answered at 127.0.0.1:{port} within 2 s" in (tmp_path / "alone.out").read_text()


def test_a_host_whose_limits_are_too_low_ends_the_run_for_all(tmp_path: Path) -> None:
    master_port = str(free_ports(1)[0])
    with serving() as url:
        options = ["--master", "127.0.0.1", "--expect-hosts", "1", "-c", "10", "--host", url]
        with run_test(tmp_path / "run", *options, "--master-port", master_port) as run:
            run.await_text("on each of them")
            host = joined(tmp_path, "host", master_port, "--processes", "1M")
            assert run.end() == 7, run.text()
            assert host.wait(RUN_S) == 3
            assert re.search(r"run_test: host \S+: .*available memory.* too low", run.text()), run.text()
            assert "Traceback" not in run.text()
    assert not (tmp_path / "run" / "run.json").exists()
