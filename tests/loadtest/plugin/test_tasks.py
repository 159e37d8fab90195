"""Users that have nothing to do are the same to us as to Locust, once it has applied tags."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from locust import TaskSet, User, tag, task
from locust.user.task import filter_tasks_by_tags

from parked.loadtest.plugin import tasks


def classes() -> dict[str, Any]:
    """Made anew each time: Locust takes tasks out of them."""

    class Flat(User):
        @tag("one", "both")
        @task
        def one(self) -> None: ...

        @tag("two", "both")
        @task
        def two(self) -> None: ...

    class Nested(User):
        @tag("outer")
        @task
        class Steps(TaskSet):
            @tag("inner")
            @task
            def step(self) -> None: ...

    class Untagged(User):
        @task
        def plain(self) -> None: ...

    class Hollow(User):
        tasks = [type("Empty", (TaskSet,), {})]  # noqa: RUF012

    return {kind.__name__: kind for kind in (Flat, Nested, Untagged, Hollow)}


@pytest.mark.parametrize("kind", ["Flat", "Nested", "Untagged", "Hollow"])
@pytest.mark.parametrize("wanted", [None, ["one"], ["both"], ["outer"], ["inner"], ["nosuch"]])
@pytest.mark.parametrize("unwanted", [None, ["two"], ["both"], ["outer"], ["inner"], ["nosuch"]])
def test_who_is_left_without_tasks_is_as_locust_has_it(
    kind: str, wanted: list[str] | None, unwanted: list[str] | None
) -> None:
    made = classes()[kind]
    before = copy.copy(made.tasks)
    named = tasks.without([made], wanted, unwanted)
    assert made.tasks == before
    filter_tasks_by_tags(
        made, None if wanted is None else set(wanted), None if unwanted is None else set(unwanted)
    )
    assert named == ([] if made.tasks else [kind])
