"""Every adjustment to Locust, each with its reason and the upstream code it answers.

Each is decided by itself: where what it stands in for reads as it did when somebody looked
(:mod:`parked.loadtest.plugin.upstream`), it is made; where not, it is left out, and one line says so and what
a run is without it. Locust is refused only where users would do something else than they say.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
import signal
import threading
import time
import types
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gevent
import gevent.event
import locust
from gevent import monkey
from locust import argument_parser, main, runners
from locust import stats as locust_stats
from locust.runners import STATE_RUNNING, STATE_SPAWNING, MasterRunner, Runner, WorkerRunner
from locust.stats import RequestStats, StatsCSVFileWriter

from parked.loadtest.client.locust_stats import BatchedStatistics
from parked.loadtest.client.turns import UserHandle
from parked.loadtest.client.user import KeepAliveUser
from parked.loadtest.plugin import exact_stops, upstream
from parked.loadtest.terms import variables
from parked.loadtest.terms.clock import unix_time_s
from parked.shared import out_of_memory
from parked.shared.children import end_with_parent
from parked.shared.descriptors import raise_nofile

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Heartbeats (of one second) that may stay out before a worker counts as missing. Upstream: 3. In a ramp a
#: worker is busy for longer than that, and calling it missing moves its users to the others, which are then
#: busy for longer.
HEARTBEAT_LIVENESS = 60

#: Seconds between two heartbeats of a worker. Upstream: 1, each of which wakes three threads for its answer.
#: A master that knows nothing of this takes a worker for missing after four.
HEARTBEAT_S = 2

#: Heartbeats below zero after which upstream takes a missing worker off its list and starts the test anew on
#: the others, from the first user on (`MasterRunner.heartbeat_worker`). Upstream: -60. Never: a run of which
#: a worker or a host is gone goes on with what is left.
HEARTBEAT_DEAD = -math.inf

#: What a process says that ends for want of memory, made while there is some, and its exit code.
NO_MEMORY = b"loadtest: no memory left in this process: it ends, and its connections with it\n"
NO_MEMORY_EXIT = 12  # ENOMEM

#: Users stopped between two looks at the event loop, each of whom closes a socket, and seconds to the next
#: batch. Not 0, which comes back before the loop has looked at anything else: answers to requests under way
#: would wait until the last user is gone, and so would the samples that tell of it.
STOP_BATCH = 200
STOP_PAUSE_S = 0.0001


class UpstreamChanged(RuntimeError):
    """What turns are made of is not as it was: users would do something else than they say."""


@dataclass(frozen=True)
class Adjustment:
    """:ivar relies_on: names of :data:`upstream.KNOWN`; :ivar without: what a run is without it."""

    make: Callable[[], None]
    relies_on: tuple[str, ...]
    without: str


@functools.cache
def apply() -> None:
    """Make the adjustments, once a process. Raises :class:`UpstreamChanged`."""
    check_turns()
    raise_descriptor_limit()
    gevent.config.track_greenlet_tree = False
    end_without_memory()
    locust.events.init.add_listener(hear_interrupts)
    locust.events.init.add_listener(leave_master_to_parent)
    # All are compared before the first one is made: it replaces what others are compared with.
    changed = {one: upstream.changed(one.relies_on) for one in ADJUSTMENTS}
    for one, names in changed.items():
        if names:
            logger.warning(
                "Locust %s: %s changed, so parked leaves it alone: %s",
                locust.__version__,
                " and ".join(names),
                one.without,
            )
        else:
            one.make()


def check_turns() -> None:
    """Raise :class:`UpstreamChanged` if what turns are cut out of has changed."""
    changed = upstream.changed(upstream.TURNS) + upstream.unknown_to_handles()
    if changed:
        raise UpstreamChanged(
            f"Locust {locust.__version__} with gevent {gevent.__version__} is not known to run a "
            f"KeepAliveUser as it is written: {', '.join(changed)} changed. docs/dependencies.md has the "
            "versions that do"
        )


def raise_descriptor_limit() -> None:
    """Raise the soft descriptor limit to the hard one.

    Upstream: `locust/main.py`, `minimum_open_file_limit = 10000`, which raises it to 10,000 only.
    """
    raise_nofile()


def be_patient_with_heartbeats() -> None:
    """See :data:`HEARTBEAT_LIVENESS`, :data:`HEARTBEAT_DEAD` and :data:`HEARTBEAT_S`."""
    runners.HEARTBEAT_LIVENESS = HEARTBEAT_LIVENESS
    runners.HEARTBEAT_DEAD_INTERNAL = HEARTBEAT_DEAD  # type: ignore[assignment]
    locust.events.init.add_listener(_beat_less_often)


def _beat_less_often(environment: Any, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        runners.HEARTBEAT_INTERVAL = HEARTBEAT_S


def batch_statistics() -> None:
    """Hand requests over to Locust's statistics in batches (:mod:`parked.loadtest.client.locust_stats`)."""
    BatchedStatistics.may_fold = True


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

    Upstream: `Runner.stop_users` spawns a greenlet per user to stop it, and another switch to join it. A
    KeepAliveUser at rest has nothing to interrupt: closing its connection is all. The rest is left to
    upstream.
    """
    usual = Runner.stop_users

    def stop_users(runner: Runner, user_classes_stop_count: dict[str, int]) -> None:
        if not any(user_classes_stop_count.values()):
            return  # a ramp calls this with every spawn message: no walk over the users then
        left = dict(user_classes_stop_count)
        stopped = 0
        last_turns: set[UserHandle] = set()  # on_stop is waited for, however long it takes, as upstream does
        for handle in list(runner.user_greenlets):
            name = type(handle.args[0]).__name__ if isinstance(handle, UserHandle) else ""
            if left.get(name, 0) > 0 and not handle.dead and handle.turn is None:
                left[name] -= 1
                handle.kill(block=False)
                if not handle.dead:
                    last_turns.add(handle)
                stopped += 1
                if stopped % STOP_BATCH == 0:
                    gevent.sleep(STOP_PAUSE_S)
        last_turns |= _end_own_turn(runner, left)
        # Nobody may have been told yet of those that have ended, and they are still in the group.
        alive = [one for one in runner.user_greenlets if not one.dead and one not in last_turns]
        others: Any = Others(runner, alive)
        usual(others, {name: count for name, count in left.items() if count > 0})
        for handle in last_turns:
            if handle.turn is not gevent.getcurrent():  # who asks for the end goes on to it first
                handle.join()

    Runner.stop_users = stop_users  # type: ignore[assignment,method-assign]


class Others:
    """A runner to `Runner.stop_users`, which takes the first users of a class: not those who end."""

    def __init__(self, runner: Runner, user_greenlets: list[Any]) -> None:
        self._runner = runner
        self.user_greenlets = user_greenlets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def _end_own_turn(runner: Runner, left: dict[str, int]) -> set[UserHandle]:
    """A task that called `runner.quit()` does not wait for its own end, which comes when it waits.

    Upstream compares `user.greenlet` with the current greenlet; a KeepAliveUser's is a handle.
    """
    current = gevent.getcurrent()
    for handle in list(runner.user_greenlets):
        if isinstance(handle, UserHandle) and handle.turn is current:
            name = type(handle.args[0]).__name__
            if left.get(name, 0) > 0:
                left[name] -= 1
                handle.kill(block=False)
                return {handle}
    return set()


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


def write_last_figures() -> None:
    """Have CSV files end with the last figures.

    Upstream: `StatsCSVFileWriter.stats_writer` writes once a second. At the end the files are only closed, so
    that what workers reported since is in the tables that are printed, but not in them; and if the process
    lives on for a second, it writes to closed files, which is told as an unhandled exception. Before that,
    `--json` and `--json-file` clear each line of what they tell, as a worker does that reports to its master.
    """
    close, go_on_writing = StatsCSVFileWriter.close_files, StatsCSVFileWriter.stats_writer

    def stats_writer(writer: StatsCSVFileWriter) -> None:
        try:
            go_on_writing(writer)
        except ValueError:
            if not writer.requests_csv_filehandle.closed:
                raise

    def close_files(writer: StatsCSVFileWriter) -> None:
        for file, write, to in (
            (writer.requests_csv_filehandle, writer.requests_csv, writer.requests_csv_writer),
            (writer.failures_csv_filehandle, writer.failures_csv, writer.failures_csv_writer),
            (writer.exceptions_csv_filehandle, writer.exceptions_csv, writer.exceptions_csv_writer),
        ):
            file.seek(0)
            write(to)
            file.truncate()
        close(writer)

    StatsCSVFileWriter.stats_writer = stats_writer  # type: ignore[assignment,method-assign]
    StatsCSVFileWriter.close_files = close_files  # type: ignore[assignment,method-assign]
    for name in ("print_stats_json", "save_stats_json"):
        setattr(locust_stats, name, _of_what_stays(getattr(locust_stats, name)))


class _Staying:
    """Statistics that are as before when they have been told."""

    def __init__(self, stats: RequestStats) -> None:
        self._stats = stats

    def serialize_stats(self) -> list[Any]:
        entries = self._stats.entries.values()
        return [entry.serialize() for entry in entries if entry.num_requests or entry.num_failures]


def _of_what_stays(tell: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(tell)
    def told(stats: RequestStats, *where: Any) -> None:
        tell(_Staying(stats), *where)

    return told


def end_with_master() -> None:
    """Have the kernel end a forked worker whose master has ended, however that happened.

    Upstream: a worker notices after MASTER_HEARTBEAT_TIMEOUT, a minute, during which its connections go on;
    one that is still looking for a master that could not start (busy port) does so for five. `gevent.fork()`
    in `locust/main.py` is what makes a worker; what a test itself forks is its own affair.
    """
    fork, master = gevent.fork, os.getpid()

    def fork_worker() -> int:
        share_what_workers_make()
        child: int = fork()
        if not child:
            # A worker that is asked to end says good-bye, whereupon a master that lives on elsewhere moves
            # its users to the other hosts' workers, all at once.
            end_with_parent(signal.SIGKILL if os.environ.get(variables.HOST) else signal.SIGTERM, master)
        return child

    main.gevent = types.SimpleNamespace(**vars(gevent) | {"fork": fork_worker})  # type: ignore[attr-defined]


@functools.cache
def share_what_workers_make() -> None:
    """What each forked worker would make or import by itself, once, in their master.

    What is there before a fork takes memory once, and time once: the arguments' defaults alone are 140 ms of
    each worker's CPU, just when all of them begin a ramp (see :func:`cache_default_arguments`).
    """
    argument_parser.default_args_dict()
    for name in ("gevent.resolver.thread", "gevent.threadpool"):  # of the first look-up of a name
        importlib.import_module(name)


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
    ramp of 1,600,000 connections went on after its INT. The event loop's own signals are handed on. A script
    that hears INT itself goes on to do so.
    """
    if callable(now := signal.getsignal(signal.SIGINT)) and now is not signal.default_int_handler:
        return
    hub = gevent.get_hub()
    gevent.signal_handler(signal.SIGINT, hub.handle_system_error, KeyboardInterrupt, KeyboardInterrupt())


