"""What every locustfile with KeepAliveUsers brings into Locust; the first class of theirs installs it.

The adjustments for scale, the options (`--think`, `--hold`, `--results`, ...), the recorder on the master,
and the tab in its web UI.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any

import gevent
from locust import events
from locust.runners import MasterRunner, WorkerRunner

from parked.loadtest.client.process import Process
from parked.loadtest.master import recorder
from parked.loadtest.plugin import adjustments, connections_tab, metrics, options, strangers, tasks
from parked.loadtest.terms import options as of_ours
from parked.loadtest.terms import values, variables
from parked.shared import old_names

if TYPE_CHECKING:
    from parked.loadtest.client.user import KeepAliveUser


@functools.cache
def install(user_class: type[KeepAliveUser]) -> None:
    """Install everything, once a process; `user_class` and its heirs get `--think` and `--insecure`."""
    adjustments.apply()
    strangers.keep_out()
    if variables.REPORT not in os.environ:  # run_test has said it
        for hint in old_names.hints(os.environ):
            print(hint, file=sys.stderr)

    def on_init(environment: Any, **_: Any) -> None:
        if environment.parsed_options is None:  # made by a program, which has no command line
            return
        # Locust is about to start the timer of --run-time, which counts from when the event loop last looked
        # at the clock: before all imports, which take seconds where cores are short.
        gevent.get_hub().loop.update_now()
        # Locust forks its workers without --csv; before 2.46 one that finds --csv-full-history then gives up.
        if isinstance(environment.runner, WorkerRunner):
            environment.parsed_options.stats_history_enabled = False

        _refuse_without_tasks(environment)

        def take_options(**_: Any) -> None:
            chosen = of_ours.ours(environment.parsed_options)
            user_class.think_time = values.think_time(chosen.think)
            user_class.insecure = chosen.insecure

        def take_part(**_: Any) -> None:
            # Also a worker in which there are only users of other classes: their requests have to be told
            # apart, and reported to the end.
            if not isinstance(environment.runner, MasterRunner):
                Process.of(environment)

        events.test_start.add_listener(take_options)
        events.test_start.add_listener(take_part)
        events.spawning_complete.add_listener(take_options)  # the web UI's form has it also in a run

    events.init.add_listener(on_init)  # first: the recorder reads the think time when a run begins
    recorder.attach(events)
    connections_tab.attach(events)
    metrics.attach(events)
    events.init_command_line_parser.add_listener(options.add_locust_options)


def _refuse_without_tasks(environment: Any) -> None:
    """A measurement of users that do nothing ends before it begins; Locust would go on with it."""
    chosen = environment.parsed_options
    # A script may have set those of the environment, which win over what was chosen.
    tags = chosen.tags if environment.tags is None else environment.tags
    exclude = chosen.exclude_tags if environment.exclude_tags is None else environment.exclude_tags
    idle = tasks.without(environment.user_classes, tags, exclude)
    if idle and of_ours.ours(chosen).results:
        sys.exit(tasks.refusal(idle))
