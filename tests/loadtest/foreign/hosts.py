"""Several servers: one of each class, and whole URLs between them.

After https://github.com/locustio/locust/blob/master/examples/multiple_hosts.py
"""

import os

from locust import FastHttpUser, constant, task
from locust.exception import StopUser

OTHER = os.environ["FOREIGN_OTHER"]


class Both(FastHttpUser):
    host = os.environ["FOREIGN_HOST"]
    wait_time = constant(0.01)

    @task
    def ask(self):
        self.client.get("/one")
        self.client.get(f"{OTHER}/two", name="two")
        self.client.get(f"{OTHER}/status/503", name="two failing")
        raise StopUser


class Elsewhere(FastHttpUser):
    host = OTHER
    wait_time = constant(0.01)

    @task
    def ask(self):
        self.client.head("/three")
        self.client.delete("/three")
        raise StopUser