class Silent:
    """What a forked child has in place of its parent's connection to the master."""

    def send(self, message: object) -> None: ...


def leave_master_to_parent(environment: Any, **_: Any) -> None:
    """Let what a worker's task forks come to its end, whether it waits for something or not.

    Upstream: a child has its parent's greenlets. One that sends a heartbeat there never returns: libzmq
    refuses another process' socket with EINTR, and pyzmq tries again for ever. Whoever waits for the child
    waits, too. Even the end of a child gives them a turn: gevent's `threading._shutdown` sleeps.
    """
    if not isinstance(environment.runner, WorkerRunner):
        return
    known = weakref.ref(environment.runner)

    def in_child() -> None:
        threading._shutdown = monkey.get_original("threading", "_shutdown")  # type: ignore[attr-defined]
        worker: Any = known()
        if worker is not None:
            ended = set(worker.greenlet) - {gevent.getcurrent()}
            # Were none left, the main greenlet would go on to end the test, in the child.
            worker.greenlet.spawn(gevent.event.Event().wait)
            for greenlet in ended:
                greenlet.kill(block=False)
            worker.client.close()  # in a child: watch it no more
            worker.client = Silent()

    os.register_at_fork(after_in_child=in_child)


def end_without_memory() -> None:
    """End a process in which nothing can be allocated any more, with one line.

    Upstream: gevent prints a traceback and goes on (`Hub.handle_error`). By then a timer or the greenlet that
    sends the samples has ended: the process stays, its users do nothing, and its last figures count for ever.
    One that has ended is named by the master. An error in a task is Locust's to handle, and stays there.
    """
    out_of_memory.end_process(NO_MEMORY, NO_MEMORY_EXIT)


