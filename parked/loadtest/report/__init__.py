"""From a run's folder to a judgement. Imports neither Locust nor gevent."""
