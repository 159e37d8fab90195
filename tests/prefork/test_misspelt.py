"""A variable that nobody reads is named at the start, and the server goes on."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from parked.prefork import misspelt
from tests.commands import run
from tests.support import CHECKOUT


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant() -> None:
    environment = {
        "PARKED_IDEL_TIMEOUT": "3",
        "PARKED_FAVOURITE": "",
        "PARKED_BIND": ":1",
        "IDEL_TIMEOUT": "",
    }
    assert misspelt.hints(environment) == [
        "PARKED_FAVOURITE is not read: no setting has this name",
        "PARKED_IDEL_TIMEOUT is not read: did you mean PARKED_IDLE_TIMEOUT?",
    ]


def test_variables_that_the_project_reads_elsewhere_are_known() -> None:
    folders = [CHECKOUT / name for name in ("parked", "loadtest", "app", "scripts", "deploy", "tests")]
    files = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
    files = {file for file in files if "__pycache__" not in file.parts} - {Path(__file__)}
    named = {
        name
        for file in files
        for name in re.findall(r"\bPARKED_[A-Z][A-Z_]*", file.read_text(errors="replace"))
    }
    assert {"PARKED_SOURCE", "PARKED_MASTER_KEYS", "PARKED_LENGTH", "PARKED_VENV"} <= named
    assert misspelt.hints(dict.fromkeys(named, "1")) == []


@pytest.mark.parametrize("service", ["PARKED", "PARKED_SERVER"])
def test_what_kubernetes_tells_of_a_service_of_this_name_is_not_meant_for_the_server(service: str) -> None:
    names = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR"]
    assert misspelt.hints({f"{service}_{name}": "tcp://10.0.0.1:80" for name in names}) == []


def test_the_server_says_so_in_a_line_and_goes_on() -> None:
    command = [sys.executable, "-m", "parked.prefork", "--app", "tests.apps:pid", "--check-config"]
    done = run(command, cwd=CHECKOUT, env=os.environ | {"PARKED_IDEL_TIMEOUT": "3"}, timeout=60)
    assert done.returncode == 0
    said = "run_server: PARKED_IDEL_TIMEOUT is not read: did you mean PARKED_IDLE_TIMEOUT?"
    assert done.stderr.splitlines().count(said) == 1
