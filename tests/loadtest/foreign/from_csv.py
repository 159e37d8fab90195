"""Users fed from a table, each a row of its own.

After https://github.com/SvenskaSpel/locust-plugins/blob/master/examples/csvreader_ex.py
and https://github.com/locustio/locust/blob/master/examples/testdata_from_csv.py
"""

import csv
import io

from locust import FastHttpUser, constant, task
from locust.exception import StopUser

TABLE = io.StringIO("name,colour\nada,red\ngrace,green\nbarbara,blue\n")
ROWS = list(csv.DictReader(TABLE))


class Fed(FastHttpUser):
    wait_time = constant(0)

    def on_start(self):
        self.row = ROWS.pop()

    @task
    def ask(self):
        with self.client.get(f"/colour/{self.row['colour']}", catch_response=True) as response:
            if self.row["name"] == "ada":
                response.failure("not this one")
        self.client.get("/json", params={"name": self.row["name"], "none": None}, name="/json")
        raise StopUser
