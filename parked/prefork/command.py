"""`python -m app`: the command line of the server."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Read the settings and run the supervisor; returns the exit code."""
    # Before gevent is imported: spawn trees cost a traceback and 1 KB for each greenlet.
    os.environ.setdefault("GEVENT_TRACK_GREENLET_TREE", "0")
    from app import settings, supervisor

    chosen = settings.load(sys.argv[1:], os.environ)
    try:
        if os.environ.get("KEEPALIVE_TRIAL"):
            supervisor.load_application(chosen.app)
            return 0
        return supervisor.Supervisor(chosen).run()
    except supervisor.StartError as error:
        print(f"{settings.PROGRAM}: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
