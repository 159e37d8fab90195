"""`./run_server`: the server's command line, with the demo application as its default."""

import sys

from parked.prefork.command import main

sys.exit(main(demo="app.wsgi:application"))
