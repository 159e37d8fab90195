"""The options that a locustfile with KeepAliveUsers adds to Locust's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parked.loadtest.terms import options

if TYPE_CHECKING:
    import argparse


def add_locust_options(parser: argparse.ArgumentParser) -> None:
    """The options of every locustfile with KeepAliveUsers."""
    # Not in a group of their own: only the parser itself knows Locust's `include_in_web_ui`.
    for option in options.TABLE:
        option.add_to_locust(parser)
    parser.add_argument("--insecure", action="store_true", include_in_web_ui=False, help=options.INSECURE)
    parser.add_argument(
        "--adaptive",
        action="store_true",
        include_in_web_ui=False,
        help="take --spawn-rate as the rate to begin with: faster while requests stay on time, else slower",
    )
