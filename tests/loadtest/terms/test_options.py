"""One table of options for ./run_test and the locustfile."""

from __future__ import annotations

import pytest
from locust.argument_parser import LocustArgumentParser

from parked.loadtest.command import arguments
from parked.loadtest.plugin.options import add_locust_options
from parked.loadtest.terms import options

NAMES = [option.flag for option in options.TABLE]


def help_of(parser: object, flag: str) -> str:
    actions = parser._actions  # type: ignore[attr-defined]
    return next(action.help for action in actions if flag in action.option_strings)


@pytest.mark.parametrize("flag", NAMES)
def test_run_test_and_locust_say_the_same_of_an_option_but_for_its_default(flag: str) -> None:
    locust = LocustArgumentParser()
    add_locust_options(locust)
    ours, theirs = help_of(arguments.parser(), flag), help_of(locust, flag)
    assert ours.partition(" (default")[0] == theirs.partition(" (default")[0]


def test_an_environment_variable_is_as_good_as_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARKED_THINK", "1:2")
    assert arguments.parser().parse_args([]).think == "1:2"
    locust = LocustArgumentParser()
    add_locust_options(locust)
    assert locust.parse_args([]).think == "1:2"
    monkeypatch.setenv("PARKED_THINK", "2:1")
    with pytest.raises(SystemExit):
        arguments.parser().parse_args([])
