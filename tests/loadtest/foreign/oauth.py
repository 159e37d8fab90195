"""A token that wears out and is fetched again.

After https://github.com/locustio/locust/blob/master/examples/patterns/rest_api_auth_bearer.py
"""

from locust import FastHttpUser, constant, task


class Bearer(FastHttpUser):
    wait_time = constant(0.01)
    token = ""
    asked = 0

    def refresh(self):
        grant = {"grant_type": "refresh_token", "refresh_token": "r"}
        self.token = self.client.post("/token", data=grant, auth=("app", "secret")).json()["access_token"]

    @task
    def guarded(self):
        headers = {"Authorization": f"Bearer {self.token}"}
        with self.client.get("/guarded", headers=headers, catch_response=True) as response:
            if response.status_code == 401:
                response.failure("token worn out")
                self.refresh()
        self.asked += 1
        if self.asked == 6:
            self.stop()
