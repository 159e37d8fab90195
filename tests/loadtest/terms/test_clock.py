"""The distance of two clocks, from messages that go there and back."""

from __future__ import annotations

import random

import pytest

from parked.loadtest.terms import clock as clock_module
from parked.loadtest.terms.clock import EXCHANGES, Clock, step_s, unix_time_s


def test_time_goes_on_when_the_wall_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before_s = unix_time_s()
    now = clock_module.time()
    monkeypatch.setattr(clock_module, "time", lambda: now - 3600)
    assert before_s <= unix_time_s() < before_s + 10
    assert step_s() == pytest.approx(-3600, abs=10)


def test_nothing_is_known_before_an_exchange() -> None:
    assert Clock().offset is None


def test_the_quickest_exchange_decides_and_bounds_the_error() -> None:
    drawn, clock, ahead_s = random.Random(3), Clock(), 2.5
    sent_s = 1000.0
    for _ in range(EXCHANGES):
        there_s, back_s = drawn.uniform(0.001, 0.3), drawn.uniform(0.001, 0.3)
        clock.exchanged(sent_s, sent_s + there_s + ahead_s, sent_s + there_s + back_s)
        sent_s += 1
    assert clock.offset is not None
    assert abs(clock.offset.offset_s - ahead_s) <= clock.offset.error_s
    for _ in range(5):
        clock.exchanged(sent_s, sent_s + 0.001 + ahead_s, sent_s + 0.002)
        sent_s += 1
    assert clock.offset.offset_s == pytest.approx(ahead_s)
    assert clock.offset.error_s == pytest.approx(0.001)


def test_a_clock_that_was_set_is_believed_after_some_exchanges() -> None:
    clock = Clock()
    clock.exchanged(10.0, 10.0, 10.0)
    for second in range(EXCHANGES):
        clock.exchanged(11.0 + second, 71.0 + second, 11.002 + second)
    assert clock.offset is not None
    assert clock.offset.offset_s == pytest.approx(60.0, abs=0.01)


def test_an_answer_from_before_its_question_is_no_exchange() -> None:
    clock = Clock()
    clock.exchanged(100.0, 100.0, 40.0)
    assert clock.offset is None
