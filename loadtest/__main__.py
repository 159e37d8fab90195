"""`./run_test`: the load test's command line."""

import signal

# Until the run counts interrupts, one just ends this process: no traceback out of the imports below.
signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys

from parked.loadtest.command.arguments import main

sys.exit(main())
