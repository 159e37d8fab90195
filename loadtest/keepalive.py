"""The locustfile: keep-alive connections that think for 10-90 s and ask for 1,024-10,240 characters.

    locust -f loadtest/keepalive.py --headless                      # one process, 1,000 connections
    locust -f loadtest/keepalive.py                                 # the same from the web UI
    locust -f loadtest/keepalive.py --headless --processes 22 -u 400000 -r 2500 --hold 5m --results
    results/mine

A test of your own needs no more than what is here: a subclass of KeepAliveUser with tasks.
"""

import random
import sys
from pathlib import Path
from typing import Any, ClassVar

# Locust puts this folder first on the path while it loads this file, not the project's, where `parked` is
# unless it is installed. Second, since Locust takes the first entry away again when it has loaded this file.
PROJECT = Path(__file__).resolve().parent.parent
if (PROJECT / "parked").is_dir() and str(PROJECT) not in sys.path:
    sys.path.insert(1, str(PROJECT))

from locust import events, task

from parked.loadtest.terms import values
from parked.user import KeepAliveUser, WrongLength


class KeepAliveConnection(KeepAliveUser):
    """Asks for a text of random length, and checks that it gets it."""

    length: ClassVar[tuple[int, int]] = (1024, 10240)

    @task
    def text(self) -> None:
        length = random.randint(*self.length)
        with self.client.get(f"/?length={length}", name="/?length=N", catch_response=True) as response:
            if response.ok and len(response.content or b"") != length:
                response.failure(WrongLength("body has not the length that was asked for"))


@events.init.add_listener
def _follow_length(environment: Any, **_: Any) -> None:
    def take_length(**_: Any) -> None:
        KeepAliveConnection.length = values.length(environment.parsed_options.length)

    events.test_start.add_listener(take_length)
    events.spawning_complete.add_listener(take_length)  # the web UI's form has it also in a run
