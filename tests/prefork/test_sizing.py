from __future__ import annotations

import math

import pytest

from parked.prefork import sizing


def test_400_000_connections_at_20_000_files_take_about_22_workers() -> None:
    assert sizing.workers_for(400_000, 20_000, 2) == 22


@pytest.mark.parametrize("connections", [1, 5_000, 40_000, 100_000, 400_000, 1_000_000])
def test_a_worker_has_room_for_six_sigma_above_its_share(connections: int) -> None:
    workers = sizing.workers_for(connections, 20_000, 2)
    share = connections / workers
    assert share + 6 * math.sqrt(share) <= sizing.worker_room(20_000)
    assert workers == 2 or sizing.capacity(workers - 1, 20_000) < connections


def test_auto_without_a_number_takes_a_worker_a_cpu_and_what_they_hold() -> None:
    assert sizing.plan(None, None, 20_000, 4) == (4, sizing.capacity(4, 20_000))
    assert sizing.plan(3, None, 20_000, 4) == (3, sizing.capacity(3, 20_000))
    assert sizing.plan(None, 100, 20_000, 4) == (4, 100)


def test_too_few_workers_are_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(sizing.SizingError) as caught:
        sizing.plan(2, 100_000, 20_000, 2)
    assert f"--workers {sizing.workers_for(100_000, 20_000, 2)}" in str(caught.value)


def test_a_tiny_limit_of_files_still_leaves_room() -> None:
    assert 0 < sizing.worker_room(300) < 300
    assert 0 < sizing.worker_room(64) < 64


def test_what_no_number_of_workers_can_hold_is_an_error() -> None:
    with pytest.raises(sizing.SizingError, match="raise the limit"):
        sizing.workers_for(1 << 39, 1024, 2)
