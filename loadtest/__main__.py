"""`./run_test`: the load test's command line."""

import sys

from parked.loadtest.command.__main__ import main

sys.exit(main())
