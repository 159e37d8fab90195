"""Queries to one address, told apart by their names; an error comes with status 200.

After https://github.com/locustio/locust/blob/master/examples/patterns/graphql_api.py
"""

from locust import FastHttpUser, constant, task
from locust.exception import StopUser


class Asker(FastHttpUser):
    wait_time = constant(0.01)

    def ask(self, name, query, **variables):
        sent = {"query": query, "variables": variables}
        with self.client.post(
            "/graphql", json=sent, name=f"/graphql {name}", catch_response=True
        ) as response:
            if errors := response.json().get("errors"):
                response.failure(errors[0]["message"])
                return None
            return response.json()["data"]

    @task
    def user(self):
        assert self.ask("user", "query($id: Int) { user(id: $id) { name } }", id=7)["user"]["id"] == 7
        self.ask("wrong", "{ nothing }")
        raise StopUser
