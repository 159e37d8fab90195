"""Requests of another kind told by an event, a listener of one's own, and a task that goes wrong.

After https://github.com/locustio/locust/blob/master/examples/events.py
and https://github.com/locustio/locust/blob/master/examples/manual_stats_reporting.py
"""

import time

from locust import FastHttpUser, constant, events, task
from locust.exception import StopUser

heard = []


@events.request.add_listener
def hear(request_type, name, response_time, response_length, exception, context, url=None, **_):
    heard.append((request_type, name, bool(exception), context.get("who"), bool(url)))


@events.test_stop.add_listener
def tell(environment, **_):
    mine = sorted(entry for entry in heard if entry[0] != "CONNECT")
    print("heard", mine, environment.stats.total.num_requests)


class Teller(FastHttpUser):
    wait_time = constant(0.01)
    turns = 0

    def context(self):
        return {"who": "teller"}

    @task
    def tell(self):
        self.turns += 1
        if self.turns == 3:
            raise StopUser
        self.client.get("/told", context={"extra": 1})
        with self.client.get("/status/404", name="missing", catch_response=True) as response:
            if response.status_code == 404:
                response.success()
        events.request.fire(
            request_type="WORK",
            name="by hand",
            response_time=1.0,
            response_length=2,
            exception=None,
            context={},
            start_time=time.time(),
        )
        raise ValueError("the task's own error")
