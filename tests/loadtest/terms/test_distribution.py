"""Distributions of what was drawn: exact where they say so, and whole after every way that they travel."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from parked.loadtest.terms.distribution import Distribution

DRAWN = random.Random(11)


def drawn(low: float, high: float, count: int = 20_000) -> Distribution:
    made = Distribution()
    made.add([DRAWN.uniform(low, high) for _ in range(count)])
    return made


def test_number_sum_and_ends_are_exact_and_percentiles_within_a_bucket() -> None:
    values = [DRAWN.uniform(10, 90) for _ in range(9_999)]
    made = Distribution()
    made.add(values)
    assert (made.count, made.least, made.most) == (9_999, min(values), max(values))
    assert made.mean == pytest.approx(sum(values) / len(values))
    for percent in (1, 25, 50, 99):
        assert made.percentile(percent) == pytest.approx(sorted(values)[9_999 * percent // 100], rel=0.022)
    assert made.percentile(100) == max(values)


def test_parts_merge_to_what_the_whole_is() -> None:
    values = [DRAWN.uniform(0, 5000) for _ in range(1000)]
    whole, merged = Distribution(), Distribution()
    whole.add(values)
    for start in range(0, 1000, 10):
        part = Distribution()
        part.add(values[start : start + 10])
        merged.merge(Distribution.of(json.loads(json.dumps(part.as_list()))))
    assert merged.buckets == whole.buckets
    assert (merged.least, merged.most) == (whole.least, whole.most)
    assert merged.sum == pytest.approx(whole.sum)


def test_shares_are_those_of_the_values() -> None:
    values = [float(value) for value in range(1024, 10_241)]
    made = Distribution()
    made.add(values)
    points = made.shares_below()
    assert points[0] == (1024, 0)
    assert points[-1] == (10_240, 1)
    for bound, share in points[:-1]:
        assert share == sum(value < bound for value in values) / len(values)


def test_nothing_and_zero_have_a_place() -> None:
    empty = Distribution()
    assert empty.as_list() == empty.shares_below() == []
    assert Distribution.of([]).count == 0
    assert empty.is_consistent
    zeros = Distribution()
    zeros.add([0, 0.0])
    assert (zeros.count, zeros.mean, zeros.least) == (2, 0, 0)
    assert zeros.is_consistent


def test_an_even_distribution_is_told_from_others() -> None:
    by_chance = 1.63 / math.sqrt(20_000)
    assert drawn(10, 90).distance(10, 90, 0.01) < by_chance
    assert drawn(12, 90).distance(10, 90, 0.01) > by_chance
    assert drawn(10, 85).distance(10, 90, 0.01) > 0.05
    assert drawn(5, 5.1).distance(10, 90, 0.01) > 0.9


def test_equal_values_that_are_off_by_their_grain_are_what_was_asked_for() -> None:
    slots = Distribution()
    slots.add([1.996, 2.0, 2.004] * 100)
    assert slots.distance(2, 2, 0.01) == 0
    assert slots.distance(2.1, 2.1, 0.01) == 1


@pytest.mark.parametrize(
    "forge",
    [
        lambda parts: [parts[0] * 1.05, *parts[1:]],
        lambda parts: [parts[0], parts[1] / 2, *parts[2:]],
        lambda parts: [*parts[:2], parts[2] * 2, parts[3]],
        lambda parts: [*parts[:3], parts[3][1:]],
    ],
)
def test_a_forged_sum_end_or_bucket_does_not_fit_the_rest(forge: Any) -> None:
    made = drawn(10, 90)
    assert made.is_consistent
    assert not Distribution.of(forge(made.as_list())).is_consistent


def test_what_is_no_distribution_is_refused() -> None:
    beyond, none, fewer = [1, 1, 1, [[10**7, 1]]], [1, 1, 1, [[1, 0]]], [1, 1, 1, [[1, 5], [2, -1]]]
    for wrong in ([1], [1, 2, 3, "x"], [1, 2, 3, [[1]]], [None, 1, 1, [[1, 1]]], beyond, none, fewer):
        with pytest.raises((ValueError, TypeError)):
            Distribution.of(wrong)
