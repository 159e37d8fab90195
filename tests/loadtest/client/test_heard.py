"""HeardByProcess: gaps, repeats and order in numbers, and the spans of broadcasts."""

from __future__ import annotations

import time

import msgpack
import pytest

from parked.loadtest.client.event_stream import Event
from parked.loadtest.client.heard import HeardByProcess
from parked.loadtest.terms.histogram import merge, new_histogram
from parked.loadtest.terms.sample import MOST_BROADCASTS, Heard
from parked.loadtest.terms.shape import wrong


def event(number: int | str | None, sent: float | None = None) -> Event:
    id_ = None if number is None else str(number).encode()
    return Event(id_, b"", number if isinstance(number, int) else None, sent)


def hear(heard: HeardByProcess, *numbers: int | str | None) -> None:
    last: Event | None = None
    for number in numbers:
        last = heard.take(last, event(number))


@pytest.mark.parametrize(
    ("numbers", "lost", "repeated", "disordered", "unnumbered"),
    [
        ((1, 2, 3), 0, 0, 0, 0),
        ((7,), 0, 0, 0, 0),
        ((1, 2, 5, 6), 2, 0, 0, 0),
        ((1, 2, 2, 3), 0, 1, 0, 0),
        ((1, 2, 3, 2, 4), 0, 0, 1, 0),
        ((1, None, 2, None), 0, 0, 0, 2),
        ((1, "", "", 2), 0, 0, 0, 2),  # none, as an EventSource reads it
        (("a", "b", "b", "c"), 0, 1, 0, 0),
        ((5, 9, 10), 3, 0, 0, 0),  # the gap was there before it was known to be one
        ((1000, 2000, 3500), 0, 0, 0, 0),  # ids that do not count up by one: nothing can be said of gaps
    ],
)
def test_what_is_wrong_with_a_streams_numbers_is_counted(
    numbers: tuple[int | str | None, ...], lost: int, repeated: int, disordered: int, unnumbered: int
) -> None:
    heard = HeardByProcess()
    hear(heard, *numbers)
    sample = heard.sample()
    assert sample["events"] == len(numbers)
    assert sample["events_lost"] == lost
    assert sample["events_repeated"] == repeated
    assert sample["events_disordered"] == disordered
    assert sample["events_unnumbered"] == unnumbered
    assert not wrong(sample, Heard)


def test_an_event_is_timed_from_its_sending_and_its_broadcast_spans_all_streams() -> None:
    heard = HeardByProcess()
    sent = time.time() - 0.5
    for _ in range(3):
        heard.take(None, event(1, sent))
    sample = heard.sample()
    histogram = new_histogram()
    merge(histogram, sample["deliveries"])
    assert histogram.get_total_count() == 3
    assert 0.5 <= histogram.get_value_at_percentile(50) / 1e6 < 5
    ((id_, said, first, last, count),) = sample["broadcasts"]
    assert (id_, said, count) == ("1", sent, 3)
    assert sent + 0.5 <= first <= last
    later = heard.sample()
    assert (later["deliveries"], later["broadcasts"], later["events"]) == (b"", [], 3)


def test_an_event_that_comes_twice_is_delivered_once() -> None:
    heard = HeardByProcess()
    first = heard.take(None, event(1, time.time()))
    assert heard.take(first, event(1, time.time())) == first
    assert [broadcast[4] for broadcast in heard.sample()["broadcasts"]] == [1]


def test_a_time_that_cannot_be_one_of_sending_is_left_out() -> None:
    heard = HeardByProcess()
    heard.take(None, event(1, 5.0))
    heard.take(None, event(2, time.time() + 1e6))
    assert heard.sample()["deliveries"] == b""


def test_very_many_different_ids_are_told_up_to_a_bound() -> None:
    heard = HeardByProcess()
    hear(heard, *range(1000))
    sample = heard.sample()
    assert sample["events"] == 1000
    assert len(sample["broadcasts"]) == MOST_BROADCASTS


def test_streams_are_counted_with_the_fewest_since_the_last_sample() -> None:
    heard = HeardByProcess()
    for _ in range(5):
        heard.stream_began()
    heard.sample()
    heard.stream_ended()
    heard.stream_ended()
    heard.stream_began()
    sample = heard.sample()
    assert (sample["streams"], sample["streams_min"]) == (4, 3)


def test_what_every_stream_hears_alike_is_counted_for_each_of_them() -> None:
    heard = HeardByProcess()
    first, second, third = event(1), event(2), event(3)
    for _ in range(2):  # sample() in between, for what is told is told once
        lasts = [heard.take(heard.take(None, first), second) for _ in range(4)]
        assert lasts == [second] * 4
        assert [heard.take(last, third) for last in lasts] == [third] * 4
        assert heard.take(third, third) is third  # a repeat is no part of it
        sample = heard.sample()
        assert [(told[0], told[4]) for told in sample["broadcasts"]] == [("1", 4), ("2", 4), ("3", 4)]
    assert (sample["events"], sample["events_lost"], sample["events_repeated"]) == (26, 0, 2)


def test_a_gap_is_counted_for_each_stream_that_has_it() -> None:
    heard = HeardByProcess()
    hear(heard, 1, 2)
    before, behind = event(2), event(5)
    for _ in range(3):
        heard.take(before, behind)
    assert heard.sample()["events_lost"] == 6


def test_numbers_of_a_servers_own_choice_stay_within_what_a_message_holds() -> None:
    heard = HeardByProcess()
    hear(heard, 1, 2)
    for _ in range(30):
        heard.take(event(2), event(10**18 - 1))
    assert len(msgpack.dumps(heard.sample()["events_lost"])) == 9


def test_a_broadcast_may_wait_for_a_share_of_the_time_that_it_has_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = HeardByProcess()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    one = event(1)
    for passed_s, pause_s in ((0.0, 0.0), (0.2, 0.02), (5.0, 0.06)):
        now += passed_s
        heard.take(None, one)
        heard.take(None, one)
        assert heard.pause_s() == pytest.approx(pause_s)
        assert heard.pause_s() == 0.0  # nothing has come since
    heard.take(one, event(2))  # another one begins
    heard.take(one, event(2))
    assert heard.pause_s() == 0.0
