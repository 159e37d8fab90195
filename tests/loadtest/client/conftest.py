from __future__ import annotations

from collections.abc import Iterator

import pytest

from parked.loadtest.client import user as user_module
from tests.loadtest.peers import Peer, answering, response


@pytest.fixture(autouse=True)
def _start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not spread over a second."""
    monkeypatch.setattr(user_module, "START_SPREAD_S", 0.0)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer(answering(response())) as made:
        yield made
