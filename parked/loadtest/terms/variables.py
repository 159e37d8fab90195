"""What the processes of a run tell each other beside options: environment variables, an exit code."""

from __future__ import annotations

#: By these run_test tells Locust's processes that it makes the report itself, and the user's command line.
REPORT = "PARKED_REPORT"
COMMAND = "PARKED_COMMAND"
#: Of a run on one host: public and secret key of its master (`plugin.strangers`).
KEYS = "PARKED_MASTER_KEYS"
#: For --metrics; PARKED_METRICS is the server's, which run_test may start.
METRICS = "PARKED_LOADTEST_METRICS"
#: The same for a run of several hosts: how many Locust's master has to expect, and for how many seconds.
EXPECT_HOSTS = "PARKED_EXPECT_HOSTS"
JOIN_TIMEOUT = "PARKED_JOIN_TIMEOUT_S"
#: ... and of the hosts that join: the id by which their workers name them in samples.
HOST = "PARKED_HOST_ID"
#: Addresses that a host's connections start from, such as 10.0.0.16/28,10.0.0.40. Not an option of Locust: it
#: overwrites a worker's options with the master's, and the addresses differ from host to host.
SOURCE = "PARKED_SOURCE"
#: Exit code where hosts did not come together: of Locust's master, of the run, and of the host that joins.
EXIT_HOSTS = 7
#: What Locust's master waits for until the hosts are known: more workers than there ever are.
EXPECT_MANY_WORKERS = 1_000_000
