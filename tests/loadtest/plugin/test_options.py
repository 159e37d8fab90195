"""The locustfile's options among Locust's."""

from __future__ import annotations

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
