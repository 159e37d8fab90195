from __future__ import annotations

import pytest

from parked.prefork import sizing
from parked.shared import listeners


def test_auto_without_a_number_takes_a_worker_a_cpu_and_what_they_hold() -> None:
    assert sizing.plan(None, None, 20_000, 4) == (4, listeners.capacity(4, 20_000))
    assert sizing.plan(3, None, 20_000, 4) == (3, listeners.capacity(3, 20_000))
    assert sizing.plan(None, 100, 20_000, 4) == (4, 100)


def test_too_few_workers_are_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(sizing.SizingError) as caught:
        sizing.plan(2, 100_000, 20_000, 2)
    assert f"--workers {sizing.workers_for(100_000, 20_000, 2)}" in str(caught.value)


def test_what_no_number_of_workers_can_hold_is_an_error() -> None:
    with pytest.raises(sizing.SizingError, match="raise the limit"):
        sizing.workers_for(1 << 39, 1024, 2)


def test_more_workers_than_there_can_be_are_refused() -> None:
    assert sizing.plan(listeners.MAX_WORKERS, None, 20_000, 2)[0] == listeners.MAX_WORKERS
    with pytest.raises(sizing.SizingError, match="1,025 workers are more than the 1,024"):
        sizing.plan(listeners.MAX_WORKERS + 1, None, 20_000, 2)
