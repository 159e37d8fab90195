"""A form with a token against forgery, a cookie, and a redirection to the page behind.

After https://github.com/locustio/locust/blob/master/examples/csrf_form_authentication.py
"""

import re

from locust import FastHttpUser, constant, task
from locust.exception import StopUser


class Member(FastHttpUser):
    wait_time = constant(0.01)

    def on_start(self):
        form = self.client.get("/login").text
        token = re.search('value="([^"]+)"', form)[1]
        self.client.post("/login", {"name": "ada", "csrf": token})

    @task
    def home(self):
        with self.client.get("/home", catch_response=True) as response:
            if response.text != "ada":
                response.failure("somebody else")
        self.client.post("/login", {"name": "eve", "csrf": "wrong"}, name="forged")
        self.client.post("/login", {"name": "ada", "csrf": "t0k3n"}, name="unfollowed", allow_redirects=False)
        raise StopUser
