"""`parked-loadtest`, and `python -m parked.loadtest.command`: or one line on what it lacks."""

import signal
import sys

from parked.loadtest.terms.checkout import PROGRAM
from parked.shared.extras import lacks

#: As for a Locust that cannot be started.
EXIT_LACKING = 5


def main() -> int:
    """Run the command; returns its exit code."""
    # Until the run counts interrupts, one just ends this process: no traceback out of the imports below.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hint := lacks("the load test", "locust", "loadtest"):
        print(f"{PROGRAM}: {hint}", file=sys.stderr)
        return EXIT_LACKING
    from parked.loadtest.command.arguments import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
