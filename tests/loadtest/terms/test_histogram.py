"""Histograms merge without loss, and are gone when nobody holds them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from parked.loadtest.terms.histogram import merge, new_histogram


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
