"""`./run_server`: the server's command line, with the demo application as its default."""

from parked.prefork.command import main

main(demo="app.wsgi:application")
