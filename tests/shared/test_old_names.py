"""Variables of before 1.0.0 are named with what they are called now, by server and load test alike."""

from __future__ import annotations

import os
import sys

import pytest

from parked.shared.old_names import hints
from tests.commands import run
from tests.support import CHECKOUT

OLD = "KEEP" + "ALIVE_"
SAID = f"{OLD}THINK is not read any more: it is called PARKED_THINK now"


def test_each_old_variable_has_a_line_and_no_other_has() -> None:
    environment = {f"{OLD}WORKERS": "2", "PARKED_BIND": ":1", f"{OLD}THINK": "1", f"A_{OLD}B": ""}
    assert [line.split()[0] for line in hints(environment)] == [f"{OLD}THINK", f"{OLD}WORKERS"]
    assert hints(environment)[0] == SAID


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "parked.prefork", "--bind", "nonsense"),
        ("-m", "loadtest", "--master", "-c", "auto"),
        ("-m", "locust", "-f", "loadtest/keepalive.py", "--think", "nonsense"),
    ],
    ids=("server", "load test", "Locust"),
)
def test_it_is_said_once_at_the_start(command: tuple[str, ...]) -> None:
    environ = os.environ | {f"{OLD}THINK": "1:2"}
    done = run([sys.executable, *command], cwd=CHECKOUT, env=environ, timeout=60)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.endswith(SAID)] == [
        line for line in done.stderr.splitlines() if OLD in line
    ]
    assert done.stderr.count(SAID) == 1
    assert "Traceback" not in done.stderr
