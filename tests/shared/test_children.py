"""A child ends with its parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support import eventually

CHILD = "import os, sys, time; from parked.shared.children import end_with_parent\n"


def test_a_child_ends_when_its_parent_is_killed() -> None:
    code = (
        CHILD + "parent = os.getpid()\nif os.fork():\n    time.sleep(60)\n"
        "end_with_parent(15, parent); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        eventually(lambda: not _runs(child))
    finally:
        parent.kill()
        parent.communicate()


def test_a_child_whose_parent_has_ended_before_ends_at_once() -> None:
    began = time.monotonic()
    code = CHILD + "end_with_parent(15, 1 << 22); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 1
    assert time.monotonic() - began < 30


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
