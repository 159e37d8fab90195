"""A run as its master sees it: rows, phases, hosts, and what is written."""
