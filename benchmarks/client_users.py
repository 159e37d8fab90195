"""The users of one kind in a Locust without workers. Arguments: kind, URL, users, think time, length.

Until SIGINT, then it prints what has failed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys

import gevent
from locust import FastHttpUser, between, log, task
from locust.env import Environment

from benchmarks.clients import OURS, SPAWN_PER_S

kind, url = sys.argv[1:3]
users, length = int(sys.argv[3]), int(sys.argv[6])
low_s, high_s = map(float, sys.argv[4:6])

log.setup_logging("WARNING")
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
base: type[FastHttpUser] = FastHttpUser
if kind == OURS:
    # Not before: it adjusts Locust, and the stock user is to run in one as it is installed.
    from parked.user import KeepAliveUser

    base = KeepAliveUser


class Compared(base):  # type: ignore[valid-type, misc]
    host = url
    if kind == OURS:
        think_time = (low_s, high_s)
    else:
        wait_time = between(low_s, high_s)

    @task
    def text(self) -> None:
        with self.client.get(f"/?length={length}", name="/?length=N", catch_response=True) as response:
            if response.ok and len(response.content or b"") != length:
                response.failure("body has not the length that was asked for")


def end() -> None:
    if process := getattr(environment, "parked_process", None):
        process.statistics.fold()
    print(json.dumps({"failures": environment.stats.total.num_failures}), flush=True)
    os._exit(0)  # the kernel closes thousands of connections faster than Locust stops their users


environment = Environment(user_classes=[Compared])
runner = environment.create_local_runner()
runner.register_message("parked_sample", lambda environment, msg: None)
gevent.signal_handler(signal.SIGINT, end)
runner.start(users, spawn_rate=SPAWN_PER_S)
gevent.get_hub().join()
