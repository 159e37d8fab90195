"""The command line of the server: `parked-server`, `./run_server`."""

from __future__ import annotations

import dataclasses
import os
import sys


def main(demo: str = "parked.demo.wsgi:application") -> int:
    """Read the settings and run the supervisor; returns the exit code.

    :param demo: served if the settings name no application.
    """
    # Before gevent is imported: spawn trees cost a traceback and 1 KB for each greenlet.
    os.environ.setdefault("GEVENT_TRACK_GREENLET_TREE", "0")
    from parked.prefork import settings, supervisor
    from parked.shared import old_names
    from parked.shared.extras import lacks

    for hint in old_names.hints(os.environ):
        print(f"{settings.PROGRAM}: {hint}", file=sys.stderr)
    chosen = settings.load(sys.argv[1:], os.environ)
    if not chosen.app:
        if hint := lacks("without --app the demo is served, which", "falcon", "demo"):
            print(f"{settings.PROGRAM}: {hint}", file=sys.stderr)
            return settings.EXIT_APP
        chosen = dataclasses.replace(chosen, app=demo)
    try:
        if os.environ.get("PARKED_TRIAL"):
            supervisor.load_application(chosen.app)
            return 0
        return supervisor.Supervisor(chosen).run()
    except supervisor.StartError as error:
        print(f"{settings.PROGRAM}: {error}", file=sys.stderr)
        return error.code
