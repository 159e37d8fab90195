"""`python -m parked.prefork`: the command line of the server, wherever `parked-server` is not on the path."""

from parked.prefork.command import main

main()
