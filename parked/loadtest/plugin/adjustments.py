"""Every adjustment to Locust, each with its reason and the upstream code it answers.

Written for the Locust version below. :func:`apply` refuses any other, and refuses when one of the functions
that it stands in for has changed, since then nobody has looked whether the reason still holds. It is
idempotent.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import os
import signal
import time
import types
from typing import TYPE_CHECKING, Any

import gevent
import locust
from locust import argument_parser, runners
from locust.runners import STATE_RUNNING, STATE_SPAWNING, MasterRunner, Runner, WorkerRunner

from parked.loadtest.client.turns import UserHandle
from parked.loadtest.client.user import KeepAliveUser
from parked.loadtest.terms import variables
from parked.loadtest.terms.clock import unix_time_s
from parked.shared import out_of_memory
from parked.shared.children import end_with_parent
from parked.shared.descriptors import raise_nofile

if TYPE_CHECKING:
    from collections.abc import Callable


#: The version these adjustments were written for.
LOCUST_VERSION = "2.47.0"

#: First characters of the SHA-256 of each upstream function's source, to notice a change.
UPSTREAM: dict[str, tuple[Callable[..., Any] | property, str]] = {
    "argument_parser.default_args_dict": (argument_parser.default_args_dict, "e2bb0dc3de63"),
    "Runner.user_classes_count": (Runner.user_classes_count, "7fe2f3bab5fc"),
    "Runner.stop_users": (Runner.stop_users, "7c825b785ff3"),
    "Runner.spawn_users": (Runner.spawn_users, "3a06b59898b6"),
    "WorkerRunner.handle_message": (WorkerRunner.handle_message, "35cce2c6ddaa"),
    "MasterRunner.heartbeat_worker": (MasterRunner.heartbeat_worker, "40826c648165"),
    "MasterRunner.start": (MasterRunner.start, "4e8ae4842328"),
    "MasterRunner.stop": (MasterRunner.stop, "13390a98fc27"),
    "MasterRunner.quit": (MasterRunner.quit, "69367e86ece0"),
}

#: Heartbeats (of one second) that may stay out before a worker counts as missing. Upstream: 3. In a ramp a
#: worker is busy for longer than that, and calling it missing moves its users to the others, which are then
#: busy for longer.
HEARTBEAT_LIVENESS = 60

#: Heartbeats below zero after which upstream takes a missing worker off its list and starts the test anew on
#: the others, from the first user on (`MasterRunner.heartbeat_worker`). Upstream: -60. Never: a run of which
#: a worker or a host is gone goes on with what is left.
HEARTBEAT_DEAD = -math.inf

#: What a process says that ends for want of memory, made while there is some, and its exit code.
NO_MEMORY = b"loadtest: no memory left in this process: it ends, and its connections with it\n"
NO_MEMORY_EXIT = 12  # ENOMEM

#: Users stopped between two looks at the event loop: each closes a socket.
STOP_BATCH = 200


class UpstreamChanged(RuntimeError):
    """Locust is not the one that the adjustments were written for."""


def fingerprint(function: Callable[..., Any] | property) -> str:
    code: Any = function.fget if isinstance(function, property) else function
    return hashlib.sha256(inspect.getsource(inspect.unwrap(code)).encode()).hexdigest()[:12]


def check_upstream() -> None:
    """Raise :class:`UpstreamChanged` unless Locust is as it was when this module was written."""
    if locust.__version__ != LOCUST_VERSION:
        raise UpstreamChanged(
            f"parked/loadtest/plugin/adjustments.py was written for Locust {LOCUST_VERSION}, "
            f"this is {locust.__version__}: install the version of requirements.txt"
        )
    changed = [name for name, (function, known) in UPSTREAM.items() if fingerprint(function) != known]
    if changed:
        raise UpstreamChanged(
            f"Locust {LOCUST_VERSION} is not as published: {', '.join(changed)}; "
            "review parked/loadtest/plugin/adjustments.py"
        )


@functools.cache
def apply() -> None:
    """Make the adjustments."""
    check_upstream()
    raise_descriptor_limit()
    gevent.config.track_greenlet_tree = False
    cache_default_arguments()
    count_users_without_walking()
    stop_users_without_greenlets()
    end_in_order()
    end_with_master()
    end_without_memory()
    keep_time()
    runners.HEARTBEAT_LIVENESS = HEARTBEAT_LIVENESS
    runners.HEARTBEAT_DEAD_INTERNAL = HEARTBEAT_DEAD  # type: ignore[assignment]
    locust.events.init.add_listener(hear_interrupts)


def raise_descriptor_limit() -> None:
    """Raise the soft descriptor limit to the hard one.

    Upstream: `locust/main.py`, `minimum_open_file_limit = 10000`, which raises it to 10,000 only.
    """
    raise_nofile()


def cache_default_arguments() -> None:
    """Build Locust's argument parser once, not once an option and spawn message.

    Upstream: `WorkerRunner.handle_message`, case "spawn", calls `argument_parser.default_args_dict()` in the
    condition of a comprehension over all options. Unpatched it takes a worker 137 ms of CPU a message, of
    which a ramp sends one a second (56 options of 2.45 ms; docs/upstream/locust-default-arguments.md).
    """
    argument_parser.default_args_dict = functools.cache(argument_parser.default_args_dict)


def count_users_without_walking() -> None:
    """Know the number of users a class from a count, not from a walk over all users.

    Upstream: `Runner.user_classes_count`, called about six times a spawn message and once a report, each time
    over every user of the worker. Users that are not KeepAliveUsers are counted as upstream does.
    """
    walk = Runner.user_classes_count.fget  # type: ignore[attr-defined]

    def user_classes_count(runner: Runner) -> dict[str, int]:
        if not all(issubclass(user_class, KeepAliveUser) for user_class in runner.user_classes):
            return walk(runner)  # type: ignore[no-any-return]
        process = getattr(runner.environment, "parked_process", None)
        return {
            user_class.__name__: process.users[user_class.__name__] if process else 0
            for user_class in runner.user_classes
        }

    Runner.user_classes_count = property(user_classes_count)  # type: ignore[assignment,method-assign]


def stop_users_without_greenlets() -> None:
    """Stop users at rest directly.

    Upstream: `Runner.stop_users` spawns a greenlet a user to stop it, and another switch to join it. A
    KeepAliveUser at rest has nothing to interrupt: closing its connection is all. The rest is left to
    upstream.
    """
    upstream = Runner.stop_users

    def stop_users(runner: Runner, user_classes_stop_count: dict[str, int]) -> None:
        if not any(user_classes_stop_count.values()):
            return  # a ramp calls this with every spawn message: no walk over the users then
        left = dict(user_classes_stop_count)
        stopped = 0
        for handle in list(runner.user_greenlets):
            name = type(handle.args[0]).__name__ if isinstance(handle, UserHandle) else ""
            if left.get(name, 0) > 0 and not handle.dead and handle.turn is None:
                left[name] -= 1
                handle.kill(block=False)
                stopped += 1
                if stopped % STOP_BATCH == 0:
                    gevent.sleep(0)
        _let_own_turn_end(runner, left)
        upstream(runner, {name: count for name, count in left.items() if count > 0})

    Runner.stop_users = stop_users  # type: ignore[assignment,method-assign]


def _let_own_turn_end(runner: Runner, left: dict[str, int]) -> None:
    """A task that called `runner.quit()` is not killed by itself: it ends after its turn.

    Upstream compares `user.greenlet` with the current greenlet; a KeepAliveUser's is a handle.
    """
    current = gevent.getcurrent()
    for handle in list(runner.user_greenlets):
        if getattr(handle, "turn", None) is current:
            user = handle.args[0]
            if left.get(type(user).__name__, 0) > 0:
                left[type(user).__name__] -= 1
                user._state = "stopping"


def end_in_order() -> None:
    """Let a master that quits wait for its workers' last figures, and end a ramp that is under way first.

    Upstream: `MasterRunner.quit` sends "quit" and sleeps 0.5 s "for final stats report from all workers";
    closing 18,000 connections takes a worker longer than that, and what it had still to report is lost.
    `MasterRunner.start` runs in a greenlet that `stop` does not end: interrupted in a ramp, it goes on to
    spawn users that were just stopped.
    """
    upstream_start, upstream_stop, upstream_quit = MasterRunner.start, MasterRunner.stop, MasterRunner.quit

    def start(runner: MasterRunner, *arguments: Any, **options: Any) -> None:
        runner.parked_start = gevent.getcurrent()  # type: ignore[attr-defined]
        try:
            upstream_start(runner, *arguments, **options)
        finally:
            runner.parked_start = None  # type: ignore[attr-defined]

    def stop(runner: MasterRunner, send_stop_to_client: bool = True) -> None:
        ramp = getattr(runner, "parked_start", None)
        if ramp is not None and ramp is not gevent.getcurrent():
            gevent.kill(ramp)
        upstream_stop(runner, send_stop_to_client)

    def quit(runner: MasterRunner) -> None:
        if runner.state in (STATE_SPAWNING, STATE_RUNNING):
            stop(runner)
        upstream_quit(runner)

    MasterRunner.start = start  # type: ignore[assignment,method-assign]
    MasterRunner.stop = stop  # type: ignore[assignment,method-assign]
    MasterRunner.quit = quit  # type: ignore[assignment,method-assign]


def end_with_master() -> None:
    """Have the kernel end a forked worker whose master has ended, however that happened.

    Upstream: a worker notices after MASTER_HEARTBEAT_TIMEOUT, a minute, during which its connections go on;
    one that is still looking for a master that could not start (busy port) does so for five.
    """
    master = os.getpid()

    def in_worker() -> None:
        # A worker that is asked to end says good-bye, whereupon a master that lives on elsewhere moves its
        # users to the other hosts' workers, all at once.
        number = signal.SIGKILL if os.environ.get(variables.HOST) else signal.SIGTERM
        end_with_parent(number, master)

    os.register_at_fork(after_in_child=in_worker)


def keep_time() -> None:
    """Let a run survive that somebody sets the wall clock.

    Upstream: `WorkerRunner.heartbeat` compares `time.time()` with when it last heard of the master, and a
    clock that is set ahead by a minute ends all workers.
    """
    steady: Any = types.SimpleNamespace(**vars(time) | {"time": unix_time_s})
    runners.time = steady  # type: ignore[attr-defined]


def hear_interrupts(**_: Any) -> None:
    """Let an INT reach the main greenlet, whatever runs when it comes.

    Upstream: `locust/main.py`, `except KeyboardInterrupt` around `main_greenlet.join()`. Python raises that
    where it just is, which in a busy ramp is some handler or callback, and what catches it there keeps it: a
    ramp of 1,600,000 connections went on after its INT. The event loop's own signals are handed on.
    """
    hub = gevent.get_hub()
    gevent.signal_handler(signal.SIGINT, hub.handle_system_error, KeyboardInterrupt, KeyboardInterrupt())


def end_without_memory() -> None:
    """End a process in which nothing can be allocated any more, with one line.

    Upstream: gevent prints a traceback and goes on (`Hub.handle_error`). By then a timer or the greenlet that
    sends the samples has ended: the process stays, its users do nothing, and its last figures count for ever.
    One that has ended is named by the master. An error in a task is Locust's to handle, and stays there.
    """
    out_of_memory.end_process(NO_MEMORY, NO_MEMORY_EXIT)
