"""The master's book of hosts: who may join, what each gets, who is lost, and that they add up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from parked.loadtest.machine.monitor import MachineSample, Monitor
from parked.loadtest.master import hosts as hosts_module
from parked.loadtest.master import rows
from parked.loadtest.master.fleet import Fleet
from parked.loadtest.master.folder import Folder
from parked.loadtest.master.host_report import PROTOCOL
from parked.loadtest.master.hosts import COLUMNS, SILENT_S, Hosts, shares
from parked.loadtest.terms.sample import CUMULATIVE


class Runner:
    """What Hosts uses of Locust's master."""

    def __init__(self) -> None:
        self.sent: dict[str, dict[str, Any]] = {}
        self.take: Any = None

    def register_message(self, _name: str, take: Any) -> None:
        self.take = take

    def send_message(self, _name: str, data: dict[str, Any], client_id: str) -> None:
        self.sent[client_id] = data


class Master:
    """Hosts with agents that speak when they are told to."""

    def __init__(self, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hosts_module.atexit, "register", lambda _: None)
        self.runner = Runner()
        self.options = SimpleNamespace(
            num_users=900, spawn_rate=300, think="10:90", length="1024:10240", host="http://s", headless=True,
            expect_workers=10**6,
        )  # fmt: skip
        environment: Any = SimpleNamespace(runner=self.runner, parsed_options=self.options, host="http://s")
        self.spawned: list[Any] = []
        monkeypatch.setattr(gevent, "spawn", lambda function: self.spawned.append(function))
        self.hosts = Hosts(environment, expected, 5.0)
        self.now_s = time.monotonic()
        monkeypatch.setattr(hosts_module.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(gevent, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.now_s > 1e12:  # never: a bound for the loop
            raise AssertionError

    def gather(self) -> None:
        """Run what waits for the hosts to its end; the hosts speak meanwhile only through `speaking`."""
        self.spawned[0]()

    def say(self, id_: str, **said: Any) -> dict[str, Any]:
        facts = {
            "cpu_count": 2, "nofile_hard": 20_000, "addresses": 1, "workers": 0, "kernel": "6.1",
            "kernel_id": id_, "namespace_id": 1, "memory_total_bytes": 1 << 30,
        } | said.pop("facts", {})  # fmt: skip
        report = {
            "protocol": PROTOCOL, "name": id_, "facts": facts, "clock": None, "sample": None, "pids": [],
            "problem": "", "left": False, "sent_unix_s": 7.0,
        } | said  # fmt: skip
        self.runner.take(msg=SimpleNamespace(node_id=id_, data=report))
        return self.runner.sent[id_]


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    made = Master(2, monkeypatch)
    yield made
    made.hosts.end()


def worker_sample(host: str, connections: int, pid: int = 1, **said: Any) -> dict[str, Any]:
    return {
        "unix_time_s": time.time(), "pid": pid, "host": host, "source": "", "server": "",
        "users": connections,
        "connections": connections, "connections_min": connections, "failures_by_kind": {}, "latencies": [],
        "loop_lag_max_s": 0.0, "gc_pause_max_s": 0.0, "sends": [0] * 100, "thinks_s": [],
        "lengths": [], "open_s": [],
        **dict.fromkeys(CUMULATIVE, 0), **said,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("connections", "cores", "nofile", "wanted", "expected"),
    [
        (600, (2, 2), (20_000, 20_000), (0, 0), [(1, 300), (1, 300)]),
        (20_000, (2, 2, 2), (20_000,) * 3, (0, 0, 0), [(2, 6668), (2, 6668), (2, 6668)]),
        (400_000, (8, 8), (20_000,) * 2, (0, 0), [(12, 200_004), (12, 200_004)]),
        (90_000, (8, 4), (100_000, 100_000), (0, 0), [(8, 60_000), (4, 30_000)]),
        (600, (2, 2), (20_000, 20_000), (0, 2), [(1, 200), (2, 400)]),
        (40_000, (1, 1), (1_000, 100_000), (0, 0), [(41, 20_008), (41, 20_008)]),
    ],
)
def test_each_host_gets_its_part_by_its_cores(
    connections: int,
    cores: tuple[int, ...],
    nofile: tuple[int, ...],
    wanted: tuple[int, ...],
    expected: list[tuple[int, int]],
) -> None:
    facts = [
        {"cpu_count": c, "nofile_hard": n, "workers": w}
        for c, n, w in zip(cores, nofile, wanted, strict=True)
    ]
    got = shares(connections, facts)
    assert got == expected
    each = -(-connections // sum(workers for workers, _ in got))
    assert each <= min(nofile), "Locust gives every worker as many as every other"


def test_hosts_wait_for_each_other_and_then_hear_their_parts(master: Master) -> None:
    assert master.say("a")["state"] == "wait"
    assert master.say("a")["joined"] == 1, "one that asks again is no second one"
    answer = master.say("b")
    assert (answer["state"], answer["joined"], answer["echo_unix_s"]) == ("wait", 2, 7.0)
    master.hosts._share_out()
    go = master.say("a")
    assert (go["state"], go["workers"], go["connections"], go["host"]) == ("go", 1, 450, "http://s")
    assert master.options.expect_workers == 2


def test_one_too_many_and_one_of_another_version_are_refused(master: Master) -> None:
    master.say("a")
    refused = master.say("old", protocol=PROTOCOL + 1)
    assert refused["state"] == "refused"
    assert "version" in refused["why"]
    master.say("b")
    assert master.say("early")["state"] == "refused", "both are there, who have not heard it yet"
    master.hosts._share_out()
    late = master.say("late")
    assert late["state"] == "refused"
    assert "a, b" in late["why"]
    assert master.say("b")["state"] == "go"


def test_two_hosts_of_one_name_are_told_apart(master: Master) -> None:
    master.say("a", name="localhost")
    master.say("b", name="localhost")
    assert [host["name"] for host in master.hosts.table()] == ["localhost", "localhost-2"]


def test_hosts_that_do_not_come_are_one_line_and_the_end(
    master: Master, capsys: pytest.CaptureFixture[str]
) -> None:
    master.say("a")

    def keep_saying(seconds: float) -> None:
        master.now_s += seconds
        if not master.hosts._why:
            master.say("a")

    gevent.sleep = keep_saying  # type: ignore[assignment]  # the fixture's monkeypatch puts it back
    master.gather()
    assert "only 1 of 2 hosts joined within 5 s: a" in capsys.readouterr().out
    assert master.say("a")["state"] == "over"
    with pytest.raises(SystemExit) as ended:
        master.spawned[-1]()
    assert ended.value.code == 7


def test_a_host_that_can_not_do_its_part_ends_the_run_before_it_begins(
    master: Master, capsys: pytest.CaptureFixture[str]
) -> None:
    master.say("a")
    master.say("b")
    master.hosts._share_out()
    master.say("b", problem="http://s: refused", left=True)
    assert "host b: http://s: refused" in capsys.readouterr().out
    answer = master.say("a")
    assert (answer["state"], answer["why"]) == ("over", "host b: http://s: refused")


def running(master: Master) -> Fleet:
    """Two hosts in a run: a with 300 connections in two workers, b with 200 in one."""
    master.say("a", pids=[1, 2])
    master.say("b", pids=[1])
    master.hosts._share_out()
    master.hosts.begin()
    fleet = Fleet()
    fleet.take("a_1", worker_sample("a", 100, pid=1, requests=10))
    fleet.take("a_2", worker_sample("a", 200, pid=2, requests=20))
    fleet.take("b_1", worker_sample("b", 200, pid=1, requests=5))
    master.hosts.second(1.0, "ramp", fleet.second())
    return fleet


def test_a_silent_host_is_lost_with_what_it_carried_and_may_come_back(master: Master) -> None:
    fleet = running(master)
    assert master.hosts.news(2.0) == []
    master.now_s += SILENT_S + 5
    master.say("b", pids=[1])
    assert master.hosts.news(17.0) == ["host a ended or was cut off at 2 s with 300 connections"]
    assert master.hosts.news(18.0) == [], "told once"
    lost = {worker.name for worker in fleet.workers.values() if not master.hosts.may_be_alive(worker)}
    assert lost == {"a_1", "a_2"}
    assert all(master.hosts.has_lost(fleet.workers[name]) for name in lost)
    master.say("a", pids=[1, 2])
    assert master.hosts.news(20.0) == ["host a was heard again at 20 s"]
    assert master.hosts.may_be_alive(fleet.workers["a_1"])
    assert master.hosts.table()[0]["connections_when_lost"] == 300


def test_a_host_that_leaves_says_why(master: Master) -> None:
    running(master)
    master.say("b", problem="interrupted", left=True)
    assert master.hosts.news(9.0) == ["host b left (interrupted) at 9 s with 200 connections"]


def test_a_worker_that_its_host_does_not_know_any_more_is_not_alive(master: Master) -> None:
    fleet = running(master)
    master.say("a", pids=[2])
    assert not master.hosts.may_be_alive(fleet.workers["a_1"])
    assert master.hosts.may_be_alive(fleet.workers["a_2"])
    assert not master.hosts.has_lost(fleet.workers["a_1"])


def test_each_host_has_its_own_hold(master: Master) -> None:
    fleet = running(master)
    fleet.take("a_1", worker_sample("a", 100, pid=1, requests=50, connections_min=90))
    told = master.hosts.second(2.0, "hold", fleet.second())
    master.hosts.second(3.0, "stop", fleet.second())
    master.hosts.end()
    a, b = master.hosts.table()
    assert (a["totals"]["requests"], a["hold"]["requests"], a["connections_min_in_hold"]) == (70, 40, 290)
    assert (b["totals"]["requests"], b["hold"]["requests"], b["connections_min_in_hold"]) == (5, 0, 200)
    assert [(row["host"], row["phase"], row["connections"]) for row in told] == [
        ("a", "hold", 300),
        ("b", "hold", 200),
    ]
    assert set(COLUMNS) - set(told[0]) <= set(MachineSample.__annotations__), "a host tells these later"


def test_machines_add_up_but_a_kernel_and_a_namespace_count_once(master: Master) -> None:
    running(master)
    own = Monitor(1, ()).sample()
    sample = dict.fromkeys(vars(own), 1.0)
    place = {"kernel_id": "same", "namespace_id": 5}
    master.say("a", sample=sample)
    master.say("b", sample=sample)
    together = master.hosts.machine(own)
    assert (together.slab_bytes, together.sockstat_tcp_inuse, together.busy_cores) == (2, 2, 2)
    assert together.client_processes == own.client_processes + 2
    master.say("a", sample=sample, facts=place)
    master.say("b", sample=sample, facts=place | {"namespace_id": 6})
    together = master.hosts.machine(own)
    assert (together.slab_bytes, together.sockstat_tcp_inuse, together.kernel_cores) == (1, 2, None)
    master.say("b", sample=sample | {"retrans_segs": None}, facts=place)
    together = master.hosts.machine(own)
    assert (together.sockstat_tcp_inuse, together.retrans_segs) == (1, None)


def test_a_hosts_clock_is_added(master: Master) -> None:
    master.say("a", clock={"offset_s": -0.25, "error_s": 0.001})
    assert master.hosts.offset_s("a") == -0.25
    assert master.hosts.offset_s("unknown") == 0.0


@pytest.mark.parametrize(
    "facts",
    [
        {"cpu_count": 0},
        {"cpu_count": -1},
        {"nofile_hard": 0},
        {"workers": 10**15},
        {"workers": -1},
        {"kernel": 7},
    ],
)
def test_a_host_that_can_not_be_is_named_and_takes_no_place(
    master: Master, capsys: pytest.CaptureFixture[str], facts: dict[str, Any]
) -> None:
    master.runner.sent["liar"] = {}
    assert master.say("liar", facts=facts) == {}, "no answer"
    assert master.hosts.refused == 1
    assert "a message of liar makes no sense" in capsys.readouterr().out
    assert master.hosts.table() == []


def test_what_a_lying_host_says_of_its_machine_ends_nothing(
    master: Master, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "=cmd|' /C calc'!A0\n\x1b[2J\u202e"
    sample = {
        "client_cpu_seconds": "many",
        "busy_cores": [],
        "requests": "=1+1",
        "kernel_cores": 0.5,
    }
    for id_ in ("a", "b"):
        master.say(id_, name=name, sample=sample)
    master.hosts._share_out()
    master.hosts.begin()
    fleet = Fleet()
    fleet.take("a_1", worker_sample("a", 300))
    folder = Folder(tmp_path, COLUMNS)
    folder.write_row(dict.fromkeys(rows.COLUMNS, 0), master.hosts.second(1.0, "ramp", fleet.second()))
    machine = master.hosts.machine(Monitor(1, ()).sample())
    assert machine.busy_cores is None, "not known, instead of an error"
    master.hosts.end()
    folder.close()
    written = (tmp_path / "hosts.csv").read_text()
    shown = written + capsys.readouterr().out + str(master.hosts.table())
    assert not {"=", "\x1b", "\u202e", "|", "!"} & set(shown)
