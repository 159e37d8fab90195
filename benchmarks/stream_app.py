"""The application of `benchmarks/pending`: clients that wait for news, pending or with a greenlet each.

`GET /events` is a stream, `GET /poll` waits for one answer, `GET /idle` answers at once, and `GET /broadcast`
tells all who wait, and says in what time. Run as a program it serves itself: `stream_app.py parked|stock`.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402 - after the patching
from gevent import pywsgi  # noqa: E402
from gevent.queue import SimpleQueue  # noqa: E402

from parked.server import KeepAliveWSGIServer  # noqa: E402

#: Clients told in one go; then the event loop has its turn.
CLIENTS_A_TURN = 256
#: Seconds that nobody reaches here.
FOR_EVER = 3600.0

_EVENT_STREAM = [("Content-Type", "text/event-stream")]
_waiting: set[Any] = set()


def _forget(pending: Any) -> None:
    _waiting.discard(pending)


def _try_again(pending: Any) -> tuple[str, list[tuple[str, str]], bytes]:
    return "204 No Content", [], b""


def _wait_here(endless: bool) -> Iterator[bytes]:
    """What a client costs without pending responses: a greenlet that waits for its queue."""
    queue: SimpleQueue[bytes] = SimpleQueue()
    _waiting.add(queue)
    try:
        yield queue.get()
        while endless:
            yield queue.get()
    finally:
        _waiting.discard(queue)


def _broadcast() -> float:
    event = b"data: %.6f\n\n" % time.time()
    began = time.perf_counter()
    for number, waiting in enumerate(list(_waiting)):
        if isinstance(waiting, SimpleQueue):
            waiting.put(event)
        elif waiting.context == "poll":
            waiting.send("200 OK", _EVENT_STREAM, event)
        else:
            waiting.write(event)
        if number % CLIENTS_A_TURN == CLIENTS_A_TURN - 1:
            gevent.sleep(0)
    return time.perf_counter() - began


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    path = environ["PATH_INFO"]
    if path in ("/events", "/poll"):
        if "parked.defer" not in environ:
            start_response("200 OK", _EVENT_STREAM)
            return _wait_here(endless=path == "/events")
        pending = environ["parked.defer"](timeout=FOR_EVER, on_timeout=_try_again, on_close=_forget)
        if path == "/events":
            pending.start("200 OK", _EVENT_STREAM, heartbeat=(FOR_EVER, b":\n\n"))
        else:
            pending.context = "poll"
        _waiting.add(pending)
        return []
    text = f"{_broadcast():.6f} {len(_waiting)}\n" if path == "/broadcast" else f"{len(_waiting)}\n"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]


if __name__ == "__main__":
    Server = {"parked": KeepAliveWSGIServer, "stock": pywsgi.WSGIServer}[sys.argv[1]]
    server = Server(("127.0.0.1", 0), application, backlog=4096, log=None, environ={"SERVER_NAME": "x"})
    server.start()
    gc.collect()
    gc.freeze()
    print(server.server_port, flush=True)
    gevent.get_hub().join()
