"""`./run_test --join MASTER`: this host's part in a run that another host leads.

The agent speaks with the master (:mod:`parked.loadtest.master.hosts` has what they say), looks whether this
machine can do its part, starts Locust's workers and watches them. It is a process of its own, so that it is
heard when the workers are busy, and knows when one of them is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import gevent
import psutil
from locust.exception import RPCError
from locust.rpc import zmqrpc
from locust.rpc.protocol import Message

from parked.loadtest.client import source_address
from parked.loadtest.command.processes import (
    HOST,
    INTERRUPTED,
    LIMIT,
    LOCUST,
    PASS,
    START,
    STOP_LEAST_S,
    Interrupted,
    Stop,
    end_group,
    start_process,
    tail,
)
from parked.loadtest.machine.monitor import Monitor
from parked.loadtest.master.host_report import PROTOCOL, is_answer
from parked.loadtest.master.hosts import ANSWER, REPORT
from parked.loadtest.plan import preflight, sizing
from parked.loadtest.plan.probe import probe_host
from parked.loadtest.terms import checkout, values, variables
from parked.loadtest.terms.clock import Clock, unix_time_s
from parked.loadtest.terms.console import say
from parked.shared.descriptors import raise_nofile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parked.loadtest.machine.machine import Machine

logger = logging.getLogger(__name__)

#: Seconds between two reports to the master.
REPORT_S = 1.0
#: Seconds without an answer after which a master that did answer counts as gone. It may be busy for seconds
#: when it adds up hundreds of workers.
MASTER_SILENT_S = 20.0
#: Seconds in which the master is told that this host leaves, if it still answers.
LEAVE_S = 3.0


@dataclasses.dataclass(frozen=True)
class Joining:
    """What is asked for on a host that joins."""

    master: str
    port: int
    patience_s: float  #: for the master's first answer
    workers: int  #: 0: what the master says
    locustfile: Path | None  #: None: the master's
    insecure: bool  #: whether any certificate will do when it looks at the servers
    force: bool
    machine: Machine


def join(joining: Joining) -> int:
    """Do it all; returns the exit code."""
    interrupted = Interrupted()
    try:
        _Agent(joining, interrupted).run()
    except Stop as stop:
        say(f"{checkout.PROGRAM}: {stop}")
        return INTERRUPTED if interrupted.is_set else stop.code
    return PASS


class _Agent:
    def __init__(self, joining: Joining, interrupted: Interrupted) -> None:
        self._joining = joining
        self._interrupted = interrupted
        try:
            joining.master.encode("idna")  # in the resolver's thread gevent would tell of a name that is none
            found = socket.getaddrinfo(joining.master, joining.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise Stop(HOST, f"{joining.master} does not resolve: {why}") from None
        raise_nofile()
        self._id = f"agent_{uuid4().hex}"
        self._clock = Clock()
        self._monitor = Monitor(os.getpid(), ())
        self._client = zmqrpc.Client(joining.master, joining.port, self._id)
        self._client.socket.linger = 0  # a master that is gone must not keep this process
        #: The master's last answer, and when it came (monotonic).
        self._answer: dict[str, Any] = {}
        self._answered = 0.0
        self._problem, self._left = "", False
        self._locust: subprocess.Popen[bytes] | None = None
        self._facts = _facts(joining, str(found[0][4][0]))
        gevent.spawn(self._listen)

    def run(self) -> None:
        joining = self._joining
        say(f"joining the run of {joining.master}:{joining.port} as {socket.gethostname()}")
        try:
            self._await("go")
            self._prepare()
            with self._workers() as locust:
                self._locust = locust
                self._await("over")
                # Locust's master has sent its workers home; their last figures are on the way.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    locust.wait(STOP_LEAST_S)
        except Stop as stop:
            self._leave(str(stop))
            raise
        say(f"{self._answer.get('why') or 'the run has ended'}; the results are with the master")

    # What is said

    def _listen(self) -> None:
        while True:
            try:
                message = self._client.recv()
            except RPCError:
                raise
            except Exception as error:  # bytes that are no message, as in `plugin.strangers`
                logger.debug("a message that is none: %r", error)
                continue
            if message.type != ANSWER or not is_answer(message.data):
                continue
            self._answer, self._answered = message.data, time.monotonic()
            sent_s = message.data["echo_unix_s"]
            if sent_s is not None:
                self._clock.exchanged(sent_s, message.data["master_unix_s"], unix_time_s())

    def _report(self) -> None:
        offset = self._clock.offset
        report = {
            "protocol": PROTOCOL,
            "name": socket.gethostname(),
            "facts": self._facts,
            "clock": offset._asdict() if offset is not None else None,
            "sample": dataclasses.asdict(self._monitor.sample()) if self._locust is not None else None,
            "pids": self._worker_pids(),
            "problem": self._problem,
            "left": self._left,
            "sent_unix_s": unix_time_s(),
        }
        self._client.send(Message(REPORT, report, self._id))

    def _worker_pids(self) -> list[int]:
        """Locust's workers that live: the children of the process that was started."""
        if self._locust is None:
            return []
        try:
            return [
                child.pid
                for child in psutil.Process(self._locust.pid).children()
                if child.status() != psutil.STATUS_ZOMBIE
            ]
        except psutil.NoSuchProcess:
            return []

    def _await(self, state: str) -> None:
        """Report until the master answers with `state`; :class:`Stop` if that can't come any more."""
        began, next_report, told = time.monotonic(), 0.0, ""
        while self._answer.get("state") != state:
            now = time.monotonic()
            if now >= next_report:
                next_report = now + REPORT_S
                self._report()
            gevent.sleep(0.05)
            if self._interrupted.is_set:
                raise Stop(INTERRUPTED, "interrupted; this host leaves the run")
            answer = self._answer
            if answer.get("state") in ("refused", "over") and state != "over":
                raise Stop(variables.EXIT_HOSTS, f"the master does not want this host: {answer['why']}")
            if answer.get("state") == "wait":
                text = f"joined: {answer['joined']} of {answer['expected']} hosts are there"
                if text != told:
                    say(told := text)
            self._check_master(now, began)
            if self._locust is not None and self._locust.poll() is not None and state == "over":
                self._workers_ended()

    def _check_master(self, now: float, began: float) -> None:
        where = f"{self._joining.master}:{self._joining.port}"
        if not self._answered and now - began > self._joining.patience_s:
            raise Stop(
                variables.EXIT_HOSTS, f"no master answered at {where} within {self._joining.patience_s:.0f} s"
            )
        if self._answered and now - self._answered > MASTER_SILENT_S:
            raise Stop(
                variables.EXIT_HOSTS, f"the master at {where} has not answered for {MASTER_SILENT_S:.0f} s"
            )

    def _workers_ended(self) -> None:
        """All workers are gone: either the run is over, and the master is about to say so, or they failed."""
        assert self._locust is not None
        deadline = time.monotonic() + LEAVE_S
        while time.monotonic() < deadline:
            if self._answer.get("state") == "over":
                return
            self._report()
            gevent.sleep(REPORT_S / 4)
        raise Stop(START, f"Locust's workers ended with code {self._locust.returncode}: {tail(self._log)}")

    def _leave(self, why: str) -> None:
        """Tell the master, as long as it listens."""
        self._problem, self._left = why, True
        asked, deadline = time.monotonic(), time.monotonic() + LEAVE_S
        while self._answered and self._answered < asked + REPORT_S / 4 and time.monotonic() < deadline:
            self._report()
            gevent.sleep(REPORT_S / 4)

    # What is done

    def _prepare(self) -> None:
        """Look whether this host can do its part: its limits, and the servers as it reaches them."""
        answer, joining = self._answer, self._joining
        say(f"{answer['workers']} workers for {answer['connections']:,} connections to {answer['host']}")
        try:
            urls, think_s = values.hosts(answer["host"]), values.think_time(answer["think"])
            body_bytes = values.length(answer["length"])
        except argparse.ArgumentTypeError as error:
            raise Stop(variables.EXIT_HOSTS, f"the master asks for what makes no sense: {error}") from None
        for url in urls:
            probe = probe_host(url, verify=not joining.insecure)
            if not probe.ok:
                raise Stop(HOST, f"{url}: {probe.detail}")
            addresses = _source_addresses(probe.address[0] if probe.address else "")
            plan = sizing.Plan(
                connections=-(-answer["connections"] // len(urls)),
                think_s=think_s,
                body_bytes=body_bytes,
                spawn_per_s=answer["spawn_per_s"],
                local_server=False,
                start_server=False,
                host=urlsplit(url).hostname or "",
                port=urlsplit(url).port or (443 if url.startswith("https") else 80),
                client_workers=answer["workers"],
                master_port=None,
                source_addresses=addresses,
            )
            self._check(plan, url)
        if answer["connections"] > answer["workers"] * joining.machine.nofile_hard and not joining.force:
            raise Stop(LIMIT, "its processes may not open as many descriptors as it is to have connections")

    def _check(self, plan: sizing.Plan, url: str) -> None:
        machine = self._joining.machine
        findings = preflight.check(machine, plan)
        for finding in findings:
            say(f"{'too low' if finding.severity == 'blocks' else 'note'}: {finding}")
        room = plan.source_addresses * machine.usable_ports
        blocking = [f"{finding.setting} is too low" for finding in findings if finding.severity == "blocks"]
        if plan.connections > room:
            blocking.append(
                f"{plan.connections:,} connections to {url} need more than {plan.source_addresses} source "
                f"addresses of {machine.usable_ports:,} ports (sysconfig/addresses)"
            )
        if blocking and not self._joining.force:
            raise Stop(LIMIT, "; ".join(blocking))

    @contextlib.contextmanager
    def _workers(self) -> Iterator[subprocess.Popen[bytes]]:
        """Locust's workers; killed at the end if need be.

        Killed, not asked: Locust would move the users of a worker that says good-bye to the other hosts at
        once, all of them in one go.
        """
        joining = self._joining
        command = [
            *(*LOCUST, "-f", str(joining.locustfile or "-"), "--worker"),
            *("--master-host", joining.master, "--master-port", str(joining.port)),
            *("--processes", str(self._answer["workers"]), "--loglevel", "WARNING"),
        ]
        with tempfile.TemporaryDirectory(prefix="run_test-", ignore_cleanup_errors=True) as folder:
            # Locust writes the master's locustfile into the temporary folder, under the name that it has
            # there: in a folder that all share, another host finds half of it.
            said = {variables.HOST: self._id, "TMPDIR": folder}
            self._log = Path(folder) / "locust.log"
            with self._log.open("wb") as log, start_process(command, log, log, said) as locust:
                try:
                    yield locust
                finally:
                    end_group(locust.pid)


def _facts(joining: Joining, master: str) -> dict[str, Any]:
    machine = joining.machine
    return {
        "cpu_count": machine.cpu_count,
        "cpu_model": machine.cpu_model,
        "kernel": machine.kernel,
        # Hosts that share a kernel or a network namespace are told by these (random(4), namespaces(7)).
        "kernel_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "namespace_id": Path("/proc/self/ns/net").stat().st_ino,
        "memory_total_bytes": machine.memory_total_bytes,
        "nofile_hard": machine.nofile_hard,
        "addresses": _source_addresses(master),
        "workers": joining.workers,
    }


def _source_addresses(server: str) -> int:
    """How many addresses this host's workers take for connections to a server."""
    if named := os.environ.get(variables.SOURCE):
        return source_address.usable_addresses(named)
    if server.startswith("127."):
        return sizing.LOOPBACK_ADDRESSES
    return max(1, len(source_address.of_interface(server))) if server else 1
