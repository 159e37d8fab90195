"""A shopping trip: tasks in order, a nested set within, and out of it again.

After https://github.com/locustio/locust/blob/master/examples/nested_inline_tasksets.py
and https://github.com/locustio/locust/blob/master/examples/browse_docs_sequence_test.py
"""

from locust import FastHttpUser, SequentialTaskSet, TaskSet, constant, task
from locust.exception import StopUser


class Trip(SequentialTaskSet):
    @task
    def enter(self):
        self.client.get("/shop")

    @task
    class Shelf(TaskSet):
        wait_time = constant(0.01)

        def on_start(self):
            self.seen = 0
            self.client.get("/shelf")

        @task
        def look(self):
            self.seen += 1
            self.client.get(f"/item/{self.seen}", name="/item/[n]")
            if self.seen == 3:
                self.interrupt()

        def on_stop(self):
            self.client.get("/shelf/left")

    @task
    def pay(self):
        self.client.post("/pay", {"amount": 3})
        raise StopUser


class Shopper(FastHttpUser):
    tasks = {Trip: 1}  # noqa: RUF012
    wait_time = constant(0.01)

    def on_stop(self):
        self.client.get("/bye")
