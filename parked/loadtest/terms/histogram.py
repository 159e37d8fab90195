"""Histograms of latencies in microseconds: HdrHistograms of one range, so that they merge without loss."""

from __future__ import annotations

import base64
import itertools
import weakref
import zlib
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from hdrh.histogram import HdrHistogram

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Range of latencies in microseconds and significant digits. An answer that takes longer than the range has
#: long been a timeout.
RANGE_US = (1, 3_600_000_000)
DIGITS = 3
#: Bytes of an encoded histogram before compression: 9 at most for each of its 34,000 counts.
LARGEST = 1 << 20


#: Values of one place of a message: more than any process sends in a second.
MOST = 1 << 40


def new_histogram() -> Any:
    """An empty one."""
    return _without_cycle(HdrHistogram(*RANGE_US, DIGITS))


def counts_of(values_us: Sequence[int]) -> list[int]:
    """Whole numbers within the range, for a message: the least, the greatest, then places in the histogram,
    each with how many values it has; empty if there are none. An encoded histogram takes who makes it 0.25 ms
    more, whatever is in it, and who decodes it 0.3."""
    if not values_us:
        return []
    counts: dict[int, int] = {}
    for value in values_us:
        # As `_counts_index_for` has it, for a range that begins at 1.
        bucket = max(0, value.bit_length() - _HALF_BITS - 1)
        place = (bucket << _HALF_BITS) + (value >> bucket)
        counts[place] = counts.get(place, 0) + 1
    return [min(values_us), max(values_us), *itertools.chain.from_iterable(counts.items())]


def checked(counts: list[int]) -> list[int]:
    """The same. Raises ValueError for what :func:`counts_of` never makes."""
    if counts:
        places, numbers = counts[2::2], counts[3::2]
        if not (
            len(places) == len(numbers) > 0
            and RANGE_US[0] <= counts[0] <= counts[1] <= RANGE_US[1]
            and min(places) >= 0
            and max(places) < _PLACES
            and min(numbers) > 0
            and max(numbers) <= MOST
        ):
            raise ValueError("latencies that are none")
    return counts


def add(histogram: Any, counts: list[int]) -> None:
    """Add what :func:`counts_of` has made."""
    if counts:
        totals = histogram.counts
        for place, number in zip(counts[2::2], counts[3::2], strict=True):
            totals[place] += number
        histogram.total_count += sum(counts[3::2])
        histogram.min_value = min(histogram.min_value, counts[0])
        histogram.max_value = max(histogram.max_value, counts[1])


def values_at(histogram: Any, percentiles: Sequence[float]) -> list[int]:
    """What `get_value_at_percentile` says of each percentile above 0; 0 if nothing is counted.

    In one pass over the counts in use: 0.35 ms for four, where the library takes 2.3.
    """
    if not histogram.total_count:
        return [0] * len(percentiles)
    first, last = (histogram._counts_index_for(value) for value in (histogram.min_value, histogram.max_value))
    ranks = list(itertools.accumulate(histogram.counts[first : last + 1]))
    at = [bisect_left(ranks, histogram.get_target_count_at_percentile(percent)) for percent in percentiles]
    return [
        histogram.get_highest_equivalent_value(histogram.get_value_from_index(first + index)) for index in at
    ]


def merge(histogram: Any, encoded: bytes) -> None:
    """Add an encoded histogram. Raises ValueError for bytes that are none of this range."""
    try:
        # A cookie and a length of 4 bytes each, then zlib: nothing says how much comes out of it.
        inflated = zlib.decompressobj().decompress(base64.b64decode(encoded)[8:], LARGEST + 1)
        if len(inflated) > LARGEST:
            raise ValueError("too large")
        added = _without_cycle(HdrHistogram.decode(encoded))
    except Exception as error:  # the library lets whatever went wrong in zlib, base64 or ctypes through
        raise ValueError(f"no latency histogram: {error or type(error).__name__}") from None
    if (added.lowest_trackable_value, added.highest_trackable_value) != RANGE_US:
        raise ValueError("a latency histogram of another range")
    histogram.add(added)


def _without_cycle(histogram: Any) -> Any:
    # A histogram and its encoder refer to each other (hdrh/codec.py, HdrHistogramEncoder.__init__), and hold
    # 180 KB of counts. A worker makes one a second and rarely collects cycles: 0.2 MB a second and worker
    # stayed behind, 1.1 GB of a five-minute run with 22 workers.
    histogram.encoder.histogram = weakref.proxy(histogram)
    return histogram


_HALF_BITS: int = new_histogram().sub_bucket_half_count_magnitude
_PLACES: int = new_histogram().counts_len
