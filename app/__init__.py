"""The application that the load test talks to, and what `./run_server` starts."""
