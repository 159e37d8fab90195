"""What the built-in locustfiles of users that wait have in common: their options, and what these change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from locust import events

from parked.loadtest.terms import options, values

if TYPE_CHECKING:
    from parked.loadtest.client.waiting import WaitingUser

#: Seconds that the test lasts if neither --run-time nor --hold says so.
RUN_TIME_S = 120


def follow_options(user_class: type[WaitingUser]) -> None:
    """Ask for what `--path` and `--header` say, and let no test last for ever."""
    path = user_class.path

    def add_options(parser: Any, **_: Any) -> None:
        parser.set_defaults(num_users=1000, spawn_rate=200)
        for option in options.WAITING:
            option.add_to(parser, include_in_web_ui=False)

    def on_init(environment: Any, **_: Any) -> None:
        chosen = environment.parsed_options
        if chosen.run_time is None and chosen.hold is None:
            chosen.run_time = RUN_TIME_S

        def take(**_: Any) -> None:
            user_class.path = chosen.path or path
            user_class.fields = dict(map(values.header, chosen.header or ()))

        events.test_start.add_listener(take)

    events.init_command_line_parser.add_listener(add_options)
    events.init.add_listener(on_init)
