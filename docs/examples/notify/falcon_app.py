"""A notification service: `./run_server --app docs.examples.notify.falcon_app:application --workers 1`.

With REDIS_URL=redis://127.0.0.1 it may have any number of workers, and needs `pip install redis`.
"""

from __future__ import annotations

from pathlib import Path

import falcon

from .hub import open_hub

hub = open_hub()
PAGE = Path(__file__).with_name("page.html").read_bytes()


class Page:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = falcon.MEDIA_HTML
        response.data = PAGE


class Stream:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        hub.stream(request.env["parked.defer"], request.get_header("Last-Event-ID"))


class Poll:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        hub.poll(request.env["parked.defer"], request.get_param("last"))


class Messages:
    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        hub.publish(request.bounded_stream.read(10_000).decode())
        response.status = falcon.HTTP_204


application = falcon.App()
application.add_route("/", Page())
application.add_route("/stream", Stream())
application.add_route("/poll", Poll())
application.add_route("/messages", Messages())
