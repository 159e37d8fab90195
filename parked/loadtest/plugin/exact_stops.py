"""Users of other classes that are stopped while they wait: none is cut off in a request that nobody counts.

Upstream: `User.stop` has gevent kill a user that waits (`Group.killone`), by a callback of the event loop.
Timers that are due run before that, and where many are stopped, gevent looks at them in between: who was to
be killed may have waited long enough and sent a request, which the server counts and Locust does not. Here
the look and the end are one step. Who is found in a task finishes it, as upstream has it for others.

This is for measurements alone: with `--results`, and where a KeepAliveUser takes part.
"""

from __future__ import annotations

import functools
from typing import Any

import gevent
from gevent.event import Event
from locust import User
from locust.user.task import LOCUST_STATE_RUNNING, LOCUST_STATE_STOPPING, LOCUST_STATE_WAITING

from parked.loadtest.client.user import KeepAliveUser
from parked.loadtest.terms import options as of_ours


def stop_who_waits() -> None:
    """Replace `User.stop` for users that wait."""
    usual = User.stop

    @functools.wraps(usual)
    def stop(user: User, force: bool = False) -> bool:
        waits = user._state == LOCUST_STATE_WAITING and not isinstance(user, KeepAliveUser)
        if force or not waits or not is_measured(user.environment):
            return bool(usual(user, force))
        return _stop(user)

    User.stop = stop  # type: ignore[assignment,method-assign]


def is_measured(environment: Any) -> bool:
    """Whether the counts of a run with KeepAliveUsers are kept and compared."""
    options = environment.parsed_options
    return bool(options is not None and of_ours.ours(options).results) and any(
        issubclass(kind, KeepAliveUser) for kind in environment.user_classes
    )


def _stop(user: Any) -> bool:
    """Whether it was ended; if not, it ends after its task."""
    greenlet, group = user.greenlet, user.group
    looked = Event()

    def look() -> None:
        """In the hub, which is where a wait would end: none does meanwhile."""
        try:
            if user._state == LOCUST_STATE_RUNNING:
                user._state = LOCUST_STATE_STOPPING
            elif user._state == LOCUST_STATE_WAITING and greenlet in group and greenlet not in group.dying:
                group.dying.add(greenlet)
                greenlet.throw(gevent.GreenletExit)
        finally:
            looked.set()

    gevent.get_hub().loop.run_callback(look)
    looked.wait()
    if user._state == LOCUST_STATE_STOPPING:
        return False
    greenlet.join()
    return True
