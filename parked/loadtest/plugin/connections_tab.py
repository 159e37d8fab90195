"""The *Connections* tab of Locust's web UI: connections of each worker, and two live charts.

By Locust's own extension points: a Blueprint for the page and its data, `extended_tabs` and
`extended_csv_files` for the tab and the download, `auth_required_if_enabled` for `--web-login`. All that
Locust puts into such a tab is a table, every other second; so a script added to its page puts ours there, as
a frame. The page also stands alone, at `connections/`.

Below `--web-base-path`, all of it GET:

    connections/       the page, which needs nothing but its data
    connections/data   what changed, as JSON; the page asks once a second (:meth:`ConnectionsTab.data`)
    connections/csv    the charts' seconds as a table
    connections/tab.js puts the page into the tab
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import time
from collections import deque
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, jsonify, request

from parked.loadtest.master.fleet import SILENT_S
from parked.loadtest.plugin import upstream
from parked.loadtest.terms import values

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.event import Events
    from locust.web import WebUI

    from parked.loadtest.master.recorder import Recorder
    from parked.loadtest.master.run import Run

logger = logging.getLogger(__name__)

_HERE = Path(__file__).resolve().parent
_REPORT = _HERE.parent / "report"  # the page of a run has the same looks
#: Seconds of a run that the charts keep: 120 KB of JSON when the page is opened, and more points than pixels.
HISTORY_S = 3600
#: A second of the charts. Connections and requests/s.
COLUMNS = ("time_s", "wanted", "established", "offered_per_s", "answered_per_s")
#: What is told of users that wait, and the columns of a row that have it.
HEARD = {name: f"{name}_total" for name in ("events", "events_lost", "events_repeated")} | {
    name: name for name in ("streams", "delivery_p50_ms", "delivery_p99_ms")
}
TAB = {"title": "Connections", "key": "connections"}
DOWNLOAD = {"title": "Download connections CSV (a row per second)", "href": "./connections/csv"}
#: Fields of Locust's form that are ours, and what they may say.
FIELDS = {"think": values.think_time, "length": values.length}


def attach(events: Events) -> None:
    """Let every Locust process that shows a web UI have the tab."""

    def on_init(environment: Environment, **_: Any) -> None:
        if environment.web_ui is not None and hasattr(environment, "parked_recorder"):
            if changed := upstream.changed(upstream.TAB):
                logger.warning("no Connections tab: %s changed in this Locust", " and ".join(changed))
            else:
                ConnectionsTab(environment, environment.web_ui)

    events.init.add_listener(on_init)


class History:
    """The last seconds of a run, numbered from 0."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[float | None, ...]] = deque(maxlen=HISTORY_S)
        self._count = 0
        self._counted = (0.0, 0.0)

    def add(self, row: dict[str, Any], offered_per_s: float | None) -> None:
        """A row of samples.csv. Rates are over the time in which the workers counted, not between rows."""
        requests, at_s = row["requests_total"], row["counted_unix_s"]
        requests_before, before_s = self._counted
        self._counted = requests, at_s
        known = 0 < before_s < at_s
        answered_per_s = round((requests - requests_before) / (at_s - before_s), 1) if known else None
        offered_per_s = None if offered_per_s is None else round(offered_per_s, 1)
        connections = row["connections_wanted"], row["connections"]
        self._seconds.append((row["time_s"], *connections, offered_per_s, answered_per_s))
        self._count += 1

    @property
    def last(self) -> tuple[float | None, ...]:
        return self._seconds[-1] if self._seconds else (None,) * len(COLUMNS)

    def since(self, number: int) -> tuple[int, list[tuple[float | None, ...]]]:
        """The seconds from this number on that are still known, and the number of the first of them."""
        first = self._count - len(self._seconds)
        begin = max(first, number) if number <= self._count else first
        return begin, list(self._seconds)[begin - first :]


