"""A locustfile: clients that wait for an answer, and ask again when they have it (long polling).

    locust -f loadtest/long_poll.py --headless              # 1,000 connections to a server on port 8000
    ./run_test --workload longpoll                          # the same with a server, and a report

The server answers each request after 10-90 s, as --think says; the demo application does at /poll.
"""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

# Locust puts this file's folder first on the path while it loads it, not the project's, where `parked` is
# unless it is installed. The path stays as it is, since what lies in the project is not what a task means by
# `import run`: the package is loaded from its folder, once, and finds its own modules without the path.
if "parked" not in sys.modules and PathFinder.find_spec("parked") is None:
    found = PathFinder.find_spec("parked", [str(Path(__file__).resolve().parent.parent)])
    if found is not None and found.loader is not None:
        sys.modules["parked"] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules["parked"])

from parked.loadtest.plugin.built_in import follow_options
from parked.user import LongPollUser


class LongPoll(LongPollUser):
    """Always waits for an answer."""

    host = "http://127.0.0.1:8000"
    max_body_bytes = 1_000_000


follow_options(LongPoll)
