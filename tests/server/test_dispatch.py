from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.local import local
from gevent.pool import Pool
from greenlet import getcurrent

from parked.server import dispatch
from parked.server.dispatch import RequestGreenlets
from tests.support import eventually

#: The queue does not look into its connections.
Names = list[Any]


class Recorder:
    """A `serve` that records who served what, and that blocks where it is told to."""

    def __init__(self) -> None:
        self.served: Names = []
        self.greenlets: set[Any] = set()
        self.blocked: dict[Any, Event] = {}

    def __call__(self, name: Any) -> None:
        self.greenlets.add(id(getcurrent()))  # whoever refers to it keeps it from being reused
        if name in self.blocked:
            self.blocked[name].wait()
        self.served.append(name)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def put(greenlets: RequestGreenlets, *names: Any) -> None:
    """As the hub does."""
    gevent.get_hub().loop.run_callback(greenlets.put, names)


def test_connections_are_served_in_order_by_one_greenlet_that_is_reused(recorder: Recorder) -> None:
    greenlets = RequestGreenlets(recorder, gevent.spawn)
    for start in range(0, 100, 10):
        put(greenlets, *range(start, start + 10))
        eventually(lambda end=start + 10: len(recorder.served) == end)
    assert recorder.served == list(range(100))
    assert len(recorder.greenlets) == 1
    greenlets.stop()
    gevent.sleep(0)


def test_a_blocked_application_does_not_hold_up_the_queue(recorder: Recorder) -> None:
    recorder.blocked = {"slow": Event(), "slower": Event()}
    greenlets = RequestGreenlets(recorder, gevent.spawn)
    put(greenlets, "slow", "a", "slower", "b")
    eventually(lambda: recorder.served == ["a", "b"])
    assert greenlets.active == 2
    recorder.blocked["slower"].set()
    eventually(lambda: recorder.served == ["a", "b", "slower"])
    recorder.blocked["slow"].set()
    eventually(lambda: greenlets.active == 0)
    greenlets.stop()
    gevent.sleep(0)


def test_a_greenlet_that_was_blocked_does_not_hold_up_what_was_queued_meanwhile(recorder: Recorder) -> None:
    recorder.blocked = {"first": Event(), "second": Event()}
    greenlets = RequestGreenlets(recorder, None, Pool(1))
    put(greenlets, "first")
    eventually(lambda: greenlets.active == 1)
    put(greenlets, "second", "third")
    gevent.sleep(0.01)
    recorder.blocked["first"].set()
    recorder.blocked["second"].set()
    eventually(lambda: recorder.served == ["first", "second", "third"])
    greenlets.stop()
    gevent.sleep(0)


def test_the_limit_bounds_the_greenlets_and_the_rest_waits_its_turn(recorder: Recorder) -> None:
    recorder.blocked = {name: Event() for name in range(5)}
    greenlets = RequestGreenlets(recorder, None, Pool(2))
    put(greenlets, *range(5))
    eventually(lambda: len(recorder.greenlets) == 2)
    gevent.sleep(0.02)
    assert len(recorder.greenlets) == 2
    for event in recorder.blocked.values():
        event.set()
    eventually(lambda: sorted(recorder.served) == [0, 1, 2, 3, 4])
    assert len(recorder.greenlets) <= 3  # and one that waited for its place
    greenlets.stop()
    gevent.sleep(0)


def test_what_is_put_back_is_served_after_the_others_and_after_the_loop_has_been_round() -> None:
    served: Names = []
    greenlets: RequestGreenlets

    def serve(name: Any) -> None:
        served.append(name)
        if served.count("greedy") < 4 and name == "greedy":
            gevent.get_hub().loop.run_callback(served.append, "loop")
            greenlets.put_back(name)

    greenlets = RequestGreenlets(serve, gevent.spawn)
    put(greenlets, "greedy", "modest")
    eventually(lambda: served.count("greedy") == 4)
    assert served[:2] == ["greedy", "modest"]
    assert "loop" in served[: served.index("greedy", 2)]
    greenlets.stop()
    gevent.sleep(0)


def test_without_spawn_the_hub_serves(recorder: Recorder) -> None:
    greenlets = RequestGreenlets(recorder, None)
    put(greenlets, 1, 2)
    eventually(lambda: recorder.served == [1, 2])
    assert recorder.greenlets == {id(gevent.get_hub())}


