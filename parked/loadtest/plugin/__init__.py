"""What is put into Locust: options, adjustments, the Connections tab and /metrics."""
