"""What people answer WebSockets with in WSGI: `--app tests.server.upgrades:application`."""

from __future__ import annotations

import sys
from typing import Any

# python-engineio prefers gevent-websocket, whose handler is another matter; see test_websocket.
sys.modules["geventwebsocket"] = None  # type: ignore[assignment]

from flask import Flask, request  # noqa: E402
from flask_sock import Sock  # noqa: E402
from flask_socketio import SocketIO, emit  # noqa: E402
from werkzeug.middleware.dispatcher import DispatcherMiddleware  # noqa: E402


def _socketio(mode: str) -> Flask:
    app = Flask(__name__)
    socketio = SocketIO(app, async_mode=mode)

    @socketio.on("echo")
    def _echo(data: Any) -> None:
        emit("echo", data)

    return app


plain = Flask(__name__)
sock = Sock(plain)


@sock.route("/echo")
def _echo(ws: Any) -> None:
    while (message := ws.receive()) != "leave":
        ws.send(message)


@plain.route("/", methods=["GET", "POST"])
def _plain() -> str:
    stream = request.environ["wsgi.input"]
    return f"{request.get_data(as_text=True)}{stream.read()!r}{list(stream)}{stream.readlines()}"


rooms = {"/threading": _socketio("threading"), "/gevent": _socketio("gevent")}
application = DispatcherMiddleware(plain, rooms)
