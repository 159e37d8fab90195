"""`./run_server`: the server's command line."""

from parked.prefork.command import main

main()
