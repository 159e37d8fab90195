"""/metrics as a WSGI application."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from parked.shared import exposition
from tests.support import Client, serving


class One:
    def collect(self) -> Iterator[Any]:
        core = pytest.importorskip("prometheus_client.core")
        yield core.GaugeMetricFamily("answer", "Of everything.", 42)


def test_the_collectors_figures_are_at_metrics_and_nowhere_else() -> None:
    pytest.importorskip("prometheus_client")
    with serving(exposition.application(One())) as server, Client(server) as client:
        assert b"answer 42.0" in client.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").body
        assert client.ask().status == 404


def test_without_the_client_library_the_text_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(exposition.MetricsUnavailableError, match=r"pip install 'parked\[metrics\]'"):
        exposition.application(One())
