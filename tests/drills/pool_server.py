"""Two servers with one pool, into which the application spawns jobs too: for the drill `server-faults`."""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402 - monkey patching comes first
import resource  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from parked.server import KeepAliveWSGIServer  # noqa: E402

#: Requests and jobs at once.
PLACES = 20
#: Seconds that a job takes.
JOB_S = 0.5

pool = Pool(PLACES)


def application(environ, start_response):  # type: ignore[no-untyped-def]
    """/jobs fills the pool."""
    if environ["PATH_INFO"] == "/jobs":
        for _ in range(pool.free_count()):
            pool.spawn(time.sleep, JOB_S)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
servers = [
    KeepAliveWSGIServer(("127.0.0.1", 0), application, backlog=4096, log=None, spawn=pool) for _ in range(2)
]
for server in servers:
    server.start()
ports = [server.server_port for server in servers]
print(f"listening on http://127.0.0.1:{ports[0]} and {ports[1]}", flush=True)
gevent.wait()