def test_stopping_ends_all_waiting_greenlets_and_busy_ones_after_their_request(recorder: Recorder) -> None:
    pool = Pool(5)
    recorder.blocked = {"slow": Event(), "slower": Event()}
    greenlets = RequestGreenlets(recorder, pool.spawn, pool)
    put(greenlets, "slow", "slower", "x")
    eventually(lambda: recorder.served == ["x"])
    recorder.blocked["slow"].set()
    eventually(lambda: "slow" in recorder.served)
    greenlets.stop()
    eventually(lambda: len(pool) == 1)
    recorder.blocked["slower"].set()
    eventually(lambda: len(pool) == 0)


def test_after_a_burst_only_some_greenlets_are_kept(recorder: Recorder) -> None:
    names = range(dispatch.MAX_WAITING + 30)
    recorder.blocked = {name: Event() for name in names}
    pool = Pool()
    greenlets = RequestGreenlets(recorder, pool.spawn)
    put(greenlets, *names)
    eventually(lambda: len(pool) == len(names))
    for event in recorder.blocked.values():
        event.set()
    eventually(lambda: len(recorder.served) == len(names))
    eventually(lambda: len(pool) == dispatch.MAX_WAITING)
    greenlets.stop()
    pool.join(5)
    assert len(pool) == 0


def test_a_killed_waiting_greenlet_is_forgotten(recorder: Recorder) -> None:
    pool = Pool()
    greenlets = RequestGreenlets(recorder, pool.spawn)
    put(greenlets, 1)
    eventually(lambda: recorder.served == [1])
    pool.kill()
    put(greenlets, 2)
    eventually(lambda: recorder.served == [1, 2])
    greenlets.stop()
    pool.join(5)


def test_a_pool_shared_with_others_is_waited_for_in_a_greenlet_and_left_when_idle(recorder: Recorder) -> None:
    pool = Pool(2)
    foreign = Event()
    one, other = (RequestGreenlets(recorder, pool.spawn, pool) for _ in range(2))
    put(one, "a")
    put(other, "b")
    eventually(lambda: sorted(recorder.served) == ["a", "b"])
    jobs = [pool.spawn(foreign.wait) for _ in range(2)]  # would wait for ever if the idle kept their places
    put(one, "c", "d")
    put(other, "e")
    gevent.sleep(0.02)
    assert len(recorder.served) == 2
    foreign.set()
    eventually(lambda: sorted(recorder.served) == ["a", "b", "c", "d", "e"])
    gevent.joinall(jobs)
    one.stop()
    other.stop()
    gevent.sleep(0)
    assert len(pool) == 0


def test_a_spawn_that_fails_is_tried_again_and_costs_nobody_anything(recorder: Recorder) -> None:
    faults: list[str] = []
    failures = [MemoryError(), RuntimeError("full")]

    def spawn(run: Any) -> Any:
        if failures:
            raise failures.pop()
        return gevent.spawn(run)

    greenlets = RequestGreenlets(recorder, spawn, None, lambda what, error: faults.append(repr(error)))
    put(greenlets, 1, 2)
    eventually(lambda: recorder.served == [1, 2])
    assert faults == ["RuntimeError('full')", "MemoryError()"]
    greenlets.stop()
    gevent.sleep(0)


@pytest.mark.parametrize("pooled", [False, True])
def test_nothing_that_a_request_leaves_on_its_greenlet_meets_the_next_one(pooled: bool) -> None:
    mine = local()
    seen: list[Any] = []

    def serve(leaves: Any) -> None:
        seen.append(getattr(mine, "value", None))
        leaves()

    def leave_local() -> None:
        mine.value = "left"

    def leave_timeout() -> None:
        gevent.Timeout(0.02).start()

    def block() -> None:
        gevent.sleep(0.03)

    pool = Pool(1) if pooled else None
    greenlets = RequestGreenlets(serve, gevent.spawn, pool)
    for names in ([leave_local, block, leave_timeout, block], [leave_timeout], [block]):
        served = len(seen)
        put(greenlets, *names)
        eventually(lambda: len(seen) == served + len(names) and not greenlets.active)  # noqa: B023
    assert seen == [None] * 6
    greenlets.stop()
    gevent.sleep(0)


def test_a_greenlet_that_ends_in_an_error_does_not_keep_the_others_from_ending(recorder: Recorder) -> None:
    faults: list[tuple[str, BaseException]] = []
    greenlets = RequestGreenlets(recorder, gevent.spawn, on_fault=lambda *fault: faults.append(fault))

    class Broken:
        ended = False

        def switch(self, _: bool) -> None:
            self.ended = True
            raise RuntimeError("on purpose")

    both = [Broken(), Broken()]
    greenlets._waiting += [dispatch._Waiting(greenlet) for greenlet in both]
    greenlets.stop()
    eventually(lambda: all(greenlet.ended for greenlet in both))
    eventually(lambda: [what for what, _ in faults] == ["ending a request greenlet"] * 2)
