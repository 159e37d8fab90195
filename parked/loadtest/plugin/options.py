"""The options that a locustfile with KeepAliveUsers adds to Locust's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parked.loadtest.terms import options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def add_locust_options(parser: argparse.ArgumentParser) -> None:
    """The options of every locustfile with KeepAliveUsers, but for those that a script has itself."""
    present, ours = parser._option_string_actions, Parser(parser)
    # Not in a group of their own: only the parser itself knows Locust's `include_in_web_ui`.
    for option in options.TABLE:
        option.add_to_locust(ours)
    ours.add_argument("--insecure", action="store_true", include_in_web_ui=False, help=options.INSECURE)
    ours.add_argument(
        "--adaptive",
        action="store_true",
        include_in_web_ui=False,
        help="take --spawn-rate as the rate to begin with: faster while requests stay on time, else slower",
    )

    def give_up(flag: str) -> None:
        if flag in ours.has and present.get(flag) is ours.has[flag]:
            parser._handle_conflict_resolve(None, [(flag, ours.has[flag])])  # type: ignore[arg-type]
            options.OF_SCRIPT.add(options.name_of(flag))

    _ask_before(parser, give_up)


def _ask_before(container: Any, give_up: Callable[[str], None]) -> None:
    """Call it with each flag that is about to be added, here and in groups that are made from now on."""
    add_argument = container.add_argument

    def add(*flags: str, **more: Any) -> Any:
        for flag in flags:
            give_up(flag)
        return add_argument(*flags, **more)

    def made_by(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **more: Any) -> Any:
            group = make(*arguments, **more)
            _ask_before(group, give_up)
            return group

        return made

    container.add_argument = add
    for name in ("add_argument_group", "add_mutually_exclusive_group"):
        setattr(container, name, made_by(getattr(container, name)))


class Parser:
    """Takes an option if the script has none of that name yet.

    :ivar has: the options by their flags.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self.has: dict[str, argparse.Action] = {}

    def add_argument(self, flag: str, **more: Any) -> None:
        if flag in self._parser._option_string_actions:
            options.OF_SCRIPT.add(options.name_of(flag))
        else:
            self.has[flag] = self._parser.add_argument(flag, **more)
