"""A load test of your own: customers look at orders, and now and then place one (orders_app.py)."""

import random

from locust import task
from locust.exception import StopUser

from parked.user import KeepAliveUser


class Customer(KeepAliveUser):
    host = "http://127.0.0.1:8000"
    think_time = (5.0, 15.0)

    def on_start(self) -> None:
        customer = f"customer-{random.randrange(1_000_000)}"
        response = self.client.post("/session", json={"customer": customer}, name="sign in")
        if not response.ok:
            raise StopUser
        self.headers = {"Authorization": f"Bearer {response.json()['token']}"}

    @task(9)
    def look(self) -> None:
        number = random.randint(1, 1100)
        with self.client.get(
            f"/orders/{number}", headers=self.headers, name="/orders/N", catch_response=True
        ) as response:
            if response.status_code == 404 and number > 1000:
                response.success()  # it does not exist, and the server says so
            elif response.ok and response.json()["number"] != number:
                response.failure("another order than the one asked for")

    @task(1)
    def place(self) -> None:
        order = {
            "article": random.choice(("coffee", "sugar", "tea", "vanilla")),
            "quantity": random.randint(1, 5),
        }
        with self.client.post("/orders", json=order, headers=self.headers, catch_response=True) as response:
            if response.status_code == 409:
                response.failure("sold out")
            elif response.ok and response.json()["quantity"] != order["quantity"]:
                response.failure("another quantity than the one ordered")
