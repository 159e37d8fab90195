"""The dashboard and the example configuration fit what server and load test export; that a real Prometheus
answers every query is what tests/drills/prometheus shows."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from parked.loadtest.client.heard import HeardByProcess
from parked.loadtest.plugin import metrics
from parked.prefork.metrics import WorkersCollector
from parked.prefork.scoreboard import STATUSES, Scoreboard
from tests.loadtest.plugin.test_metrics import run_of, sample, scraped

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "parked.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DOCUMENTED = (DEPLOY.parent / "docs" / "monitoring.md").read_text()


def exported() -> set[str]:
    """Names of all series of both sides."""
    served = metrics.Metrics()
    run = run_of(sample(1, [1.0]) | {"heard": HeardByProcess().sample() | {"streams": 1, "streams_min": 1}})
    run.row |= {"streams": 1, "delivery_max_ms": 1.0}
    served.take(run)
    scoreboard = Scoreboard()
    os.close(scoreboard.fd)  # its memory stays mapped
    row = scoreboard.claim()
    assert row is not None
    for counter in ("ready", *(f"status_{status}" for status in STATUSES)):
        scoreboard.set(row, counter, 1)
    registry = CollectorRegistry()
    registry.register(WorkersCollector(scoreboard))  # type: ignore[arg-type]
    server = re.findall(r"^(\w+)[{ ]", generate_latest(registry).decode(), re.MULTILINE)
    return {name for name, _ in scraped(served)} | set(server)


def test_every_query_asks_for_series_that_there_are() -> None:
    names = exported()
    for panel in PANELS:
        for target in panel["targets"]:
            asked = set(re.findall(r"\bparked_(?:loadtest_)?\w+", target["expr"]))
            assert asked, panel["title"]
            assert asked <= names, panel["title"]


def test_every_query_chooses_its_job_by_a_variable() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for panel in PANELS:
        for target in (panel, *panel["targets"]):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            selectors = re.findall(r"\bparked_(loadtest_)?\w+\{job=\"\$(\w+)\"", target["expr"])
            jobs = {"loadtest_": "loadtest", "": "server"}
            assert all(jobs[side] == job for side, job in selectors)
            assert len(selectors) == len(re.findall(r"\bparked_(?:loadtest_)?\w+", target["expr"]))


def test_panels_have_units_and_titles_and_do_not_overlap() -> None:
    assert DASHBOARD["schemaVersion"] >= 36  # Grafana 9: a datasource is an object with type and uid
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in PANELS:
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert defaults["unit"]
        if panel["type"] == "timeseries" and defaults["unit"] == "short":
            assert defaults["custom"]["axisLabel"], f"{panel['title']}: what is counted?"
    for one, other in itertools.combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])


def test_every_series_is_documented_and_nothing_else() -> None:
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    cells = [line.split(" | ")[0] for line in DOCUMENTED.splitlines() if line.startswith("| `")]
    documented = {name for cell in cells for name in re.findall(r"`(parked_(?:loadtest_)?\w+)", cell)}
    assert documented == names


def test_the_example_scrapes_what_the_documentation_serves() -> None:
    configuration = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    for address in re.findall(r'targets: \["([^"]+)"]', configuration):
        assert f"metrics {address}" in DOCUMENTED
