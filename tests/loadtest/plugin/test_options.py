"""The locustfile's options among Locust's."""

from __future__ import annotations

import argparse

import pytest

from parked.loadtest.plugin import options


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
