"""Files as a form, and as they are.

After https://github.com/imrenagi/go-http-upload/blob/main/scripts/locust/locustfiles/locustfile.py
"""

import io

from locust import FastHttpUser, constant, task
from locust.exception import StopUser


class Uploader(FastHttpUser):
    wait_time = constant(0.01)

    @task
    def upload(self):
        files = {"file": ("notes.txt", io.BytesIO(b"words " * 1000), "text/plain")}
        self.client.post("/upload", files=files)
        self.client.post(
            "/upload", files={"file": ("a.bin", bytes(70_000))}, data={"kind": "raw"}, name="two"
        )
        self.client.post("/upload", data=b"not a form", name="refused")
        self.client.put("/raw", data=io.BytesIO(b"as it is"))
        raise StopUser
