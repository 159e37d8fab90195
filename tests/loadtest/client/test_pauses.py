"""Garbage collections are timed, each sample's longest apart."""

from __future__ import annotations

import gc
import time

from parked.loadtest.client.pauses import CollectorPauses


def test_collections_are_timed_until_closed() -> None:
    pauses = CollectorPauses()
    before = time.perf_counter()
    gc.collect()
    elapsed_s = time.perf_counter() - before
    assert 0 < pauses.longest_s <= pauses.total_s <= elapsed_s
    total_s, pauses.longest_s = pauses.total_s, 0.0
    pauses.close()
    gc.collect()
    assert (pauses.total_s, pauses.longest_s) == (total_s, 0.0)
