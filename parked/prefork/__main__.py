"""`python -m parked.prefork`: the command line of the server, wherever `parked-server` is not on the path."""

import sys

from parked.prefork.command import main

sys.exit(main())
