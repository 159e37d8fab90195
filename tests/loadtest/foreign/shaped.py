"""Load in stages by a LoadTestShape.

After https://github.com/locustio/locust/blob/master/examples/custom_shape/stages.py
"""

from locust import FastHttpUser, LoadTestShape, constant, task
from locust.exception import StopUser


class Staged(FastHttpUser):
    wait_time = constant(0.01)

    @task
    def once(self):
        self.client.get("/staged")
        raise StopUser


class Stages(LoadTestShape):
    # Long enough for the users of one to have ended when the next begins, on a busy machine too.
    stages = ((4, 2), (8, 4))

    def tick(self):
        for until_s, users in self.stages:
            if self.get_run_time() < until_s:
                return users, 10
        return None
