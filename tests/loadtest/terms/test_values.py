"""Option values: what is understood, and one clear line for the rest."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from parked.loadtest.terms import values


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (values.think_time, "10:90", (10.0, 90.0)),
        (values.think_time, "0", (0.0, 0.0)),
        (values.think_time, "0.5:1.5", (0.5, 1.5)),
        (values.length, "1024:10240", (1024, 10240)),
        (values.length, "7", (7, 7)),
        (values.duration, "30", 30),
        (values.duration, "30s", 30),
        (values.duration, "5m", 300),
        (values.duration, "1h30m", 5400),
        (values.duration, "1h1m1s", 3661),
        (values.count, "20000", 20_000),
        (values.count, "20,000", 20_000),
        (values.count, "20_000", 20_000),
        (values.count, "400k", 400_000),
        (values.count, "2.3M", 2_300_000),
        (values.count, "1.1k", 1_100),
    ],
)
def test_a_value_is_understood(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value
    assert values.checked(parse)(text) == text


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *(
            (values.think_time, text)
            for text in ("", ":", "1:", ":1", "a", "-1", "2:1", "nan", "inf", "1:2:3", "1e9")
        ),
        *((values.length, text) for text in ("", "0", "0:5", "1.5", "9:8", "-1", "1:99999999999")),
        *(
            (values.duration, text)
            for text in ("", "0", "0s", "-1", "1d", "s", "5 m", "1m1h", "9999h", "1.5s")
        ),
        *(
            (values.count, text)
            for text in ("", "0", "-1", "0.5", "1.5", "k", "1e3", "1g", "9" * 400, "10k5", "inf")
        ),
    ],
)
def test_any_other_value_is_refused_with_its_text(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse(text)
    message = str(caught.value)
    assert text in message
    assert "\n" not in message


def test_several_hosts_are_urls_with_commas_between() -> None:
    assert values.hosts("http://a:8000/, http://b") == ["http://a:8000", "http://b"]
    for wrong in ("", "http://a,", "http://a,http://a/"):
        with pytest.raises(argparse.ArgumentTypeError, match="commas"):
            values.hosts(wrong)
    assert values.hosts("http://a/api/") == ["http://a/api"]
    for wrong in ("http://a/?x=1", "http://a#b"):
        with pytest.raises(argparse.ArgumentTypeError, match="--path"):
            values.hosts(wrong)
