"""`./run_test`, `parked-loadtest`: a run, or a word about runs that there are. Or one line on what it lacks.

What reads a run's folder needs no Locust, and so do `--help` and `--plan`.
"""

import importlib
import signal
import sys

#: As for a Locust that cannot be started.
EXIT_LACKING = 5
#: Words, and the modules of `parked.loadtest.report` that do what they say.
WORDS = ("compare", "verify", "report")


def main() -> int:
    """Run the command; returns its exit code."""
    # Until the run counts interrupts, one just ends this process, also one that scripts/run has held back: no
    # traceback out of the imports below.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    from parked.shared.descriptors import fill_standard
    from parked.shared.extras import lacks

    fill_standard()
    words = sys.argv[1:]
    if words[:1] and words[0] in WORDS:
        if hint := lacks(words[0], "hdrh", "plots"):
            return _lacking(hint)
        return int(importlib.import_module(f"parked.loadtest.report.{words[0]}").main(words[1:]))
    runs = not {"-h", "--help", "--plan", "--version", "--print-completion"} & set(words)
    if runs and (hint := lacks("the load test", "locust", "loadtest")):
        return _lacking(hint)
    from parked.loadtest.command.arguments import main as run

    return run(words)


def _lacking(hint: str) -> int:
    from parked.loadtest.terms.checkout import PROGRAM

    print(f"{PROGRAM}: {hint}", file=sys.stderr)
    return EXIT_LACKING


if __name__ == "__main__":
    sys.exit(main())
