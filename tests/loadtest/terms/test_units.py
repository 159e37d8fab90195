from __future__ import annotations

import pytest

from parked.loadtest.terms import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.2934, "0.293"),
        (0, "0"),
        (7, "7"),
        (46.13, "46.1"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (65_000, "65,000"),
    ],
)
def test_a_figure_has_three_digits_or_all_before_the_point(value: float, text: str) -> None:
    assert units.digits(value) == text


@pytest.mark.parametrize(
    ("number", "text"), [(None, "0 retransmits"), (1, "1 retransmit"), (2000, "2,000 retransmits")]
)
def test_one_thing_is_told_as_one(number: int | None, text: str) -> None:
    assert units.some(number, "retransmits") == text
