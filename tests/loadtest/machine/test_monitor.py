"""Monitor: real processes and sockets, and what the kernel says about them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import monkey

from parked.loadtest.machine import monitor as monitor_module
from parked.loadtest.machine.monitor import LostProcess, Monitor

MIB = 1 << 20

#: A pre-forking server in small: the parent listens, children come at each line of standard input.
SUPERVISOR = """
import os, signal, socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reap
print(listener.getsockname()[1], flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        burn_until = time.process_time() + float(line)
        memory = bytearray(b"x") * (20 << 20)
        while time.process_time() < burn_until:
            pass
        os.write(1, b"ready\\n")
        signal.pause()
    print(pid, flush=True)
"""


class Server:
    """SUPERVISOR with its children."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.children: list[int] = []
        self.port = int(self.process.stdout.readline())

    def fork(self, burn_s: float = 0.0) -> int:
        """A child that is ready, having burnt that much CPU and touched 20 MiB."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(burn_s, file=self.process.stdin, flush=True)
        lines = sorted(self.process.stdout.readline().strip() for _ in range(2))
        assert lines[1] == "ready", lines
        self.children.append(int(lines[0]))
        return self.children[-1]

    def stop(self) -> None:
        for pid in self.children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # the test ended it
                continue
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def client() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


#: Other tests import Locust, which patches time.sleep to run gevent's loop, and that reaps zombies.
sleep = monkey.get_original("time", "sleep")


def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "never became true"
        sleep(0.01)


def test_the_processes_of_the_server_are_found_by_its_port(
    server: Server, client: subprocess.Popen[bytes]
) -> None:
    server.fork()
    server.fork()
    sample = Monitor(client.pid, (server.port,)).sample()
    assert (sample.server_processes, sample.client_processes) == (3, 1)


def test_a_listener_on_ipv6_is_found_too(client: subprocess.Popen[bytes]) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/tcp6").exists():
        pytest.skip("no IPv6 here")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        assert Monitor(client.pid, (listener.getsockname()[1],)).sample().server_processes >= 1


def test_a_server_that_the_client_started_does_not_count_as_client(server: Server) -> None:
    server.fork()
    sample = Monitor(os.getpid(), (server.port,)).sample()
    assert (sample.server_processes, sample.client_processes) == (2, 1)


def test_connections_of_a_client_are_no_listeners(server: Server, client: subprocess.Popen[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        sample = Monitor(client.pid, (server.port,)).sample()
    assert (sample.server_processes, sample.client_processes) == (1, 1)


def test_what_a_server_takes_is_known_only_if_all_servers_are_here(
    server: Server, client: subprocess.Popen[bytes]
) -> None:
    for ports in ((), (server.port, 1)):  # nobody listens at port 1
        sample = Monitor(client.pid, ports).sample()
        assert (sample.server_processes, sample.server_cpu_seconds, sample.server_pss_bytes) == (None,) * 3
        assert sample.server_cores is None


def test_cpu_time_of_a_busy_child_is_counted_and_of_the_idle_client_is_not(
    server: Server, client: subprocess.Popen[bytes]
) -> None:
    clock = Clock()
    monitor = Monitor(client.pid, (server.port,), clock)
    clock.now += 1
    monitor.sample()
    server.fork(burn_s=0.5)
    clock.now += monitor_module.TREE_EVERY_S
    sample = monitor.sample()
    assert sample.server_cpu_seconds == pytest.approx(0.5, abs=0.2)
    assert sample.client_cpu_seconds < 0.1
    assert sample.server_cores is not None
    assert sample.server_cores < 0.1  # what it used before it was known is no rate of this interval


@pytest.mark.parametrize("prompt_s", [monitor_module.PROMPT_S, 0.0])
def test_rates_are_cpu_seconds_of_a_second_also_where_ticks_are_lost(
    monkeypatch: pytest.MonkeyPatch, prompt_s: float
) -> None:
    read = monitor_module._read
    lost = prompt_s > 0  # where the clock is not prompt, the ticks have to do, and none are lost

    def half(path: str) -> bytes:
        content = read(path)
        if path != "/proc/stat" or not lost:
            return content
        first, rest = content.split(b"\n", 1)
        name, *ticks = first.split()
        return b" ".join([name, *(b"%d" % (int(tick) // 2) for tick in ticks)]) + b"\n" + rest

    monkeypatch.setattr(monitor_module, "_read", half)
    monkeypatch.setattr(monitor_module, "PROMPT_S", prompt_s)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        monitor = Monitor(busy.pid, ())
        time.sleep(0.3)
        first, began = monitor.sample(), time.monotonic()
        time.sleep(1)
        sample, took_s = monitor.sample(), time.monotonic() - began
    finally:
        busy.kill()
        busy.wait()
    used = sample.client_cpu_seconds - first.client_cpu_seconds
    assert sample.client_cores is not None
    assert sample.client_cores * took_s == pytest.approx(used, rel=0.2, abs=0.05)


def test_rates_are_shares_of_the_time_that_the_kernel_has_counted(client: subprocess.Popen[bytes]) -> None:
    monitor = Monitor(client.pid, ())
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        monitor.sample()
        time.sleep(1)
        sample = monitor.sample()
    finally:
        busy.kill()
        busy.wait()
    assert sample.busy_cores is not None
    assert sample.kernel_cores is not None
    assert 0.5 <= sample.busy_cores <= 1.05 * (os.cpu_count() or 1)  # what others do and take is in it
    assert 0 <= sample.kernel_cores <= sample.busy_cores
    assert monitor.peaks["busy_cores"] >= sample.busy_cores


def test_a_sample_that_is_held_up_shows_no_more_cores_than_there_are(
    client: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Monitor(client.pid, ())
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.3)
        monitor.sample()
        time.sleep(0.3)
        for held_up in ("_read_pss", "_follow", "_read_processes"):
            original = getattr(monitor, held_up)

            def slow(*args: Any, original: Any = original, **kwargs: Any) -> Any:
                time.sleep(0.2)
                return original(*args, **kwargs)

            monkeypatch.setattr(monitor, held_up, slow)
        monitor._followed_at -= monitor_module.TREE_EVERY_S
        cores = monitor.sample().busy_cores
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert cores is not None
    assert cores <= 1.2 * (os.cpu_count() or 1)  # ticks are of 10 ms


def test_two_samples_at_once_have_no_rate(
    client: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "_RATE_INTERVAL_MIN_S", 60.0)  # however slow this machine is just now
    monitor = Monitor(client.pid, ())
    assert monitor.sample().busy_cores is None
    monkeypatch.setattr(monitor_module, "_RATE_INTERVAL_MIN_S", 0.05)
    time.sleep(0.1)
    assert monitor.sample().busy_cores is not None


def test_a_process_that_ends_is_lost_once_and_its_cpu_time_is_kept(
    server: Server, client: subprocess.Popen[bytes]
) -> None:
    clock = Clock()
    monitor = Monitor(client.pid, (server.port,), clock)
    pid = server.fork(burn_s=0.3)
    clock.now += monitor_module.TREE_EVERY_S
    used = monitor.sample().server_cpu_seconds
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    clock.now += 1
    sample = monitor.sample()
    assert sample.lost == (LostProcess("server", pid),)
    assert sample.server_processes == 1
    assert sample.server_cpu_seconds >= used >= 0.25
    replacement = server.fork()
    clock.now += 0.1  # after a loss the next sample looks at once
    sample = monitor.sample()
    assert (sample.lost, sample.server_processes) == ((), 2)
    assert replacement != pid


def test_a_zombie_is_lost(server: Server, client: subprocess.Popen[bytes]) -> None:
    monitor = Monitor(client.pid, (server.port,))
    os.kill(client.pid, signal.SIGKILL)  # its parent, this test, has not waited for it
    eventually(lambda: b") Z " in Path(f"/proc/{client.pid}/stat").read_bytes())
    sample = monitor.sample()
    assert sample.lost == (LostProcess("client", client.pid),)
    assert sample.client_processes == 0


def test_workers_outlive_their_supervisor_in_the_count(
    server: Server, client: subprocess.Popen[bytes]
) -> None:
    server.fork()
    monitor = Monitor(client.pid, (server.port,))
    server.process.kill()
    eventually(lambda: b") Z " in Path(f"/proc/{server.process.pid}/stat").read_bytes())
    assert monitor.sample().server_processes == 1


def test_children_are_found_without_the_kernels_lists(
    server: Server, client: subprocess.Popen[bytes]
) -> None:
    clock = Clock()
    monitor = Monitor(client.pid, (server.port,), clock)
    monitor._lists_children = False  # as on a kernel without CONFIG_PROC_CHILDREN
    server.fork()
    clock.now += monitor_module.TREE_EVERY_S
    assert monitor.sample().server_processes == 2


def test_memory_is_the_pss_of_all_processes_of_a_side(
    server: Server, client: subprocess.Popen[bytes]
) -> None:
    for _ in range(3):
        server.fork()
    monitor = Monitor(client.pid, (server.port,))
    sample = monitor.sample()
    assert sample.server_pss_bytes is not None
    assert sample.client_pss_bytes is not None
    assert 60 * MIB <= sample.server_pss_bytes <= 120 * MIB
    assert 1 * MIB <= sample.client_pss_bytes <= 20 * MIB
    assert monitor.peaks["server_pss_bytes"] == sample.server_pss_bytes


def test_processes_take_turns_so_that_a_sample_stays_cheap(
    server: Server, client: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fork()
    server.fork()
    clock = Clock()
    monitor = Monitor(client.pid, (server.port,), clock)
    monitor.sample()
    monkeypatch.setattr(monitor_module, "PSS_BUDGET_S", 0.0)  # one process a sample
    ages = []
    for _ in range(8):
        clock.now += 1
        ages.append(monitor.sample().pss_complete_age_s)
    assert max(age for age in ages if age is not None) == 3  # four processes: the oldest was read 3 s ago


def test_a_sum_is_there_when_all_have_had_their_turn_and_not_before(
    server: Server, client: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        server.fork()
    monkeypatch.setattr(monitor_module, "PSS_BUDGET_S", 0.0)
    whole = Monitor(client.pid, (server.port,)).sample().server_pss_bytes
    assert whole is not None
    monkeypatch.setattr(monitor_module, "PSS_FIRST_S", 0.0)
    monitor = Monitor(client.pid, (server.port,))
    sums = [monitor.sample().server_pss_bytes for _ in range(6)]
    assert None in sums
    assert {*sums} != {None}
    assert all(size > 0.9 * whole for size in sums if size is not None)
    monkeypatch.setattr(monitor_module, "PSS_ROUND", 2)
    monitor = Monitor(client.pid, (server.port,))
    monitor.sample()
    assert monitor.sample().server_pss_bytes is not None


def test_memory_that_may_not_be_read_is_none_and_not_a_part_of_the_sum(
    server: Server, client: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = server.fork()
    read = monitor_module._read

    def guarded(path: str) -> bytes:
        if path.endswith(f"/{pid}/smaps_rollup"):
            raise PermissionError
        return read(path)

    monkeypatch.setattr(monitor_module, "_read", guarded)
    sample = Monitor(client.pid, (server.port,)).sample()
    assert sample.server_pss_bytes is None
    assert sample.client_pss_bytes is not None


def test_sockets_and_buffers_agree_with_what_is_open(client: subprocess.Popen[bytes]) -> None:
    def grew_by_what_was_opened() -> bool:
        monitor = Monitor(client.pid, ())
        before = monitor.sample()
        with contextlib.ExitStack() as opened:
            listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=300))
            sockets = [socket.create_connection(listener.getsockname()) for _ in range(200)]
            sockets += [listener.accept()[0] for _ in range(200)]
            for sock in sockets:
                opened.enter_context(sock)
                sock.send(b"x" * 4096)
            during = monitor.sample()
        assert before.sockstat_tcp_inuse is not None
        assert during.sockstat_tcp_inuse is not None
        assert before.sockstat_tcp_mem_bytes is not None
        assert during.sockstat_tcp_mem_bytes is not None
        assert monitor.peaks["sockstat_tcp_inuse"] >= during.sockstat_tcp_inuse
        assert monitor.memory_available_min_bytes is not None
        assert monitor.memory_available_min_bytes <= during.memory_available_bytes
        return (
            abs(during.sockstat_tcp_inuse - before.sockstat_tcp_inuse - 401) <= 10
            and during.sockstat_tcp_mem_bytes - before.sockstat_tcp_mem_bytes >= 400 * 4096 / 2
        )

    # The kernel counts the sockets of the whole machine, so what other programs open and close in the same
    # instant is in the difference too: tried until an instant is quiet, which a wrong count never becomes.
    eventually(grew_by_what_was_opened, within_s=30)


def test_an_overflowing_listen_queue_shows_as_a_difference_from_the_start(
    client: subprocess.Popen[bytes],
) -> None:
    monitor = Monitor(client.pid, ())
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        attempts = [socket.socket() for _ in range(8)]
        for sock in attempts:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())

        def overflowed() -> bool:
            sample = monitor.sample()
            return (sample.listen_overflows or 0) > 0 and (sample.listen_drops or 0) > 0

        eventually(overflowed)
        later = Monitor(client.pid, ()).sample().listen_overflows
        total = monitor.sample().listen_overflows
        assert later is not None
        assert total is not None
        assert later < total
        for sock in attempts:
            sock.close()


def test_a_sample_of_fifty_processes_takes_a_few_milliseconds(client: subprocess.Popen[bytes]) -> None:
    crowd = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys\nfor _ in range(49):\n if os.fork() == 0: break\nsys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
    )
    try:
        eventually(lambda: Monitor(crowd.pid, ()).sample().client_processes == 50)
        clock = Clock()
        monitor = Monitor(crowd.pid, (), clock)
        samples = 20
        spent_s = -time.thread_time()
        for _ in range(samples):
            clock.now += 1
            monitor.sample()
        spent_s += time.thread_time()
    finally:
        crowd.communicate()  # closes their standard input, so that all of them end
    # 4 ms on the machine of the reference figures; a list of all sockets would take seconds.
    assert spent_s / samples < 0.015


def test_a_kernel_without_ipv6_and_counters_gives_none(
    client: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = monitor_module._read

    def without_net(path: str) -> bytes:
        if "/net/" in path:
            raise FileNotFoundError
        return read(path)

    monkeypatch.setattr(monitor_module, "_read", without_net)
    sample = Monitor(client.pid, ()).sample()
    assert sample.sockstat_tcp_inuse is None
    assert sample.listen_overflows is None
    assert sample.client_processes == 1
