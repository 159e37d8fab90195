"""The options that the locustfile adds to Locust's, and defaults for Locust's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parked.loadtest.terms import values, variables

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
    parser.add_argument(
        "--think",
        type=values.checked(values.think_time),
        default="10:90",
        metavar="MIN:MAX",
        env_var="PARKED_THINK",
        help="seconds between a response and the next request of a connection, drawn evenly (default 10:90)",
    )
    parser.add_argument(
        "--length",
        type=values.checked(values.length),
        default="1024:10240",
        metavar="MIN:MAX",
        env_var="PARKED_LENGTH",
        help="characters of a response, drawn evenly and checked (default 1024:10240)",
    )
    parser.add_argument(
        "--hold",
        type=values.checked(values.duration),
        default=None,
        metavar="DURATION",
        include_in_web_ui=False,
        help="end the test this long after all connections are established, such as 5m "
        "(default: --run-time decides, 2m if not given)",
    )
    parser.add_argument(
        "--adaptive",
        action="store_true",
        include_in_web_ui=False,
        help="take --spawn-rate as the rate to begin with: faster while requests stay on time, else slower",
    )
    parser.add_argument(
        "--server-metrics",
        type=values.checked(values.metrics_address),
        default="",
        metavar="ADDRESS",
        include_in_web_ui=False,
        help="where the server serves /metrics (run_server --metrics): its own counts become columns of "
        "samples.csv and a witness",
    )
    parser.add_argument(
        "--metrics",
        type=values.checked(values.listen_address),
        default=None,
        metavar="ADDRESS",
        env_var=variables.METRICS,
        include_in_web_ui=False,
        help="serve this load test's own /metrics for Prometheus at HOST:PORT",
    )
    parser.add_argument(
        "--results",
        default=None,
        metavar="DIR",
        include_in_web_ui=False,
        help="write samples, log, summary and plots to this folder, and a line a second to the terminal",
    )
