"""Many server processes: the command line, the supervisor and its workers, and what they count."""
