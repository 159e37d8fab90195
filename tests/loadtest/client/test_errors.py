"""Failures by kind, and that docs/errors.md has them all."""

from __future__ import annotations

import re
from pathlib import Path

from locust.stats import StatsError

from parked.loadtest.client import errors
from parked.loadtest.client.errors import KINDS, RequestFailure, kind_of

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"


def failures() -> list[type[RequestFailure]]:
    found = [RequestFailure]
    for failure in found:
        found += failure.__subclasses__()
    return [failure for failure in found if failure.__module__ == errors.__name__]


def test_every_failure_has_a_kind_that_is_counted() -> None:
    assert {failure.kind for failure in failures()} == set(KINDS)
    assert len(set(KINDS)) == len(KINDS)


def test_what_is_no_failure_of_ours_is_of_the_kind_other() -> None:
    assert kind_of(ValueError()) == kind_of("text") == kind_of(OSError()) == "other"
    assert kind_of(errors.CutOff("x")) == kind_of(errors.ClosedByPeer("x")) == "closed_by_peer"


def test_the_page_has_a_row_for_each_kind_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(KINDS)


def test_locust_keeps_one_row_for_failures_of_the_same_text() -> None:
    keys = {StatsError.create_key("GET", "/", errors.TimedOut("no answer in time")) for _ in range(3)}
    assert len(keys) == 1
