"""Listens to Locust's master (or to a Locust without workers), and follows each run with a :class:`Run`."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import gevent
from locust.event import EventHook
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

from parked.loadtest.master.fleet import Fleet
from parked.loadtest.master.hosts import Hosts
from parked.loadtest.master.ramp import PacedDispatcher
from parked.loadtest.master.run import Run
from parked.loadtest.terms import checkout, variables
from parked.loadtest.terms.harmless import for_line
from parked.loadtest.terms.sample import CUMULATIVE, HEARD, MESSAGE, PARTS_A_SECOND, Sample
from parked.loadtest.terms.shape import wrong
from parked.shared.private import masked

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.event import Events

logger = logging.getLogger(__name__)

#: Workers that are listened to.
MOST_WORKERS = 10_000
#: Kinds of failures; ours are ten, and a locustfile may have its own. Each is a series of the metrics.
MOST_KINDS = 100
#: Senders of messages that make no sense who are named; all of them are counted.
MOST_NAMED = 10


def attach(events: Events) -> None:
    """Let every Locust process that runs this locustfile find its part."""

    @events.init.add_listener
    def on_init(environment: Environment, **_: Any) -> None:
        if environment.runner is not None and not isinstance(environment.runner, WorkerRunner):
            Recorder(environment)


class Recorder:
    """One run after the other: a web UI may start several.

    :ivar seconds: fired with `run`, a :class:`Run`, after each second of it, and after its end.
    """

    def __init__(self, environment: Environment) -> None:
        assert environment.runner is not None
        self._environment = environment
        self._runner = environment.runner
        environment.parked_recorder = self  # type: ignore[attr-defined]
        self.seconds = EventHook()
        self._fleet = Fleet()
        self._hosts = Hosts.of(environment)
        self._run: Run | None = None
        #: The workers' last samples, now and when the run began: they count from the start of their process,
        #: and a web UI starts several runs.
        self._latest: dict[str, Sample] = {}
        self._refused: Counter[str] = Counter()
        self._before: dict[str, Sample] = {}
        environment.dispatcher_class = PacedDispatcher
        self._runner.register_message(MESSAGE, self._take)
        environment.events.test_start.add_listener(self._test_started)
        environment.events.test_stopping.add_listener(self._test_stopping)
        environment.events.test_stop.add_listener(self._test_stopped)
        environment.events.quit.add_listener(self._quitting)

    def _take(self, msg: Any, **_: Any) -> None:
        """A worker's sample, or what anybody has sent under that name."""
        sample, sender = msg.data, msg.node_id
        why = wrong(sample, Sample, "a sample")
        if not why and len(sample["sends"]) != PARTS_A_SECOND:
            why = "sends has not a part of each hundredth"
        if not why and len(sample["failures_by_kind"]) > MOST_KINDS:
            why = "it has failures of too many kinds"
        if not why and sender not in self._latest and len(self._latest) >= MOST_WORKERS:
            why = f"there are {MOST_WORKERS:,} workers already"
        if not why:
            offset_s = 0.0 if self._hosts is None else self._hosts.offset_s(sample["host"])
            sample["unix_time_s"] += offset_s
            before = self._before.get(sender)
            try:
                self._fleet.take(sender, _since(before, sample) if before else sample, offset_s)
            except (ValueError, TypeError) as error:  # a histogram that is none
                why = str(error)
        if why:
            self._refuse(sender, why)
        else:
            self._latest[sender] = sample

    def _refuse(self, sender: str, why: str) -> None:
        """Count a message that makes no sense, and name who sent it, once."""
        known = len(self._refused)
        if known >= MOST_NAMED and sender not in self._refused:
            sender = "others"
        self._refused[sender] += 1
        if known < MOST_NAMED and self._refused[sender] == 1:
            text = f"a message of {for_line(sender)[:100]} makes no sense and is not counted: {why}"
            if self._run is not None and not self._run.ended:
                self._run.note(text)
            else:
                logger.warning(text)

    def _test_started(self, **_: Any) -> None:
        if self._environment.parsed_options is None:  # a program's, which has no command line and follows it
            return
        self._fleet = Fleet()
        self._before = dict(self._latest)
        try:
            self._run = Run(self._environment, self._fleet, self._hosts)
        except Exception as error:  # Locust would log it, and go on with a run that nobody follows or ends
            known = isinstance(error, OSError)  # of the folder: a line says all
            logger.error("the run can't be followed, ending the test: %s", error, exc_info=not known)
            self._run = PacedDispatcher.pace = None
            self._environment.process_exit_code = 1
            gevent.spawn(self._end)
            return
        PacedDispatcher.pace = self._run.pace
        gevent.spawn(self._follow, self._run)

    def _follow(self, run: Run) -> None:
        started = time.monotonic()
        while True:
            # The next whole second; those that a busy machine kept us from are in its row.
            elapsed_s = time.monotonic() - started
            gevent.sleep(math.floor(elapsed_s) + 1 - elapsed_s)
            if run.ended:
                return
            try:
                run.second()
            except OSError as error:  # a full disk must not end a run that goes well otherwise
                run.cannot_write(error)
            except Exception as error:  # nobody would notice that a run goes on unwatched, under load
                logger.exception("the run can't be followed")
                run.note(f"the run could not be followed any more: {type(error).__name__}: {error}"[:300])
                run.over = run.over or "the run can't be followed, ending the test"
            self.seconds.fire(run=run)
            if run.over:
                logger.info(run.over)
                gevent.spawn(self._end)
                run.over = ""

    def _end(self) -> None:
        options_ = self._environment.parsed_options
        if options_ is not None and options_.headless:
            self._runner.quit()
        else:
            self._runner.stop()

    def _test_stopping(self, **_: Any) -> None:
        if self._run is not None:
            self._run.stopping()

    def _test_stopped(self, **_: Any) -> None:
        if self._run is not None:
            self._run.end()
            self.seconds.fire(run=self._run)
        if self._run is not None and self._run.has_an_end and self._has_lost_all():
            gevent.spawn(self._end)
        if self._environment.host and getattr(self._environment.parsed_options, "headless", False):
            self._environment.host = masked(self._environment.host)  # Locust's own report shows it

    def _has_lost_all(self) -> bool:
        """Whether the test has stopped for want of workers; Locust waits on for its run time."""
        clients = self._runner.clients.values() if isinstance(self._runner, MasterRunner) else ()
        headless = getattr(self._environment.parsed_options, "headless", False)
        return bool(headless and clients) and all(node.state == STATE_MISSING for node in clients)

    def _quitting(self, **_: Any) -> None:
        run = self._run
        if run is not None and run.folder is not None:
            run.end()
            if not os.environ.get(variables.REPORT):
                # A process of its own: the plots' library is large, and this process is monkey-patched.
                subprocess.run(
                    [sys.executable, "-P", "-m", "parked.loadtest.command", "report", str(run.folder)],
                    env=checkout.environment(),
                    check=False,
                )


def _since(before: Sample, sample: Sample) -> Sample:
    """The sample with counters that began at the earlier one."""
    kinds = {
        kind: count - before["failures_by_kind"].get(kind, 0)
        for kind, count in sample["failures_by_kind"].items()
    }
    since = sample.copy()
    for name in CUMULATIVE:
        since[name] = sample[name] - before[name]
    since["failures_by_kind"] = {kind: count for kind, count in kinds.items() if count}
    if "heard" in sample and "heard" in before:
        since["heard"] = heard = sample["heard"].copy()
        for counter in HEARD:
            heard[counter] -= before["heard"][counter]
    return since
