"""What server and load test both need. It knows neither, and imports nothing else of ours."""
