"""Scripts that people write for FastHttpUser, on Locust's own and on ours: requests, failures, exit code.

Each script says where its like is published; the words are our own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gevent.pywsgi import WSGIServer

from tests.commands import run
from tests.loadtest.foreign import endings
from tests.loadtest.foreign.app import application

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[2]

#: Name of a case: its files, and what else is on the command line.
CASES: dict[str, tuple[str, list[str]]] = {
    "sequences": ("sequences.py", ["-u", "2"]),
    "tagged": ("tagged.py", ["-u", "2", "--tags", "wanted"]),
    "untagged": ("tagged.py", ["-u", "2", "--exclude-tags", "wanted", "other"]),
    "shaped": ("shaped.py", []),
    "from_csv": ("from_csv.py", ["-u", "3"]),
    "login_form": ("login_form.py", ["-u", "2"]),
    "graphql": ("graphql.py", ["-u", "2"]),
    "upload": ("upload.py", ["-u", "2"]),
    "rest_checks": ("rest_checks.py", ["-u", "2"]),
    "own_events": ("own_events.py", ["-u", "2"]),
    "oauth": ("oauth.py", ["-u", "2"]),
    "hosts": ("hosts.py", ["-u", "4"]),
    "two files": ("upload.py,second.py", ["-u", "4"]),
    **{
        name: ("endings.py", ["-u", "1", name])
        for name, kind in vars(endings).items()
        if isinstance(kind, type) and issubclass(kind, endings.Ending) and not kind.abstract
    },
}
#: What ends the process before anything can be written down: its exit code has to do.
UNCOUNTED = ("Exit", "MadeBadly", "StartExits", "StopExits")


class Outcome(NamedTuple):
    """`requests`: method, name, how many, how many of them failed; `failures`: method, name, how many."""

    code: int
    requests: list[Any]
    failures: list[Any]
    said: list[str]
    log: str


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Outcome]]:
    servers = [WSGIServer(("127.0.0.1", 0), application, log=None, spawn="default") for _ in range(2)]
    for server in servers:
        server.start()
    one, other = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    keys, commands = [], []
    for case, (files, arguments) in CASES.items():
        for kind in ("stock", "ours"):
            folder = tmp_path_factory.mktemp("foreign")
            paths = ",".join(str(HERE / name) for name in files.split(",")) + ",quit_at_end.py"
            words = ["-f", paths, "--headless", "-t", "60s", "-r", "100"]  # they end by themselves
            words += [] if case == "hosts" else ["--host", one]
            if case == "MadeBadly":  # but this one, whose users are never there
                words += ["-t", "5s"]
            keys.append((case, kind))
            commands.append({"kind": kind, "arguments": [*words, *arguments], "folder": str(folder)})
    environ = os.environ | {
        "PYTHONPATH": str(CHECKOUT),
        "FOREIGN_HOST": one,
        "FOREIGN_OTHER": other,
        "GEVENT_TRACK_GREENLET_TREE": "0",
    }
    try:
        done = run(
            [sys.executable, "-P", str(HERE / "zygote.py")],
            input="".join(json.dumps(command) + "\n" for command in commands),
            env=environ,
            timeout=220,
        )
        assert done.returncode == 0, done.stderr
        codes = json.loads(done.stdout.splitlines()[-1])
        yield {
            key: read(Path(command["folder"]), code)
            for key, command, code in zip(keys, commands, codes, strict=True)
        }
    finally:
        for server in servers:
            server.stop()


def read(folder: Path, code: int) -> Outcome:
    counted = folder / "counted.json"
    told = json.loads(counted.read_text()) if counted.exists() else {"requests": [], "failures": []}
    said = [line for line in (folder / "stdout").read_text().splitlines() if line.startswith("heard")]
    return Outcome(code, told["requests"], told["failures"], said, (folder / "stderr").read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_script_does_the_same_on_ours(outcomes: dict[tuple[str, str], Outcome], case: str) -> None:
    stock, ours = outcomes[case, "stock"], outcomes[case, "ours"]
    assert stock.requests or case in UNCOUNTED, stock.log[-2000:]
    assert ours.requests == stock.requests, ours.log[-2000:]
    assert ours.failures == stock.failures
    assert ours.said == stock.said
    assert ours.code == stock.code
