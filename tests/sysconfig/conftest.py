"""A machine made of files, a network namespace, whose settings are its own, and the scripts' shells."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sysconfig.fake_root import Machine

SHELLS = [
    pytest.param(command, marks=pytest.mark.skipif(not shutil.which(command[0]), reason=f"no {command[0]}"))
    for command in (("dash",), ("busybox", "sh"), ("bash", "--posix"))
]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    command: tuple[str, ...] = request.param
    return command


@pytest.fixture
def namespace() -> Iterator[str]:
    """The name of a new network namespace; skips where none can be made."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("a network namespace needs root and the ip command")
    name = f"keep-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespace here: {made.stderr.strip()}")
    try:
        usable = subprocess.run(
            ["ip", "netns", "exec", name, "true"], capture_output=True, text=True, check=False
        )
        if usable.returncode:
            pytest.skip(f"a network namespace can't be entered here: {usable.stderr.strip()}")
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
