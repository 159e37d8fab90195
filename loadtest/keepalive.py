"""The locustfile: keep-alive connections that think for 10-90 s and ask for 1,024-10,240 characters.

    locust -f loadtest/keepalive.py --headless                      # one process, 1,000 connections
    locust -f loadtest/keepalive.py                                 # the same from the web UI
    locust -f loadtest/keepalive.py --headless --processes 22 -u 400000 -r 2500 --hold 5m --results
    results/mine

A test of your own needs no more than what is here: a subclass of KeepAliveUser with tasks.
"""

import importlib.util
import random
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, ClassVar

# Locust puts this file's folder first on the path while it loads it, not the project's, where `parked` is
# unless it is installed. The path stays as it is, since what lies in the project is not what a task means by
# `import run`: the package is loaded from its folder, once, and finds its own modules without the path.
if "parked" not in sys.modules and PathFinder.find_spec("parked") is None:
    found = PathFinder.find_spec("parked", [str(Path(__file__).resolve().parent.parent)])
    if found is not None and found.loader is not None:
        sys.modules["parked"] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules["parked"])

from locust import events, task

from parked.loadtest.terms import options, values
from parked.shared.private import masked
from parked.user import KeepAliveUser, WrongLength

#: Seconds that the test lasts if neither --run-time nor --hold says so.
RUN_TIME_S = 120


class KeepAliveConnection(KeepAliveUser):
    """Asks for a text of random length, and checks that it gets it."""

    host = "http://127.0.0.1:8000"
    allow_redirects = False  # a measurement of one server
    max_body_bytes = 1_000_000_000  # as long as --length may be
    length: ClassVar[tuple[int, int] | None] = (1024, 10240)
    #: What is asked for instead, once --path says so: method and path, arguments of `request`, right status.
    asked: ClassVar[tuple[str, str, dict[str, Any], int | None] | None] = None

    @task
    def text(self) -> None:
        if self.asked is not None:
            self.ask(*self.asked)
            return
        assert self.length is not None
        length = random.randint(*self.length)
        with self.client.get(f"/?length={length}", name="/?length=N", catch_response=True) as response:
            if response.ok and len(response.content or b"") != length:
                response.failure(WrongLength("body has not the length that was asked for"))

    def ask(self, method: str, path: str, more: dict[str, Any], status: int | None) -> None:
        with self.client.request(method, path, catch_response=True, **more) as response:
            if status is not None and response.status_code:
                if response.status_code == status:
                    response.success()
                else:
                    response.failure(f"status {response.status_code}, expected {status}")


@events.init_command_line_parser.add_listener
def _defaults(parser: Any) -> None:
    parser.set_defaults(num_users=1000, spawn_rate=200)
    for option in options.REQUEST:
        option.add_to(parser, include_in_web_ui=False)


@events.init.add_listener
def _follow_options(environment: Any, **_: Any) -> None:
    chosen = environment.parsed_options
    if chosen.run_time is None and chosen.hold is None:
        chosen.run_time = RUN_TIME_S  # no test lasts for ever

    def take_length(**_: Any) -> None:
        KeepAliveConnection.asked = _request(environment.parsed_options)
        KeepAliveConnection.length = (
            None if KeepAliveConnection.asked else values.length(environment.parsed_options.length)
        )

    events.test_start.add_listener(take_length)
    events.spawning_complete.add_listener(take_length)  # the web UI's form has it also in a run


def _request(chosen: Any) -> tuple[str, str, dict[str, Any], int | None] | None:
    """What --path and the options beside it ask for."""
    if not chosen.path:
        return None
    more: dict[str, Any] = {"name": masked(chosen.path)}
    if chosen.header:
        more["headers"] = dict(map(values.header, chosen.header))
    if chosen.body:
        more["data"] = chosen.body
    method = values.method(chosen.method) if chosen.method else "POST" if chosen.body else "GET"
    return method, chosen.path, more, int(chosen.expect_status) if chosen.expect_status else None
