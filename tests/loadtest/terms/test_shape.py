"""Data from elsewhere, against a TypedDict."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import pytest

from parked.loadtest.terms.shape import wrong


class Inner(TypedDict):
    name: str


class Outer(TypedDict):
    count: int
    mean_s: float
    ends: tuple[float, float]
    inner: list[Inner]
    kinds: dict[str, int]
    known: NotRequired[float | None]


GOOD: dict[str, Any] = {
    "count": 1,
    "mean_s": 2,
    "ends": [0.5, 1],
    "inner": [{"name": "a"}],
    "kinds": {"timeout": 3},
    "more": object(),
}


@pytest.mark.parametrize("more", [{}, {"known": None}, {"known": 1.5}])
def test_what_has_the_shape_is_taken_with_more_than_that(more: dict[str, Any]) -> None:
    assert wrong(GOOD | more, Outer) == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"count": 1.5}, "count is no whole number"),
        ({"count": True}, "count is no whole number"),
        ({"count": 10**400}, "count is no whole number"),
        ({"mean_s": float("nan")}, "mean_s is no number"),
        ({"mean_s": float("inf")}, "mean_s is no number"),
        ({"mean_s": "1"}, "mean_s is no number"),
        ({"ends": [1]}, "ends has not 2 items"),
        ({"ends": 7}, "ends is no list"),
        ({"inner": [{}]}, "an item of inner lacks name"),
        ({"inner": [[]]}, "an item of inner is no mapping"),
        ({"kinds": {"a": "b"}}, "kinds.a is no whole number"),
        ({"kinds": {1: 1}}, "a key of kinds is no text"),
        ({"known": []}, "known is no number"),
        ({"inner": [{"name": "x" * (1 << 21)}]}, "name is too long"),
    ],
)
def test_what_has_not_is_named(changes: dict[str, Any], why: str) -> None:
    assert wrong(GOOD | changes, Outer) == why


@pytest.mark.parametrize("value", [None, 3, [], "x"])
def test_what_is_no_mapping_at_all_is_named(value: object) -> None:
    assert wrong(value, Outer, "the message") == "the message is no mapping"
