"""When a worker fetches its events at intervals instead of as they come: the server's and the load test's."""

from __future__ import annotations

from pathlib import Path

import pytest

from parked.shared.moderation import WINDOWS_S, Moderation


class Machine:
    """What a process reads of a machine on which it gets a core 300 times a second."""

    def __init__(self, folder: Path) -> None:
        self.schedstat, self.stat = folder / "schedstat", folder / "stat"
        self.now = 0.0
        self._waited_ns, self._turns, self._idle, self._busy = 0, 1, 0, 0
        self.run(wait_s=0.0, idle=1.0)

    def run(self, wait_s: float, idle: float, seconds: float = 1.0) -> None:
        """A while in which the process waited so long each time, and cores were idle for that share."""
        self.now += seconds
        self._waited_ns += int(300 * wait_s * 1e9)
        self._turns += 300
        self._idle += round(1000 * idle)
        self._busy += 1000 - round(1000 * idle)
        self.schedstat.write_text(f"123456 {self._waited_ns} {self._turns}\n")
        self.stat.write_text(f"cpu  {self._busy} 0 0 {self._idle} 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")

    def clock(self) -> float:
        return self.now


class Worker:
    """Looks at a machine, and remembers the windows."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._moderation = Moderation(machine.schedstat, machine.stat, machine.clock)
        self.window(0.0)

    def window(
        self,
        wait_s: float,
        idle: float = 0.03,
        events_per_s: float = 400,
        connections: int = 18_000,
        seconds: float = 1.0,
        unasked: int = 0,
        pending: int = 0,
    ) -> float:
        self._machine.run(wait_s, idle, seconds)
        events = round(events_per_s * seconds)
        return float(self._moderation.look(events, connections, unasked, pending))

    def new(self, new: int, ended: int = 0, **seen: float) -> float:
        """The interval for new connections after a second like that."""
        self.window(0.001, **{"idle": 0.3, **seen})  # type: ignore[arg-type]
        return float(self._moderation.look_at_new(new, ended))


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(Machine(tmp_path))


def test_fetches_at_once_where_there_are_cores_to_spare(worker: Worker) -> None:
    assert [worker.window(0.001) for _ in range(5)] == [0.0] * 5


def test_a_core_of_its_own_is_no_shortage_however_busy_all_are(worker: Worker) -> None:
    assert [worker.window(0.0001, idle=0.0) for _ in range(9)] == [0.0] * 9


def test_opens_a_window_when_waits_are_longer_than_it_and_keeps_it(worker: Worker) -> None:
    assert worker.window(0.03) == WINDOWS_S[1]
    assert [worker.window(0.001) for _ in range(5)] == [WINDOWS_S[1]] * 5


def test_opens_one_when_nothing_is_idle_for_long(worker: Worker) -> None:
    assert [worker.window(0.001, idle=0.0) for _ in range(2)] == [0.0, 0.0]
    assert worker.window(0.001, idle=0.02) == 0.0  # that was a moment
    assert [worker.window(0.001, idle=0.0) for _ in range(4)] == [0.0, 0.0, WINDOWS_S[1], WINDOWS_S[1]]


@pytest.mark.parametrize(("wait_s", "idle", "looks"), [(1.0, 0.03, 1), (0.001, 0.0, 3)])
def test_widens_it_while_waits_are_longer_or_nothing_is_idle(
    worker: Worker, wait_s: float, idle: float, looks: int
) -> None:
    windows = [worker.window(wait_s, idle) for _ in range(6 * looks)][looks - 1 :: looks]
    assert windows == [*WINDOWS_S[1:], *[WINDOWS_S[-1]] * 3]


def test_narrows_it_step_by_step_when_cores_are_free_again(worker: Worker) -> None:
    for _ in range(4):
        worker.window(1.0)
    assert worker.window(0.0001, idle=0.1) == WINDOWS_S[-1]  # as many as are needed, none to spare
    assert [worker.window(0.0001, idle=0.3) for _ in range(4)] == [*reversed(WINDOWS_S[:-1]), 0.0]


def test_takes_a_window_in_which_several_events_come(worker: Worker) -> None:
    assert worker.window(0.03, events_per_s=40) == WINDOWS_S[2]
    assert worker.window(0.001, events_per_s=5) == 0.0  # none would save a wake-up


def test_waits_of_before_are_forgotten_while_too_few_events_come_for_a_window(worker: Worker) -> None:
    assert [worker.window(1.0, events_per_s=5) for _ in range(5)] == [0.0] * 5
    assert worker.window(0.03) == 0.0, "of this second nothing is known by itself"
    assert worker.window(0.03) == WINDOWS_S[1]


def test_takes_none_that_clients_in_a_loop_would_feel(worker: Worker) -> None:
    for _ in range(4):
        worker.window(1.0)
    assert worker.window(0.001, events_per_s=400, connections=1_600) == WINDOWS_S[1]  # asked every 4 s
    assert worker.window(0.001, events_per_s=20_000, connections=100) == 0.0


def test_takes_none_that_those_would_feel_who_ask_beside_many_who_wait(worker: Worker) -> None:
    for _ in range(4):
        worker.window(1.0)
    # Connections that ask every 2 s, beside polls: they would wait for a twentieth of that.
    assert worker.window(0.001, events_per_s=300, connections=13_700, unasked=133, pending=13_367) == 0.0
    # One of them alone is no reason.
    assert worker.window(0.001, events_per_s=360, unasked=355, pending=17_999) == WINDOWS_S[3]


def test_new_connections_are_taken_at_intervals_while_cores_are_busy(worker: Worker) -> None:
    assert worker.new(201) == WINDOWS_S[1]
    assert worker.new(190) == WINDOWS_S[2], "many in each"
    assert worker.new(190 * 2, seconds=2.0) == WINDOWS_S[2]
    assert worker.new(30) == WINDOWS_S[3], "more than one at least"
    assert worker.new(20) == 0.0, "one saves no wake-up"
    assert worker.new(0) == 0.0
    assert worker.new(201, idle=0.6) == 0.0, "there are cores to spare"
    assert worker.new(201) == WINDOWS_S[1]
    assert worker.new(201, events_per_s=5) == 0.0, "nobody has looked at the cores"
    assert worker.new(201) == 0.0, "of this second nothing is known by itself"
    assert worker.new(201) == WINDOWS_S[1]


def test_new_connections_do_not_wait_where_others_end(worker: Worker) -> None:
    assert worker.new(201, ended=20) == WINDOWS_S[1]
    assert worker.new(201, ended=21) == 0.0, "they may have come for one answer"


def test_knows_how_long_the_events_took(worker: Worker) -> None:
    assert worker.window(0.03, events_per_s=70, seconds=0.5) == WINDOWS_S[1]
    assert worker.window(0.001, events_per_s=60, seconds=1.5) == WINDOWS_S[2]


def test_does_without_a_kernel_that_counts(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    assert Moderation(tmp_path / "none").look(400, 10_000) == 0.0
    odd.write_text("no numbers\n")
    assert Moderation(odd).look(400, 10_000) == 0.0


def test_does_without_what_cannot_be_opened_for_want_of_descriptors(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert Moderation(machine.schedstat, tmp_path / "none", machine.clock).look(400, 10_000) == 0.0
