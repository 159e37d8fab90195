"""`rest()` with checks in its block: what fails there fails the request, not the task.

After https://github.com/locustio/locust/blob/master/examples/rest.py
"""

from locust import FastHttpUser, constant, task
from locust.exception import StopUser


class Checker(FastHttpUser):
    wait_time = constant(0.01)

    @task
    def check(self):
        with self.rest("POST", "/json?a=1", name="good", json={"b": 2}) as response:
            assert response.js["args"] == {"a": ["1"]}
            assert response.js["sent"] == '{"b": 2}'
        with self.rest("GET", "/json", name="asserted") as response:
            assert response.js["args"], "no args,"
        with self.rest("GET", "/text", name="no json"):
            pass
        with self.rest("GET", "/json", name="raised") as response:
            response.js["no such key"]
        with self.rest("GET", "/status/500", name="status") as response:
            response.failure("told so")
        with self.rest_("GET", "/json") as response:
            assert "_" in response.js["args"]
        raise StopUser
