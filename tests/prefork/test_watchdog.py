from __future__ import annotations

import contextlib
import http.client
import re
import signal
import time
from pathlib import Path

import psutil

from parked.prefork import watchdog
from parked.prefork.scoreboard import Scoreboard
from parked.prefork.watchdog import Pulse, Watchdog
from tests.support import PATIENCE_S, ServerProcess, eventually

APPLICATION = """
import ctypes, os

def turns_for_ever():
    while True:
        pass

def sleeps_in_c():
    ctypes.PyDLL(None).sleep(1000)

def app(environ, start_response):
    what = environ["PATH_INFO"][1:]
    if what:
        globals()[what]()
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
"""


def test_a_worker_that_stands_still_is_replaced_with_its_stack_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(APPLICATION)
    flags = ("--app", "stuck:app", "--workers", "3", "--timeout", "4")
    with ServerProcess(*flags, cwd=tmp_path) as server, contextlib.ExitStack() as stack:
        connections = by_worker(server, 3)
        for connection in connections.values():
            stack.callback(connection.close)
        (spinning, spinner), (sleeping, sleeper), (serving, other) = connections.items()
        spinner.request("GET", "/turns_for_ever")
        sleeper.request("GET", "/sleeps_in_c")
        # A zombie is one that has ended; its supervisor has yet to look.
        gone = [psutil.Process(pid) for pid in (spinning, sleeping)]
        while any(process.is_running() and process.status() != "zombie" for process in gone):
            assert ask(other) == serving  # all the while
            assert time.monotonic() < server.started + 4 * PATIENCE_S
            time.sleep(0.05)
        eventually(lambda: len(server.workers()) == 3, "replaced", 4 * PATIENCE_S)
        server.signal(signal.SIGTERM)
        code, output = server.wait()
    assert code == 0, output
    for pid, where in ((spinning, "turns_for_ever"), (sleeping, "sleeps_in_c")):
        assert f"the event loop of worker {pid} has not turned for 4 s; its stacks:" in output
        assert f"worker {pid} was killed by signal 9; replacing it\n" in output
        assert re.search(rf'stuck\.py", line \d+ in {where}\n', output)


def by_worker(server: ServerProcess, count: int) -> dict[int, http.client.HTTPConnection]:
    """A connection to each of them."""
    found: dict[int, http.client.HTTPConnection] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline
        connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE_S)
        pid = ask(connection)
        if pid in found:
            connection.close()
        else:
            found[pid] = connection
    return found


def ask(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/")
    return int(connection.getresponse().read())


def test_a_loop_turns_while_a_greenlet_waits() -> None:
    board = Scoreboard()
    row = board.claim()
    assert row is not None
    pulse = Pulse(board, row, timeout_s=0.04)
    try:
        first = board.get(row, "turned")
        assert first
        eventually(lambda: board.get(row, "turned") > first)
    finally:
        pulse._timer.stop()


class Kennel:
    """A watchdog of one worker, with a clock of ours."""

    def __init__(self, timeout_s: float) -> None:
        self.board = Scoreboard()
        row = self.board.claim()
        assert row is not None
        self.row = row
        self.board.set(row, "owner", 4711)
        self.said: list[str] = []
        self.sent: list[int] = []
        self.dog = Watchdog(
            self.board, timeout_s, self.said.append, lambda _, number: self.sent.append(number)
        )
        self.now = time.monotonic()

    def turn(self) -> None:
        self.board.set(self.row, "turned", int(self.now * 1000))

    def look(self, after_s: float) -> list[int]:
        self.now += after_s
        self.dog.look(self.now)
        return self.sent


def test_stacks_come_first_and_the_end_a_moment_later() -> None:
    kennel = Kennel(timeout_s=2)
    kennel.turn()
    assert kennel.look(1.9) == []
    assert kennel.look(0.2) == [watchdog._STACKS]
    assert kennel.look(0.9) == [watchdog._STACKS]
    assert kennel.look(0.2) == [watchdog._STACKS, signal.SIGKILL]
    assert len(kennel.said) == 1


def test_who_wakes_up_at_the_first_signal_is_ended_all_the_same() -> None:
    kennel = Kennel(timeout_s=2)
    kennel.turn()
    kennel.look(1.9)
    kennel.look(0.2)
    kennel.turn()
    assert kennel.look(1.1) == [watchdog._STACKS, signal.SIGKILL]


def test_a_worker_that_has_not_begun_or_turns_is_left_alone() -> None:
    kennel = Kennel(timeout_s=2)
    assert kennel.look(1.9) == []
    assert kennel.look(1.9) == []
    for _ in range(5):
        kennel.turn()
        assert kennel.look(1.9) == []


def test_after_a_suspension_of_the_machine_workers_get_their_time() -> None:
    kennel = Kennel(timeout_s=2)
    kennel.turn()
    assert kennel.look(3600) == []
    kennel.turn()
    assert kennel.look(0.5) == []


def test_who_has_ended_meanwhile_is_no_error() -> None:
    kennel = Kennel(timeout_s=2)

    def gone(_pid: int, _number: int) -> None:
        raise ProcessLookupError

    kennel.dog._kill = gone
    kennel.turn()
    kennel.look(1.9)
    kennel.look(0.2)
    assert kennel.dog._condemned
    kennel.board.set(kennel.row, "owner", 0)
    kennel.look(0.1)
    assert not kennel.dog._condemned


def test_stacks_of_two_workers_are_asked_for_one_after_the_other() -> None:
    board, asked = Scoreboard(), []
    for pid in (4711, 4712):
        row = board.claim()
        assert row is not None
        board.set(row, "owner", pid)
        board.set(row, "turned", 1)
    dog = Watchdog(board, 4.0, lambda line: None, lambda pid, number: asked.append(pid))
    now = time.monotonic()
    dog.look(now)
    assert asked == [4711], "what both write at once would be mixed"
    dog.look(now + 0.25)
    assert asked == [4711, 4712]
