from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from locust.env import Environment

from parked.loadtest.client import readiness as readiness_module
from parked.loadtest.client.process import Process
from parked.loadtest.client.readiness import Readiness
from parked.loadtest.client.session import KeepAliveSession
from parked.loadtest.plugin import adjustments
from parked.loadtest.terms.sample import MESSAGE
from parked.user import KeepAliveUser
from tests.loadtest import browser

NewSession = Callable[..., KeepAliveSession]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """A Locust without workers, as `locust -f ... --headless` has it, whose Process ends with the test."""
    monkeypatch.setattr(readiness_module, "SWEEP_S", 0.02)  # so that tests need not wait for timeouts
    adjustments.apply()
    thresholds = gc.get_threshold()
    environment = Environment()
    runner = environment.create_local_runner()
    runner.register_message(MESSAGE, lambda environment, msg: None)
    spawned: list[Any] = []
    spawn = gevent.spawn
    with monkeypatch.context() as patch:
        patch.setattr(gevent, "spawn", lambda *args: spawned.append(spawn(*args)) or spawned[-1])
        process = Process.of(environment)
    yield environment
    runner.quit()
    gevent.killall(spawned)
    process.timer.close()
    process.readiness.close()
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture
def readiness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Readiness]:
    """One without a Process, whose timeouts are looked at often."""
    monkeypatch.setattr(readiness_module, "SWEEP_S", 0.02)
    made = Readiness()
    yield made
    made.close()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    """A real browser, if this machine has one."""
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def process(environment: Environment) -> Process:
    return Process.of(environment)


@pytest.fixture
def fired(environment: Environment) -> list[dict[str, Any]]:
    """The request events that a listener gets, beside Locust's own."""
    events: list[dict[str, Any]] = []
    environment.events.request.add_listener(lambda **event: events.append(event))
    return events


@pytest.fixture
def new_session(environment: Environment) -> Iterator[NewSession]:
    """Makes clients: `new_session(url, network_timeout=1.0)`, the rest being attributes of the user class."""
    made: list[KeepAliveSession] = []

    def new(url: str, **attributes: Any) -> KeepAliveSession:
        user_class = type("User", (KeepAliveUser,), {"host": url, "network_timeout": 5.0, **attributes})
        made.append(user_class(environment).client)
        return made[-1]

    yield new
    for session in made:
        session.close()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports as without matplotlib: to draw a run takes longer than all else that is made of it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
