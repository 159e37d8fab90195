"""/metrics in Prometheus' text format, as a WSGI application. It needs the package prometheus_client."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from parked.shared.extras import needs


class MetricsUnavailableError(ImportError):
    """prometheus_client is not installed; the text says how it is."""


def application(collector: Any) -> Callable[..., Iterable[bytes]]:
    """The WSGI application that answers at /metrics with what *collector* yields.

    :param collector: as prometheus_client defines it: an object with `collect()`.
    :raises MetricsUnavailableError: without prometheus_client.
    """
    try:
        client = importlib.import_module("prometheus_client")  # an option: nobody else has to have it
    except ImportError as error:
        raise MetricsUnavailableError(needs("--metrics", "prometheus_client", "metrics")) from error
    registry = client.CollectorRegistry()
    registry.register(collector)
    answer: Callable[..., Iterable[bytes]] = client.make_wsgi_app(registry)

    def only_metrics(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"see /metrics\n"]
        return answer(environ, start_response)

    return only_metrics
