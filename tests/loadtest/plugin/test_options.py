"""Option values: what is understood, and one clear line for the rest."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from parked.loadtest.plugin import options


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (options.think_time, "10:90", (10.0, 90.0)),
        (options.think_time, "0", (0.0, 0.0)),
        (options.think_time, "0.5:1.5", (0.5, 1.5)),
        (options.length, "1024:10240", (1024, 10240)),
        (options.length, "7", (7, 7)),
        (options.duration, "30", 30),
        (options.duration, "30s", 30),
        (options.duration, "5m", 300),
        (options.duration, "1h30m", 5400),
        (options.duration, "1h1m1s", 3661),
        (options.count, "20000", 20_000),
        (options.count, "20,000", 20_000),
        (options.count, "20_000", 20_000),
        (options.count, "400k", 400_000),
        (options.count, "2.3M", 2_300_000),
        (options.count, "1.1k", 1_100),
    ],
)
def test_a_value_is_understood(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value
    assert options.checked(parse)(text) == text


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *(
            (options.think_time, text)
            for text in ("", ":", "1:", ":1", "a", "-1", "2:1", "nan", "inf", "1:2:3", "1e9")
        ),
        *((options.length, text) for text in ("", "0", "0:5", "1.5", "9:8", "-1", "1:99999999999")),
        *(
            (options.duration, text)
            for text in ("", "0", "0s", "-1", "1d", "s", "5 m", "1m1h", "9999h", "1.5s")
        ),
        *(
            (options.count, text)
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


def test_the_locustfiles_options_are_checked_and_keep_their_text() -> None:
    from locust.argument_parser import LocustArgumentParser

    parser = LocustArgumentParser()
    options.add_locust_options(parser)
    chosen = parser.parse_args(["--think", "1:2", "--hold", "5m"])
    assert (chosen.think, chosen.length, chosen.hold, chosen.results) == ("1:2", "1024:10240", "5m", None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--length", "none"])


@pytest.mark.parametrize(
    ("run_time", "hold", "limit"), [(None, None, 120), (None, "5m", None), (30, None, 30), (30, "5m", 30)]
)
def test_a_test_ends_by_itself_and_a_hold_is_not_cut_short(
    run_time: int | None, hold: str | None, limit: int | None
) -> None:
    chosen = argparse.Namespace(run_time=run_time, hold=hold)
    options.limit_run_time(chosen)
    assert chosen.run_time == limit


def test_several_hosts_are_urls_with_commas_between() -> None:
    assert options.hosts("http://a:8000/, http://b") == ["http://a:8000", "http://b"]
    for wrong in ("", "http://a,", "http://a,http://a/"):
        with pytest.raises(argparse.ArgumentTypeError, match="commas"):
            options.hosts(wrong)
