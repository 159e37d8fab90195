"""Which users would have nothing to do, once `--tags` and `--exclude-tags` are applied.

Locust applies them when a test starts (`filter_tasks_by_tags` in `locust/user/task.py`), takes the other
tasks out of the classes, and goes on with users that fail. This looks earlier, and leaves the classes as they
are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parked.loadtest.client.waiting import WaitingUser

if TYPE_CHECKING:
    from collections.abc import Iterable


def without(kinds: Iterable[Any], tags: Iterable[str] | None, exclude: Iterable[str] | None) -> list[str]:
    """Names of the classes that have no task left; the users of those that wait need none."""
    wanted, unwanted = set(tags or ()), set(exclude or ())
    return [
        kind.__name__
        for kind in kinds
        if not issubclass(kind, WaitingUser) and not _is_left(kind, wanted, unwanted)
    ]


def refusal(idle: list[str]) -> str:
    """A sentence that tells of them."""
    return (
        f"No tasks defined in {', '.join(idle)}: decorate a method with @task, or set tasks; with --tags or "
        "--exclude-tags, name classes that have some"
    )


def _is_left(holder: Any, wanted: set[str], unwanted: set[str]) -> bool:
    """Whether a class of users or tasks has a task that is left."""
    if type(holder).__name__ == "MarkovTaskSetMeta":  # it keeps them elsewhere, and Locust tells it so too
        return True
    for task in holder.tasks:
        if hasattr(task, "tasks"):
            if _is_left(task, wanted, unwanted):
                return True
            continue
        tagged: set[str] = getattr(task, "locust_tag_set", set())
        if (not wanted or tagged & wanted) and not tagged & unwanted:
            return True
    return False
