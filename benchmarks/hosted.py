"""One of the servers that have no command line that suits us.

Arguments: which, port, application; with TLS of gevent's also certificate and key.
"""

from __future__ import annotations

import sys

which, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
HOST = "127.0.0.1"
BACKLOG = 4096

if which in ("pywsgi", "parked"):  # as its documentation says
    from gevent import monkey

    monkey.patch_all()

import importlib  # noqa: E402 - monkey patching comes first
from typing import Any  # noqa: E402

module, _, attribute = name.partition(":")
application: Any = getattr(importlib.import_module(module), attribute)

tls = dict(zip(("certfile", "keyfile"), sys.argv[4:], strict=False))

if which == "pywsgi":
    from gevent.pywsgi import WSGIServer

    WSGIServer((HOST, port), application, backlog=BACKLOG, log=None, **tls).serve_forever()
elif which == "parked":
    from parked.server import KeepAliveWSGIServer

    KeepAliveWSGIServer((HOST, port), application, backlog=BACKLOG, log=None, **tls).serve_forever()
elif which == "bjoern":
    importlib.import_module("bjoern").run(application, HOST, port, listen_backlog=BACKLOG)
elif which == "fastwsgi":
    fastwsgi = importlib.import_module("fastwsgi")
    fastwsgi.server.backlog = BACKLOG
    fastwsgi.server.tcp_nodelay = 1
    fastwsgi.run(wsgi_app=application, host=HOST, port=port)
elif which == "socketify":
    socketify = importlib.import_module("socketify")
    socketify.WSGI(application).listen(socketify.AppListenOptions(port=port, host=HOST)).run()
