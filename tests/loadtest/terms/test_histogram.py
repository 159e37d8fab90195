"""Histograms merge without loss, and are gone when nobody holds them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from parked.loadtest.terms.histogram import RANGE_US, add, checked, counts_of, merge, new_histogram, values_at


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_merges_without_loss() -> None:
    parts, whole, merged = [new_histogram() for _ in range(3)], new_histogram(), new_histogram()
    for number in range(3000):
        latency_us = 1 + number * number
        whole.record_value(latency_us)
        parts[number % 3].record_value(latency_us)
    for part in parts:
        merge(merged, part.encode())
    assert merged.encode() == whole.encode()
    assert merged.get_total_count() == 3000


def test_percentiles_are_those_of_the_library() -> None:
    percentiles = [0.001, 1, 50, 90, 99, 99.9, 100]
    for values in (
        [],
        [RANGE_US[0]],
        [RANGE_US[1]],
        list(RANGE_US),
        [number * number for number in range(1, 3000)],
        [700, 700, 701, 5_000_000],
    ):
        recorded, merged = new_histogram(), new_histogram()
        add(recorded, counts_of(values))
        merge(merged, recorded.encode())
        for histogram in (recorded, merged):
            expected = [histogram.get_value_at_percentile(percent) for percent in percentiles]
            assert values_at(histogram, percentiles) == expected


def test_values_are_recorded_in_bulk_as_they_would_be_one_by_one() -> None:
    least, most = RANGE_US
    values = [least, most, *(factor << bits for bits in range(30) for factor in (1, 3, 1023, 1024, 2047))]
    one_by_one, in_bulk = new_histogram(), new_histogram()
    for value in values:
        one_by_one.record_value(min(value, most))
    for half in ([], values[::2], values[1::2]):
        add(in_bulk, checked(counts_of([min(value, most) for value in half])))
    assert in_bulk.encode() == one_by_one.encode()
    for name in ("total_count", "min_value", "max_value"):
        assert getattr(in_bulk, name) == getattr(one_by_one, name)


@pytest.mark.parametrize(
    "spoilt",
    [
        [5],
        [5, 5],
        [5, 5, 5],
        [5, 5, 5, 0],
        [5, 5, 5, 1 << 62],
        [5, 5, -1, 1],
        [5, 5, 1 << 20, 1],
        [0, 5, 5, 1],
        [6, 5, 5, 1],
        [5, RANGE_US[1] + 1, 5, 1],
    ],
)
def test_counts_that_are_none_are_refused(spoilt: list[int]) -> None:
    with pytest.raises(ValueError, match="none"):
        checked(spoilt)


def test_is_freed_without_the_garbage_collector(no_collector: None) -> None:
    made = new_histogram()
    made.record_value(5)
    encoded = made.encode()
    counts = weakref.ref(made.encoder.payload)
    del made
    assert counts() is None
    before = sum(type(thing).__name__ == "HdrPayload" for thing in gc.get_objects())
    held = new_histogram()
    for _ in range(5):
        merge(held, encoded)
    after = sum(type(thing).__name__ == "HdrPayload" for thing in gc.get_objects())
    assert after == before + 1  # that of `held`
