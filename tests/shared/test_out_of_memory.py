"""A process without memory says so and ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import gevent
from parked.shared import out_of_memory
out_of_memory.end_process(b"no memory left\\n", 6)
def fail(): raise MemoryError
gevent.get_hub().loop.run_callback(fail)
gevent.sleep(10)
"""


@pytest.mark.parametrize(("redirect", "said"), [("", "no memory left\n"), ("2>/dev/full", "")])
def test_a_process_without_memory_ends_whether_or_not_it_can_say_so(redirect: str, said: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (6, said)


def test_an_applications_own_lack_of_memory_is_its_requests_error() -> None:
    script = SCRIPT.replace(
        "gevent.get_hub().loop.run_callback(fail)\ngevent.sleep(10)",
        "gevent.get_hub().handle_error({'PATH_INFO': '/'}, MemoryError, MemoryError(), None)",
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "no memory left" not in done.stderr
