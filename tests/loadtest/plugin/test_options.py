"""The locustfile's options among Locust's."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from parked.loadtest.plugin import options
from parked.loadtest.terms import options as terms_options


def test_the_locustfiles_options_are_checked_and_keep_their_text() -> None:
    from locust.argument_parser import LocustArgumentParser

    parser = LocustArgumentParser()
    options.add_locust_options(parser)
    chosen = parser.parse_args(["--think", "1:2", "--hold", "5m"])
    assert (chosen.think, chosen.length, chosen.hold, chosen.results) == ("1:2", "1024:10240", "5m", None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--length", "none"])


@pytest.mark.parametrize("where", ["parser", "group", "group of which one may be given"])
@pytest.mark.parametrize("before", [True, False])
def test_an_option_of_a_scripts_own_is_the_scripts(
    monkeypatch: pytest.MonkeyPatch, before: bool, where: str
) -> None:
    from locust.argument_parser import LocustArgumentParser

    def of_script() -> None:
        mine: Any = parser
        if where != "parser":
            mine = mine.add_argument_group("mine")
        if "one" in where:
            mine = mine.add_mutually_exclusive_group()
        mine.add_argument("--insecure", default="no", help="mine")
        mine.add_argument("--results", type=int, default=3)

    monkeypatch.setattr(terms_options, "OF_SCRIPT", set())
    parser = LocustArgumentParser()
    if before:
        of_script()
    options.add_locust_options(parser)
    if not before:
        of_script()
    chosen = parser.parse_args(["--insecure", "yes", "--think", "1:2"])
    assert (chosen.insecure, chosen.results, chosen.think) == ("yes", 3, "1:2")
    ours = terms_options.ours(chosen)
    assert (ours.insecure, ours.results, ours.think) == (False, None, "1:2")


def test_two_options_of_one_name_are_refused_as_ever() -> None:
    from locust.argument_parser import LocustArgumentParser

    parser = LocustArgumentParser()
    options.add_locust_options(parser)
    parser.add_argument("--mine")
    with pytest.raises(argparse.ArgumentError):
        parser.add_argument("--mine")
