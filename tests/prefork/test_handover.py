from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from parked.prefork import handover
from parked.prefork.handover import HandoverError
from parked.prefork.listening import ListenError, inherited
from tests.commands import run
from tests.support import CHECKOUT, PATIENCE_S


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def left(listener: socket.socket, **changes: Any) -> dict[str, str]:
    fields = {
        "pid": os.getpid(),
        "listeners": [listener.fileno()],
        "metrics": None,
        "workers": 1,
        "old": [5],
        "lifelines": [],
    }
    return {"PARKED_HANDOVER": json.dumps({**fields, **changes})}


def test_what_a_server_left_is_received_once(listener: socket.socket) -> None:
    environment = left(listener, of_a_later_version=1)
    received = handover.receive(environment)
    assert received is not None
    assert received.listeners == [listener.fileno()]
    assert handover.receive(environment) is None


def test_what_was_left_to_another_process_is_not_ours(listener: socket.socket) -> None:
    assert handover.receive(left(listener, pid=os.getpid() + 1)) is None


NONSENSE: dict[str, Callable[[socket.socket], dict[str, str]]] = {
    "no JSON": lambda _: {"PARKED_HANDOVER": "{"},
    "deep": lambda _: {"PARKED_HANDOVER": "[" * 100_000},
    "no object": lambda _: {"PARKED_HANDOVER": "[1]"},
    "no process": lambda _: {"PARKED_HANDOVER": "{}"},
    "a part is missing": lambda _: {"PARKED_HANDOVER": json.dumps({"pid": os.getpid()})},
    "a text for a list": lambda one: left(one, listeners="34"),
    "a descriptor that is not open": lambda one: left(one, listeners=[9_999]),
    "a number beyond all": lambda one: left(one, listeners=[10**30]),
    "an infinity": lambda one: left(one, workers=float("inf")),
    "no workers": lambda one: left(one, workers=0),
    "process 0": lambda one: left(one, old=[0]),
    "all processes": lambda one: left(one, old=[-1]),
    "files of another form": lambda one: left(one, files=[["name"]]),
    "a folder that is none": lambda one: left(one, folder=3),
}


@pytest.mark.parametrize("environment", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_an_error_in_a_line(
    environment: Callable[[socket.socket], dict[str, str]], listener: socket.socket
) -> None:
    with pytest.raises(HandoverError, match=r"\APARKED_HANDOVER is not what a server left: [^\n]{1,200}\Z"):
        handover.receive(environment(listener))


@pytest.mark.parametrize("number", ["", "x", "-1", "1.5", "\u0661", "9" * 5000, "1000000000", "7"])
def test_listen_fds_of_nonsense_is_an_error_in_a_line(number: str) -> None:
    with pytest.raises(ListenError, match=r"\ALISTEN_FDS=[^\n]{1,200}\Z"):
        inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": number})


def test_only_a_socket_that_listens_is_adopted(listener: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as file:
        for fd in (ours.fileno(), file.fileno(), -1, 10**30):
            with pytest.raises(HandoverError, match="is not a listening socket"):
                handover.adopt(fd)
        assert ours.send(b"still open") == 10
    adopted = handover.adopt(os.dup(listener.fileno()))
    assert adopted.getsockname() == listener.getsockname()
    adopted.close()


@pytest.mark.parametrize(
    "assignment", ["LISTEN_FDS=x", "PARKED_HANDOVER={", "PARKED_TRIAL=x", "PARKED_TRIAL=99"]
)
def test_the_command_says_it_in_a_line(assignment: str) -> None:
    script = f'{assignment} LISTEN_PID=$$ exec "{sys.executable}" -m app --bind 127.0.0.1:0'
    ended = run(["sh", "-c", script], cwd=CHECKOUT, timeout=PATIENCE_S)
    assert ended.returncode in (2, 3, 64, 69, 71), ended
    assert ended.stderr.count("\n") == 1
    assert assignment.partition("=")[0] in ended.stderr
