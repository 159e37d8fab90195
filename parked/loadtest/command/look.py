"""`python -m parked.loadtest.command.look`: Locust reads its words and the locustfile, and then ends.

Its own `--list` ends before it looks whether it has the classes that are named. `--show-task-ratio-json` ends
behind all such looks (`main` in `locust/main.py`); only what it prints is of no use here, and fails
for some tasks, so something else is done in its place.
"""

from __future__ import annotations

import sys
from typing import Any

from parked.shared.patching import packages_read_once


def _look(user_classes: list[Any], _users: int | None) -> None:
    chosen = argument_parser.get_parser().parse_args()
    had = [kind for kind in user_classes if kind.tasks]
    if idle := tasks.without(had, chosen.tags, chosen.exclude_tags):
        sys.exit(tasks.refusal(idle))


if __name__ == "__main__":
    with packages_read_once():
        from locust import argument_parser, main
    from parked.loadtest.plugin import tasks

    sys.argv = ["locust", *sys.argv[1:], "--show-task-ratio-json", "--skip-log-setup"]
    main.print_task_ratio_json = _look  # type: ignore[attr-defined]
    main.main()
