"""A host that joins listens to a master, or to what says that it is one."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from locust.exception import RPCError

from parked.loadtest.command import arguments, join
from parked.loadtest.command.processes import Stop
from parked.loadtest.machine.machine import Machine
from parked.loadtest.master.host_report import PROTOCOL
from parked.loadtest.master.hosts import ANSWER
from parked.loadtest.plan.probe import Probe
from parked.loadtest.terms import variables
from parked.loadtest.terms.clock import Clock
from tests.commands import free_port

if TYPE_CHECKING:
    from pathlib import Path

GO = {
    "protocol": PROTOCOL, "state": "go", "echo_unix_s": None, "master_unix_s": 5.0, "joined": 1,
    "expected": 1,
    "workers": 2, "connections": 10, "host": "http://127.0.0.1:9", "think": "1:2", "length": "5",
    "spawn_per_s": 1.0,
}  # fmt: skip


def agent_that_hears(*messages: Any) -> Any:
    """One that has listened to these, and whose connection is broken then."""
    left = iter([*messages, RPCError("broken")])

    def recv() -> Any:
        message = next(left)
        if isinstance(message, Exception):
            raise message
        return SimpleNamespace(type=ANSWER, data=message)

    agent: Any = join._Agent.__new__(join._Agent)
    agent._client, agent._clock, agent._answer = SimpleNamespace(recv=recv), Clock(), {}
    with pytest.raises(RPCError):
        agent._listen()
    return agent


def test_what_is_no_answer_of_a_master_is_passed_over() -> None:
    odd = [
        *(None, 7, [], {}, {"protocol": PROTOCOL}, ValueError("bytes"), GO | {"protocol": PROTOCOL + 1}),
        *(GO | {name: ["odd"]} for name in GO),
        {name: value for name, value in GO.items() if name != "workers"},
    ]
    assert agent_that_hears(*odd)._answer == {}
    assert agent_that_hears(*odd, GO, *odd)._answer == GO


@pytest.mark.parametrize("asked", [{"host": ","}, {"think": "for long"}, {"length": "0"}])
def test_a_part_that_makes_no_sense_is_a_line(asked: dict[str, str]) -> None:
    agent = agent_that_hears(GO | asked)
    agent._joining = None
    with pytest.raises(Stop, match="the master asks for what makes no sense"):
        agent._prepare()


def test_a_host_that_joins_says_itself_what_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.py"
    file.touch()
    asked: list[join.Joining] = []
    monkeypatch.setattr(join, "join", lambda joining: asked.append(joining) or 0)
    monkeypatch.setenv(variables.SOURCE, "")  # it is set for the processes that are started, and undone here
    monkeypatch.setenv("PARKED_THINK", "1:2")  # whoever keeps this set leads some runs and joins others
    own = ["--processes", "2", "-f", str(file), "--join-timeout", "3s", "--insecure", "--force"]
    own += ["--source-addresses", "127.0.0.1"]
    assert arguments.main(["--join", "a:24002", *own]) == 0
    assert os.environ[variables.SOURCE] == "127.0.0.1"
    (it,) = asked
    assert (it.workers, str(it.locustfile), it.patience_s) == (2, str(file), 3)
    assert it.insecure
    assert it.force


@pytest.mark.parametrize("master", ["127.0.0.1", "::1"])
def test_a_master_that_is_not_there_is_a_line(master: str, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    asked = join.Joining(master, port, 0.2, 0, None, False, False, Machine.read())
    assert join.join(asked) == variables.EXIT_HOSTS
    assert f"no master answered at {master}:{port}" in capsys.readouterr().out


@pytest.mark.parametrize("master", ["a..b", "a" * 64])
def test_a_name_that_no_master_can_have_is_a_line(master: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = join.Joining(master, 5557, 0.2, 0, None, False, False, Machine.read())
    assert join.join(asked) == join.HOST
    assert f"{master} does not resolve: " in capsys.readouterr().out


@pytest.mark.parametrize("insecure", [False, True])
def test_a_certificate_need_not_be_valid_for_a_host_that_joins_if_it_says_so(
    monkeypatch: pytest.MonkeyPatch, insecure: bool
) -> None:
    verified: list[bool] = []

    def probed(_url: str, verify: bool = True) -> Probe:
        verified.append(verify)
        return Probe("bad_certificate", "seen")

    monkeypatch.setattr(join, "probe_host", probed)
    agent = agent_that_hears(GO | {"host": "https://127.0.0.1:9"})
    agent._joining = SimpleNamespace(insecure=insecure)
    with pytest.raises(Stop, match="seen"):
        agent._prepare()
    assert verified == [not insecure]
