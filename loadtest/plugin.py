"""What every locustfile with KeepAliveUsers brings into Locust; importing :mod:`loadtest.user` installs it.

The adjustments for scale, the options (`--think`, `--hold`, `--results`, ...), and the recorder on the
master.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from locust import events

from loadtest import locust_scale, options, recorder

if TYPE_CHECKING:
    from loadtest.user import KeepAliveUser


@functools.cache
def install(user_class: type[KeepAliveUser]) -> None:
    """Install everything, once a process; `--think` becomes the think time of `user_class` and its heirs."""
    locust_scale.apply()
    recorder.attach(events)
    events.init_command_line_parser.add_listener(options.add_locust_options)

    def take_think_time(environment: Any, **_: Any) -> None:
        user_class.think_time = options.think_time(environment.parsed_options.think)

    events.test_start.add_listener(take_think_time)
