"""The same service in Flask: `./run_server --app docs.examples.notify.flask_app:application --workers 1`.

Needs `pip install flask`, and with REDIS_URL set `pip install redis`.
"""

from __future__ import annotations

from pathlib import Path

import flask

from .hub import open_hub

hub = open_hub()
application = flask.Flask(__name__)
PAGE = Path(__file__).with_name("page.html")
#: What Flask wants to see of a view; the client sees what is sent to the pending response.
LATER = ""


@application.get("/")
def page() -> flask.Response:
    return flask.send_file(PAGE)


@application.get("/stream")
def stream() -> str:
    hub.stream(flask.request.environ["parked.defer"], flask.request.headers.get("Last-Event-ID"))
    return LATER


@application.get("/poll")
def poll() -> str:
    hub.poll(flask.request.environ["parked.defer"], flask.request.args.get("last"))
    return LATER


@application.post("/messages")
def messages() -> tuple[str, int]:
    hub.publish(flask.request.get_data(as_text=True)[:10_000])
    return "", 204
