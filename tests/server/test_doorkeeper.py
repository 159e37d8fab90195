from __future__ import annotations

from parked.server.doorkeeper import Doorkeeper


def test_who_comes_again_is_admitted() -> None:
    door = Doorkeeper(3)
    assert [door.admits(name) for name in "abab"] == [False, False, True, True]


def test_it_forgets_rather_than_to_grow() -> None:
    door = Doorkeeper(3)
    for number in range(100):
        assert not door.admits(number)
        assert len(door) <= 3
    assert door.admits(99)
    assert not door.admits(0)
    door.forget()
    assert len(door) == 0
    assert not door.admits(99)
