"""Tasks chosen by `--tags`.

After https://github.com/locustio/locust/blob/master/docs/writing-a-locustfile.rst, "@tag decorator"
"""

from locust import FastHttpUser, constant, tag, task


class Tagged(FastHttpUser):
    wait_time = constant(0.01)
    count = 0

    def _once(self, path):
        self.client.get(path)
        self.count += 1
        if self.count == 4:
            self.stop()

    @tag("wanted")
    @task
    def wanted(self):
        self._once("/wanted")

    @tag("other")
    @task
    def other(self):
        self._once("/other")

    @task
    def untagged(self):
        self._once("/untagged")
