"""Pauses of a worker: collections are timed, and a loop that was held up is late."""

from __future__ import annotations

import gc
import time

import gevent

from parked.shared.pauses import Collections, LoopLag, Pauses


def test_the_longest_is_of_the_last_two_windows() -> None:
    pauses = Pauses()
    pauses.note(3.0)
    pauses.begin_window()
    pauses.note(1.0)
    assert pauses.longest == 3.0, "who reads once a window must not miss it"
    assert pauses.begin_window() == 1.0
    assert pauses.longest == 1.0
    assert pauses.begin_window() == 0.0
    assert (pauses.longest, pauses.count, pauses.seconds) == (0.0, 2, 4.0)


def test_each_collection_is_counted_and_timed() -> None:
    collections = Collections()
    try:
        before = time.monotonic()
        gc.collect()
        elapsed_s = time.monotonic() - before
        assert collections.count >= 1
        assert 0 < collections.longest <= collections.seconds <= elapsed_s
    finally:
        collections.close()
    count = collections.count
    gc.collect()
    assert collections.count == count


def test_a_loop_that_was_held_up_is_late_by_that() -> None:
    lag = LoopLag(look_s=0.01)
    try:
        gevent.sleep(0.05)
        assert lag.count >= 1
        time.sleep(0.2)  # blocks the loop: nothing is patched here
        gevent.sleep(0.02)
        assert lag.longest >= 0.18
        looks = lag.count
        gevent.sleep(0.05)
        assert lag.count > looks, "it goes on looking"
    finally:
        lag.close()
