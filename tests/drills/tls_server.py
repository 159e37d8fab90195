"""The server's own application over TLS, for the drill `tls`. Arguments: certificate, key."""

from gevent import monkey

monkey.patch_all()

import resource  # noqa: E402 - monkey patching comes first
import sys  # noqa: E402

from app.wsgi import application  # noqa: E402
from parked.server import KeepAliveWSGIServer  # noqa: E402

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
server = KeepAliveWSGIServer(
    ("127.0.0.1", 0), application, backlog=4096, log=None, certfile=sys.argv[1], keyfile=sys.argv[2]
)
server.start()
print(f"listening on https://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