class ConnectionsTab:
    """Answers what the page asks. A run is known by the time it began."""

    def __init__(self, environment: Environment, web_ui: WebUI) -> None:
        self._environment = environment
        self._web_ui = web_ui
        self._run: Run | None = None
        self._history = History()
        recorder: Recorder = environment.parked_recorder  # type: ignore[attr-defined]
        recorder.seconds.add_listener(self._second)
        app = web_ui.app
        assert app is not None
        base = (app.blueprints["locust"].url_prefix or "").rstrip("/")
        pages = Blueprint("parked_connections", __name__, url_prefix=f"{base}/connections")
        for path, view in (
            ("/", self.page),
            ("/data", self.data),
            ("/csv", self.download),
            ("/tab.js", self.script),
        ):
            pages.add_url_rule(path, view.__name__, web_ui.auth_required_if_enabled(view))
        app.before_request(self._before)
        app.after_request(self._after)
        app.register_blueprint(pages)

    def _second(self, run: Run, **_: Any) -> None:
        if not run.row:
            return
        if run is not self._run:
            self._run, self._history = run, History()
        self._history.add(run.row, run.offered_per_s)

    def _before(self) -> Response | None:
        if request.endpoint == "locust.index":
            # Now, not once: a locustfile's own `template_args` may have replaced ours.
            for name, ours in (("extended_tabs", TAB), ("extended_csv_files", DOWNLOAD)):
                there = self._web_ui.template_args.get(name) or []
                if ours not in there:
                    self._web_ui.template_args[name] = [*there, ours]
        elif request.endpoint == "locust.swarm":
            # Locust takes any text; a wrong one would end up as a traceback in every worker's log.
            for name, parse in FIELDS.items():
                try:
                    if (text := request.form.get(name)) is not None:
                        parse(text)
                except argparse.ArgumentTypeError as error:
                    return jsonify({"success": False, "message": f"{name}: {error}"})
        return None

    def _after(self, response: Response) -> Response:
        if request.endpoint == "locust.index" and response.mimetype == "text/html":
            script = '<script src="./connections/tab.js"></script></body>'
            response.set_data(response.get_data(as_text=True).replace("</body>", script))
        return response

    def page(self) -> Response:
        """The page with styles and scripts in it; its policy lets it ask its own server and nothing else."""
        text = Template((_HERE / "assets" / "connections.html").read_text()).substitute(
            style=_read("vendor/uplot/uPlot.min.css", _REPORT)
            + _read("assets/page.css", _REPORT)
            + _read("assets/connections.css"),
            library=_read("vendor/uplot/uPlot.iife.min.js", _REPORT) + _read("assets/axis.js", _REPORT),
            script=_read("assets/connections.js"),
        )
        return Response(text, mimetype="text/html")

    def script(self) -> Response:
        return Response(_read("assets/connections_tab.js"), mimetype="text/javascript")

    def data(self) -> Response:
        """What the page shows, as JSON.

        Asked with `run` and `after`, the run and the number of its seconds that the page has already: only
        later ones are sent. About 150 bytes per worker, and 40 a second of the charts.

            run        Unix time at which the run began; 0 before the first
            streams, events, events_lost, events_repeated, delivery_p50_ms, delivery_p99_ms
                       null where no user waits for what is sent; delivery of the last second
            state      Locust's: ready, spawning, running, stopping, stopped, ...
            phase      ramp, hold, stop; "" before the first second
            time_s     seconds since the run began
            wanted     connections that the run is to have (Locust's number of users)
            established, offered_per_s, answered_per_s, reconnects, closed_by_peer, requests, failures
                       of all workers together; rates of the last second, the others since the run began
            workers    for each: name, source (its local addresses), wanted (its users now), established,
                       reconnects, closed_by_peer, requests, failures; loop_lag_ms and loop_lag_max_ms, by
                       which its event loop was late at most in its last second and in the run; state "",
                       "silent" (no sample for 3 s) or "lost"
            first      number of the first second in `history`
            history    lists by name: time_s, wanted, established, offered_per_s, answered_per_s
        """
        run, history = self._run, self._history
        began = run.started_unix_s if run is not None else 0.0
        asked = request.args.get("run", 0.0, float), request.args.get("after", 0, int)
        first, seconds = history.since(asked[1] if asked[0] == began else 0)
        workers = self._workers()
        runner = self._environment.runner
        summed = ("established", "reconnects", "closed_by_peer", "requests", "failures")
        told = {
            "run": began,
            "state": runner.state if runner is not None else "",
            "phase": run.row["phase"] if run is not None else "",
            **dict(zip(COLUMNS, history.last, strict=True)),
            "wanted": runner.target_user_count if runner is not None else 0,
            **{name: run.row.get(column) if run is not None else None for name, column in HEARD.items()},
            **{name: sum(worker[name] for worker in workers) for name in summed},
            "workers": workers,
            "first": first,
            "history": {name: [second[place] for second in seconds] for place, name in enumerate(COLUMNS)},
        }
        # Not jsonify(): Locust sets app.debug, with which it indents, at twice the size.
        return Response(json.dumps(told, separators=(",", ":")), mimetype="application/json")

    def _workers(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [
            {
                "name": worker.name,
                "source": worker.sample["source"],
                "wanted": 0 if worker.lost else worker.sample["users"],
                "established": 0 if worker.lost else worker.sample["connections"],
                "reconnects": worker.sample["reconnects"],
                "closed_by_peer": worker.sample["closed_by_peer"],
                "requests": worker.sample["requests"],
                "failures": worker.sample["failures"],
                "loop_lag_ms": round(worker.sample["loop_lag_max_s"] * 1000, 1),
                "loop_lag_max_ms": round(worker.loop_lag_max_s * 1000, 1),
                "state": "lost" if worker.lost else "silent" if now - worker.heard > SILENT_S else "",
            }
            for worker in (self._run.fleet.workers.values() if self._run is not None else ())
        ]

    def download(self) -> Response:
        """The seconds that the charts show."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        writer.writerows(self._history.since(0)[1])
        headers = {"Content-Disposition": "attachment;filename=connections.csv"}
        return Response(text.getvalue(), mimetype="text/csv", headers=headers)


def _read(name: str, folder: Path = _HERE) -> str:
    return (folder / name).read_text()
