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


REQUEST = """
import gevent, resource, sys
from pathlib import Path
from parked.shared import out_of_memory
out_of_memory.end_process(b"no memory left\\n", 6)
pages = int(Path("/proc/self/statm").read_text().split()[5])
most = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
kept = []
def allocate(held):
    while True:
        held.append(bytearray(1 << 19))
def ask(held):
    try:
        allocate([] if held is None else held)
    except MemoryError:
        gevent.get_hub().handle_error({"PATH_INFO": "/"}, *sys.exc_info())
ask(None)
ask(None)
print("goes on", flush=True)
ask(kept)
print("goes on without memory", flush=True)
"""


def test_a_lack_of_memory_is_its_requests_error_until_it_stays_when_the_request_has_failed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REQUEST], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (6, "goes on\n")
    assert done.stderr.count("Traceback") == 2
    assert done.stderr.endswith("no memory left\n")
