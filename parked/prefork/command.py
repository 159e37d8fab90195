"""The command line of the server: `parked-server`, `./run_server`."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Read the settings and run the supervisor; ends the process with the exit code."""
    # Until there is a supervisor, an interrupt just ends this process: no traceback out of the imports below.
    # One that scripts/run has held back, or an image before this one, waits for the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Before gevent is imported: spawn trees cost a traceback and 1 KB for each greenlet.
    os.environ.setdefault("GEVENT_TRACK_GREENLET_TREE", "0")
    _guard_output()
    import dataclasses

    from parked.prefork import again, handover, misspelt, settings, supervisor, trial
    from parked.prefork.application import StartError
    from parked.prefork.signals import Signals, StopRequested
    from parked.shared import old_names, place
    from parked.shared.extras import lacks

    signals = None
    try:
        tried = trial.wanted(os.environ)
        # Before anything is made that would have to be removed, or that an image before this one has left.
        signals = Signals() if tried < 0 else None
        hints = [*old_names.hints(os.environ), *misspelt.hints(os.environ)] if tried < 0 else []
        for hint in hints:
            print(f"{settings.PROGRAM}: {hint}", file=sys.stderr)
        chosen = settings.load(sys.argv[1:], os.environ)
        if not chosen.app:
            if hint := lacks("without --app the demo is served, which", "falcon", "demo"):
                raise StartError(hint, settings.EXIT_APP)
            chosen = dataclasses.replace(chosen, app=place.demo())
        if chosen.check_config:
            code = trial.check(chosen)
        else:
            code = trial.run(chosen, tried) if signals is None else supervisor.run(chosen, signals)
    except StopRequested:
        code = 0
    except StartError as error:
        code = error.code
        if signals is not None and handover.is_waiting(os.environ):
            code = again.try_again(str(error), signals)
        else:
            print(f"{settings.PROGRAM}: {error}", file=sys.stderr)
    except SystemExit:  # of argparse, which has said why
        if signals is None or not handover.is_waiting(os.environ):
            raise
        code = again.try_again("its settings make no sense", signals)
    _end(code)


def _end(code: int) -> NoReturn:
    """End, also if the application has started threads that have no end: Python would wait for them."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def _guard_output() -> None:
    """From now on no line that can't be written ends or holds up anything, here and in all that is forked."""
    from parked.shared.descriptors import fill_standard
    from parked.shared.log import GuardedLog

    fill_standard()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.reconfigure(line_buffering=True)
        setattr(sys, name, GuardedLog(stream))
