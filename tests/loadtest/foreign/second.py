"""The second of two files that are run at once.

After https://docs.locust.io/en/stable/running-distributed.html and its `-f a.py,b.py`
"""

from locust import HttpUser, constant, task
from locust.exception import StopUser


class Second(HttpUser):
    wait_time = constant(0.01)

    @task
    def ask(self):
        self.client.get("/second")
        raise StopUser
