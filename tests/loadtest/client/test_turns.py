"""Turns: borrowed greenlets, and handles that stand for users in Locust's group."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent.event import Event
from gevent.pool import Group
from greenlet import getcurrent, greenlet

from parked.loadtest.client import turns
from parked.loadtest.client.turns import TurnPool, UserHandle
from tests.loadtest.peers import eventually


def in_hub(function: Any, *args: Any) -> None:
    """Call it in the hub, as timers do, and let it pass."""
    gevent.get_hub().loop.run_callback(function, *args)
    gevent.sleep(0)


class User:
    """What a handle needs of a user."""

    def __init__(self) -> None:
        self.ended: list[Any] = []
        self.handle = UserHandle(self)  # type: ignore[arg-type]

    def _end(self, exception: Any) -> None:
        self.ended.append(exception)


def test_turns_share_a_greenlet_when_none_blocks() -> None:
    pool, ran = TurnPool(), []
    for number in range(5):
        in_hub(pool.run, lambda number=number: ran.append((number, getcurrent())))
    assert [number for number, _ in ran] == [0, 1, 2, 3, 4]
    assert len({id(turn) for _, turn in ran}) == 1


def test_as_many_greenlets_as_turns_are_under_way_at_once() -> None:
    pool, ran = TurnPool(), []

    def turn(seconds: float) -> None:
        gevent.sleep(seconds)
        ran.append(getcurrent())

    for _ in range(10):
        in_hub(pool.run, turn, 0.02)
    eventually(lambda: len(ran) == 10)
    assert len({id(one) for one in ran}) == len(pool._idle) == 10
    in_hub(pool.run, turn, 0.0)
    eventually(lambda: len(ran) == 11)
    assert len(pool._idle) == 10


def test_greenlets_beyond_the_bound_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "IDLE_MAX", 3)
    pool, ran, all_run = TurnPool(), [], Event()
    for _ in range(10):
        in_hub(pool.run, lambda: (all_run.wait(), ran.append(1)))
    all_run.set()
    eventually(lambda: len(ran) == 10)
    assert len(pool._idle) == 3


def test_idle_greenlets_are_given_back_bit_by_bit_until_a_few_are_left() -> None:
    pool, ran, all_run = TurnPool(), [], Event()
    for _ in range(100):
        in_hub(pool.run, lambda: (all_run.wait(), ran.append(getcurrent())))
    all_run.set()
    eventually(lambda: len(ran) == 100)
    last = pool._idle[-1]
    pool.give_back()
    gevent.sleep(0)
    assert (len(pool._idle), sum(one.dead for one in ran)) == (90, 10)
    for _ in range(50):
        pool.give_back()
        gevent.sleep(0)
    assert len(pool._idle) == turns.GIVEN_BACK - 1
    in_hub(pool.run, lambda: ran.append(getcurrent()))
    assert ran[-1] is last, "the last that was used is the first to be used again"


@pytest.mark.parametrize("exception", [KeyError("x"), GreenletExit(), gevent.Timeout(None, "t")])
def test_an_exception_ends_the_turn_and_not_the_greenlet(
    exception: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, ran = TurnPool(), []
    handled: list[Any] = []
    monkeypatch.setattr(pool._hub, "handle_error", lambda *details: handled.append(details[1]))

    def fails() -> None:
        raise exception

    in_hub(pool.run, fails)
    in_hub(pool.run, ran.append, 1)
    assert ran == [1]
    assert len(pool._idle) == 1
    assert handled == ([] if isinstance(exception, GreenletExit) else [type(exception)])


def test_a_timeout_that_a_task_left_behind_hits_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ran = TurnPool(), []
    handled: list[Any] = []
    monkeypatch.setattr(pool._hub, "handle_error", lambda *details: handled.append(details[1]))
    in_hub(pool.run, lambda: gevent.Timeout(0.02).start())
    eventually(lambda: handled)
    in_hub(pool.run, ran.append, 1)
    assert (ran, handled) == ([1], [gevent.Timeout])


def test_run_soon_may_be_called_from_anywhere() -> None:
    pool, ran = TurnPool(), []
    pool.run_soon(ran.append, 1)
    assert ran == []
    eventually(lambda: ran == [1])


# Handles


def test_a_handle_is_in_its_group_until_its_user_has_ended() -> None:
    group, user = Group(), User()
    group.add(user.handle)
    assert (len(group), list(group), user.handle.args) == (1, [user.handle], (user,))
    assert not user.handle.ready()
    user.handle.finish()
    gevent.sleep(0)
    assert len(group) == 0
    assert user.handle.ready()
    assert user.handle.dead


def test_killing_a_group_ends_its_users_and_waits_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    group, users = Group(), [User() for _ in range(3)]
    for user in users:
        group.add(user.handle)
        user._end = lambda exception, user=user: gevent.spawn_later(0.02, user.handle.finish)  # type: ignore[method-assign]
    group.kill(timeout=30)
    assert len(group) == 0
    assert not capsys.readouterr().err
    assert all(user.handle.dead for user in users)


def test_kill_without_block_returns_at_once_and_a_join_may_time_out() -> None:
    user = User()
    user.handle.kill(block=False)
    assert user.ended == [GreenletExit]
    assert not user.handle.dead
    user.handle.join(timeout=0.02)
    assert not user.handle.dead
    user.handle.finish()
    user.handle.kill()
    user.handle.join()
    assert user.ended == [GreenletExit], "the dead are not killed again"


def test_links_are_called_once_at_the_end_or_right_away_after_it() -> None:
    user, called, taken_back = User(), [], []
    other = called.append
    user.handle.rawlink(other)
    user.handle.rawlink(taken_back.append)
    user.handle.unlink(taken_back.append)
    user.handle.finish()
    user.handle.finish()
    gevent.sleep(0)
    assert (called, taken_back) == ([user.handle], [])
    user.handle.rawlink(other)
    gevent.sleep(0)
    assert called == [user.handle, user.handle]


def test_an_exception_is_thrown_into_the_turn_that_was_meant() -> None:
    user, caught = User(), []

    def turn() -> None:
        try:
            gevent.sleep(60)
        except GreenletExit as exception:
            caught.append(exception)

    pool = TurnPool()
    in_hub(pool.run, lambda: (setattr(user.handle, "turn", getcurrent()), turn()))
    mine = user.handle.turn
    assert mine is not None
    in_hub(user.handle.throw, greenlet(lambda: None), GreenletExit)  # of a turn that is over
    assert caught == []
    assert user.ended == [GreenletExit], "the user is ended at rest instead"
    in_hub(user.handle.throw, mine, GreenletExit)
    assert len(caught) == 1


def test_a_turn_does_not_wait_for_itself() -> None:
    user, done = User(), []

    def turn() -> None:
        user.handle.turn = getcurrent()
        user.handle.join()
        done.append(1)

    in_hub(TurnPool().run, turn)
    eventually(lambda: done == [1])
