"""The options that the locustfile adds to Locust's, and defaults for Locust's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parked.loadtest.terms import options

if TYPE_CHECKING:
    import argparse

#: Seconds that Locust's test lasts if neither --run-time nor --hold says so.
RUN_TIME_S = 120


def limit_run_time(chosen: argparse.Namespace) -> None:
    """Let no test run for ever, and a hold be as long as was asked for, however long its ramp."""
    if chosen.run_time is None and chosen.hold is None:
        chosen.run_time = RUN_TIME_S


def add_locust_options(parser: argparse.ArgumentParser) -> None:
    """The locustfile's own options, and defaults for Locust's so that it runs without any."""
    parser.set_defaults(host="http://127.0.0.1:8000", num_users=1000, spawn_rate=200)
    # Not in a group of their own: only the parser itself knows Locust's `include_in_web_ui`.
    for option in options.TABLE:
        option.add_to_locust(parser)
    parser.add_argument(
        "--adaptive",
        action="store_true",
        include_in_web_ui=False,
        help="take --spawn-rate as the rate to begin with: faster while requests stay on time, else slower",
    )