ADJUSTMENTS = (
    Adjustment(
        cache_default_arguments,
        ("locust.argument_parser:default_args_dict", "locust.runners:WorkerRunner.handle_message"),
        "in a ramp each worker spends some 140 ms of CPU a second on its options",
    ),
    Adjustment(
        count_users_without_walking,
        ("locust.runners:Runner.user_classes_count", "locust.runners:Runner.spawn_users"),
        "in a ramp workers walk over all of their users several times a second",
    ),
    Adjustment(
        stop_users_without_greenlets,
        ("locust.runners:Runner.stop_users",),
        "stopping takes a greenlet per user, which is memory and time at the end of a run",
    ),
    Adjustment(
        exact_stops.stop_who_waits,
        ("locust.user.users:User.stop", "locust.user.task:TaskSet.wait"),
        "a user of another class whose wait ends as it is stopped may be cut off in a request",
    ),
    Adjustment(
        end_in_order,
        (
            "locust.runners:MasterRunner.start",
            "locust.runners:MasterRunner.stop",
            "locust.runners:MasterRunner.quit",
        ),
        "the end of a run does not wait for the workers' last figures, and does not end a ramp",
    ),
    Adjustment(
        write_last_figures,
        (
            "locust.stats:StatsCSV.requests_csv",
            "locust.stats:StatsCSV.failures_csv",
            "locust.stats:StatsCSV.exceptions_csv",
            "locust.stats:StatsCSVFileWriter.stats_writer",
            "locust.stats:StatsCSVFileWriter.close_files",
            "locust.stats:RequestStats.serialize_stats",
            "locust.stats:print_stats_json",
            "locust.stats:save_stats_json",
        ),
        "CSV files may end without the last second's requests",
    ),
    Adjustment(
        end_with_master,
        ("locust.main:main",),
        "workers outlive a master that was killed by up to five minutes",
    ),
    Adjustment(
        be_patient_with_heartbeats,
        ("locust.runners:MasterRunner.heartbeat_worker", "locust.runners:WorkerRunner.heartbeat"),
        "a worker that is busy for three seconds counts as missing, and its users move to the others",
    ),
    Adjustment(
        keep_time,
        ("locust.runners:WorkerRunner.heartbeat",),
        "a wall clock that is set ahead by a minute ends all workers",
    ),
    Adjustment(
        batch_statistics,
        (
            "locust.stats:StatsEntry.log",
            "locust.stats:StatsEntry.extend",
            "locust.stats:RequestStats.log_request",
            "locust.stats:RequestStats.log_error",
        ),
        "each request is counted by itself, 2 us of CPU",
    ),
)
