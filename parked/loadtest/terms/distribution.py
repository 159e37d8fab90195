"""What was drawn at random, as it came out: think times and response lengths.

Values fall into buckets whose bounds double every 32: a bucket is 2.2 % wide, wherever it lies. Number, sum,
least and greatest are exact, and so is the share of values below each bound; distributions of many workers
merge without loss. An HdrHistogram would do the same in 1-5 us a value (hdrh is plain Python), and there are
two values a request.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BUCKETS_A_DOUBLING = 32
#: Beyond any value, sum or number of them.
MOST = 1e18
#: What is smaller counts as this: 0 has no logarithm.
LEAST = 0.001
#: Buckets of what is between.
_BUCKETS = range(
    math.floor(BUCKETS_A_DOUBLING * math.log2(LEAST)), math.ceil(BUCKETS_A_DOUBLING * math.log2(MOST)) + 1
)


def bound(bucket: int) -> float:
    """The lower end of a bucket, which belongs to it; the upper end is the next one's."""
    return float(2 ** (bucket / BUCKETS_A_DOUBLING))


def _bucket_of(value: float) -> int:
    return math.floor(BUCKETS_A_DOUBLING * math.log2(value if value > LEAST else LEAST))


class Distribution:
    """Of values of 0 or more."""

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.sum = 0.0
        self.least = math.inf
        self.most = -math.inf

    @property
    def count(self) -> int:
        return self.buckets.total()

    @property
    def mean(self) -> float:
        return self.sum / self.count

    def add(self, values: Sequence[float]) -> None:
        if values:
            log2, floor = math.log2, math.floor  # as _bucket_of, without a call for each
            buckets = [floor(BUCKETS_A_DOUBLING * log2(it if it > LEAST else LEAST)) for it in values]
            self._add(Counter(buckets), sum(values), min(values), max(values))

    def _add(self, buckets: Counter[int], sum_: float, least: float, most: float) -> None:
        self.buckets.update(buckets)
        self.sum += sum_
        self.least = min(self.least, least)
        self.most = max(self.most, most)

    def merge(self, other: Distribution) -> None:
        self._add(other.buckets, other.sum, other.least, other.most)

    def as_list(self) -> list[Any]:
        """For messages and JSON: sum, least, greatest, and pairs of bucket and count; empty if nothing is."""
        return [self.sum, self.least, self.most, sorted(self.buckets.items())] if self.buckets else []

    @classmethod
    def of(cls, parts: Iterable[Any]) -> Distribution:
        """From :meth:`as_list`. Raises ValueError or TypeError for what that never makes."""
        made = cls()
        if values := list(parts):
            sum_, least, most, buckets = values
            try:
                made._add(
                    Counter({int(bucket): int(count) for bucket, count in buckets}),
                    float(sum_), float(least), float(most),
                )  # fmt: skip
                if not all(abs(value) <= MOST for value in (made.sum, made.least, made.most, made.count)):
                    raise ValueError("a distribution of no numbers")
                if not all(bucket in _BUCKETS and count > 0 for bucket, count in made.buckets.items()):
                    raise ValueError("a distribution with a bucket that is none")
            except OverflowError as error:
                raise ValueError(str(error)) from None
        return made

    @property
    def is_consistent(self) -> bool:
        """Whether sum, least and greatest are possible with these buckets."""
        if not self.buckets:
            return True
        first, last = min(self.buckets), max(self.buckets)
        low = sum(max(bound(bucket), self.least) * count for bucket, count in self.buckets.items())
        high = sum(min(bound(bucket + 1), self.most) * count for bucket, count in self.buckets.items())
        slack = 1e-9 * high + LEAST * self.count  # rounding, and values below LEAST
        return (
            min(self.buckets.values()) > 0
            and _bucket_of(self.least) == first
            and _bucket_of(self.most) == last
            and low - slack <= self.sum <= high + slack
        )

    def percentile(self, percent: float) -> float:
        """Within 2.2 %: a bucket's values are taken to lie evenly in it."""
        rank = percent / 100 * self.count
        below = 0
        for bucket, count in sorted(self.buckets.items()):
            if below + count >= rank:
                low, high = max(bound(bucket), self.least), min(bound(bucket + 1), self.most)
                return low + (high - low) * (rank - below) / count
            below += count
        return self.most

    def shares_below(self) -> list[tuple[float, float]]:
        """Exact points of the distribution function: a value, and the share of values below it."""
        points = []
        below = 0
        for bucket, count in sorted(self.buckets.items()):
            points.append((max(bound(bucket), self.least), below / self.count))
            below += count
            points.append((min(bound(bucket + 1), self.most), below / self.count))
        return list(dict.fromkeys(points))  # buckets side by side share a bound

    def distance(self, low: float, high: float, grain: float) -> float:
        """The greatest difference in share to an even distribution between `low` and `high` (Kolmogorov and
        Smirnov's), where a value may be off by `grain`. Chance alone makes 1.63 / sqrt(count) of it once in a
        hundred times."""
        return max(
            (
                max(share - even(value + grain, low, high), even(value - grain, low, high) - share)
                for value, share in self.shares_below()
            ),
            default=0.0,
        )


def even(value: float, low: float, high: float) -> float:
    """The share of an even distribution that lies below a value."""
    if value <= low:
        return 0.0
    return 1.0 if value >= high else (value - low) / (high - low)
