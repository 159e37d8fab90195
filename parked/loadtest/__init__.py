"""The load test: Locust users that are connections, and results that a person can trust."""
