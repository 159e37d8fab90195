"""A drop-in for `gevent.pywsgi.WSGIServer` whose idle keep-alive connections cost next to nothing.

    from parked.server import KeepAliveWSGIServer
    KeepAliveWSGIServer(("127.0.0.1", 8000), application).serve_forever()

It needs gevent alone. The modules are what a request passes, in this order: server, accepting, handshakes,
parking, connection, dispatch, turns, request, limits, handler, response, fields, body, stream, files, tls,
lingering; for a response that is left for later, defer, waiting, pending, outgoing, head, deadlines.
"""

from parked.server import upstream
from parked.server.defer import defer
from parked.server.handler import KeepAliveWSGIHandler
from parked.server.limits import Limits
from parked.server.pending import PendingResponse
from parked.server.server import KeepAliveWSGIServer

upstream.check()

__all__ = ["KeepAliveWSGIHandler", "KeepAliveWSGIServer", "Limits", "PendingResponse", "defer"]
