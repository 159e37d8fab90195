"""The hosts of a run, as its master sees them.

Each host that joins has an agent (:mod:`parked.loadtest.command.join`), which tells the master once a second
how its host is, over Locust's own connection, and is answered. Who has missed a message has missed nothing:

    agent    I am c1, with 2 cores and 20,000 descriptors      master   wait: you are 1 of 3
    agent    the same                                          master   go: 2 workers for 6,667 connections
    agent    the same, CPU, memory, sockets, living workers    master   go
    agent    the same                                          master   over

The workers that an agent starts are Locust's; they connect to the master by themselves and say in each sample
which host they are of. So a host has two witnesses: its workers for connections and requests, its agent for
what the host's kernel counts. A host of which neither is heard any more is lost, with what it carried.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any

import gevent

from parked.loadtest.machine.monitor import MachineSample
from parked.loadtest.master.host_report import PROTOCOL, made_harmless, objection
from parked.loadtest.plan import sizing
from parked.loadtest.terms import checkout, console, options, variables
from parked.loadtest.terms.clock import unix_time_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from locust.env import Environment

    from parked.loadtest.master.fleet import Second, Worker

#: Names of Locust's custom messages: from an agent, and to it.
REPORT, ANSWER = "parked_host", "parked_host_answer"

#: Seconds without a word of a host after which it is lost. Its agent speaks once a second and has little else
#: to do; a switch that reboots, or TCP's third repetition of a lost segment, stays below.
SILENT_S = 10.0
#: Seconds that the agents are given to ask once more before the master ends.
LAST_ANSWERS_S = 2.5

#: What a host shares with others that run on the same kernel or in the same network namespace.
_OF_THE_KERNEL = ("slab_bytes", "socket_bytes", "memory_available_bytes")
_OF_THE_NAMESPACE = (
    "sockstat_tcp_inuse",
    "sockstat_tcp_orphan",
    "sockstat_tcp_tw",
    "sockstat_tcp_alloc",
    "sockstat_tcp_mem_bytes",
    "listen_overflows",
    "listen_drops",
    "retrans_segs",
    "tcp_timeouts",
    "tcp_memory_pressures",
)
_OF_THE_HOST = ("client_cores", "client_cpu_seconds", "client_pss_bytes", "client_processes")

#: A row of hosts.csv: a host's second.
COLUMNS = (
    "time_s", "phase", "host", "heard_s_ago", "connections", "connections_min", "requests_total",
    "failures_total", "reconnects_total", "received_bytes_total", "client_cores", "client_pss_bytes",
    "slab_bytes", "memory_available_bytes", "sockstat_tcp_inuse", "retrans_segs", "listen_drops",
    "clock_offset_ms",
)  # fmt: skip


#: Messages without sense that are told of; all are counted.
MOST_NAMED = 10


@dataclasses.dataclass
class Host:
    """One host: what its agent said last and when (monotonic), and what this run knows of it."""

    id: str
    name: str
    report: dict[str, Any]
    heard: float
    workers: int = 0  #: that it was told to start
    share: int = 0  #: connections that these will get
    lost: bool = False
    lost_at_s: float | None = None  #: of the run: when it was last heard
    carried: int = 0  #: connections when it was lost
    now: dict[str, float] = dataclasses.field(default_factory=dict)  #: its workers' sums, this second
    hold_first: dict[str, float] = dataclasses.field(default_factory=dict)
    hold_last: dict[str, float] = dataclasses.field(default_factory=dict)
    hold_min: int | None = None
    peaks: dict[str, float] = dataclasses.field(default_factory=dict)
    offsets_s: list[float] = dataclasses.field(default_factory=list)  #: least and most of the run

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.report["facts"]
        return facts

    @property
    def sample(self) -> Mapping[str, Any]:
        """The agent's last look at its machine; empty before the first."""
        return self.report.get("sample") or {}

    def begin(self) -> None:
        """A run begins: forget the one before."""
        self.now, self.hold_first, self.hold_last, self.peaks = {}, {}, {}, {}
        self.hold_min, self.offsets_s, self.lost_at_s, self.carried = None, [], None, 0


def shares(connections: int, hosts: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Workers and connections of each host, in proportion to its cores.

    Locust gives every worker as many users as every other, so the tightest descriptor limit counts for all.

    :param hosts: the facts of each: `cpu_count`, `nofile_hard`, and `workers` if it wants some number.
    """
    known = list(hosts)
    cores = sum(host["cpu_count"] for host in known)
    nofile = min(host["nofile_hard"] for host in known)
    workers = [
        host.get("workers")
        or sizing.client_workers(-(-connections * host["cpu_count"] // cores), nofile, host["cpu_count"])
        for host in known
    ]
    each = -(-connections // sum(workers))
    return [(count, min(connections, each * count)) for count in workers]


class Hosts:
    """Answers the agents, and adds up what they say."""

    def __init__(self, environment: Environment, expected: int, patience_s: float) -> None:
        assert environment.runner is not None
        self._environment = environment
        self._runner = environment.runner
        self.expected = expected
        self._patience_s = patience_s
        self._hosts: dict[str, Host] = {}
        self._complete_at: float | None = None
        self._begun = False
        self._why = ""
        self._over = ""
        #: Messages of hosts that made no sense.
        self.refused = 0
        self._runner.register_message(REPORT, self._take)
        atexit.register(self._say_over)
        gevent.spawn(self._gather)

    @classmethod
    def of(cls, environment: Environment) -> Hosts | None:
        """None if this run is of one host."""
        expected = int(os.environ.get(variables.EXPECT_HOSTS, "0"))
        patience_s = float(os.environ.get(variables.JOIN_TIMEOUT, "120"))
        return cls(environment, expected, patience_s) if expected else None

    # Before the run

    def _take(self, msg: Any, **_: Any) -> None:
        report = msg.data
        if not isinstance(report, dict):
            report = {}
        same = report.get("protocol") == PROTOCOL
        if same and (why := objection(report)):
            self.refused += 1
            if self.refused <= MOST_NAMED:
                console.say(f"a message of {msg.node_id[:100]} makes no sense: {why}")
            return
        report = made_harmless(report) if same else report
        refusal = "" if same and msg.node_id in self._hosts else self._refusal(report)
        if not refusal:
            self._heard(msg.node_id, report)
        self._runner.send_message(ANSWER, self._answer(msg.node_id, report, refusal), client_id=msg.node_id)

    def _refusal(self, report: dict[str, Any]) -> str:
        """Why a host can't join; "" if it can."""
        if report.get("protocol") != PROTOCOL:
            return "it is of another version than the master: use the same checkout on all hosts"
        if len(self._hosts) >= self.expected:
            return f"the run has its {self.expected} hosts: {self._names()}"
        return ""

    def _heard(self, id_: str, report: dict[str, Any]) -> None:
        host = self._hosts.get(id_)
        if host is None:
            host = self._hosts[id_] = Host(id_, self._free_name(report["name"]), report, time.monotonic())
            machine = report["facts"]
            console.say(
                f"host {host.name} has joined, {len(self._hosts)} of {self.expected}: "
                f"{machine['cpu_count']} cores, {machine['nofile_hard']:,} descriptors per process, "
                f"{machine['addresses']} source addresses"
            )
        host.report, host.heard = report, time.monotonic()
        if report["problem"] and not self._begun:
            self._fail(f"host {host.name}: {report['problem']}")

    def _free_name(self, name: str) -> str:
        """Two hosts may have the same name, such as localhost."""
        taken = {host.name for host in self._hosts.values()}
        return next(
            text for n in range(1, len(taken) + 2) if (text := name if n == 1 else f"{name}-{n}") not in taken
        )

    def _answer(self, id_: str, report: dict[str, Any], refusal: str) -> dict[str, Any]:
        host = self._hosts.get(id_)
        assert self._environment.parsed_options is not None
        chosen = options.ours(self._environment.parsed_options)
        answer: dict[str, Any] = {
            "protocol": PROTOCOL,
            "echo_unix_s": report.get("sent_unix_s"),
            "master_unix_s": unix_time_s(),
            "joined": len(self._hosts),
            "expected": self.expected,
        }
        if refusal or host is None:
            return answer | {"state": "refused", "why": refusal}
        if self._why or self._over:
            return answer | {"state": "over", "why": self._why or self._over}
        if self._complete_at is None:
            return answer | {"state": "wait"}
        return answer | {
            "state": "go",
            "workers": host.workers,
            "connections": host.share,
            "host": self._environment.host or chosen.host,
            "think": chosen.think,
            "length": chosen.length,
            "spawn_per_s": max(1.0, chosen.spawn_rate * host.share / max(chosen.num_users, 1)),
        }

    def _gather(self) -> None:
        """Until the run begins: wait for the hosts, tell them their parts, wait for their workers."""
        began = time.monotonic()
        while not self._begun and not self._why:
            gevent.sleep(0.2)
            now = time.monotonic()
            if self._complete_at is None:
                for host in [host for host in self._hosts.values() if now - host.heard > SILENT_S]:
                    console.say(f"host {host.name} has gone again")
                    del self._hosts[host.id]
                if len(self._hosts) == self.expected:
                    self._share_out()
                elif now - began > self._patience_s:
                    self._fail(
                        f"only {len(self._hosts)} of {self.expected} hosts joined within "
                        f"{self._patience_s:.0f} s: {self._names() or 'none'}"
                    )
                continue
            gone = [host.name for host in self._hosts.values() if now - host.heard > SILENT_S]
            if gone:
                self._fail(f"host {gone[0]} was lost before the run began")
            elif now - self._complete_at > self._patience_s and self._is_headless:
                self._fail(f"the hosts' workers were not all there within {self._patience_s:.0f} s")

    @property
    def _is_headless(self) -> bool:
        chosen = self._environment.parsed_options
        return bool(chosen is not None and chosen.headless)

    def _share_out(self) -> None:
        chosen = self._environment.parsed_options
        assert chosen is not None
        hosts = list(self._hosts.values())
        for host, share in zip(hosts, shares(chosen.num_users, [h.facts for h in hosts]), strict=True):
            host.workers, host.share = share
            workers = f"{host.workers} worker{'s' if host.workers > 1 else ''}"
            console.say(f"host {host.name}: {workers}, {host.share:,} connections")
        # Locust looks at this again and again while it waits.
        chosen.expect_workers = sum(host.workers for host in hosts)
        self._complete_at = time.monotonic()

    def _fail(self, why: str) -> None:
        """End Locust's master before the run, once the agents have heard why."""
        if self._why:
            return
        self._why = why
        console.say(f"{checkout.PROGRAM}: {why}")

        def end() -> None:
            gevent.sleep(LAST_ANSWERS_S)
            raise SystemExit(variables.EXIT_HOSTS)  # gevent raises it in the main greenlet

        gevent.spawn(end)

    def _names(self) -> str:
        return ", ".join(host.name for host in self._hosts.values())

    # In the run

    def begin(self) -> None:
        """A run begins."""
        self._begun = True
        for host in self._hosts.values():
            host.begin()

    def offset_s(self, id_: str) -> float:
        """What to add to a host's clock to get the master's."""
        host = self._hosts.get(id_)
        clock = host.report.get("clock") if host is not None else None
        return float(clock["offset_s"]) if clock else 0.0

    def news(self, elapsed_s: float) -> list[str]:
        """What has become of the hosts since the last call: each is a sentence for the report."""
        told = []
        for host in self._hosts.values():
            silent_s = time.monotonic() - host.heard
            left, problem = host.report["left"], host.report["problem"]
            if host.lost and silent_s <= SILENT_S and not left:
                host.lost = False
                told.append(f"host {host.name} was heard again at {elapsed_s:.0f} s")
            elif not host.lost and (left or silent_s > SILENT_S):
                host.lost, host.lost_at_s = True, max(0.0, elapsed_s - silent_s)
                host.carried = int(host.now.get("connections", 0))
                how = f"left ({problem})" if left else "ended or was cut off"
                told.append(
                    f"host {host.name} {how} at {host.lost_at_s:.0f} s with {host.carried:,} connections"
                )
        return told

    def may_be_alive(self, worker: Worker) -> bool:
        """Whether a worker that was not heard of for some seconds is still there, says its host."""
        host = self._hosts.get(worker.sample.get("host", ""))
        return host is None or (not host.lost and worker.sample["pid"] in host.report["pids"])

    def has_lost(self, worker: Worker) -> bool:
        """Whether the worker went with its host, which has been told of."""
        host = self._hosts.get(worker.sample.get("host", ""))
        return host is not None and host.lost

    def name_of(self, worker: Worker) -> str:
        host = self._hosts.get(worker.sample.get("host", ""))
        return host.name if host is not None else ""

    def second(self, elapsed_s: float, phase: str, second: Second) -> list[dict[str, Any]]:
        """Keep what each host did in this second; a row for each, of `COLUMNS` and more."""
        told = []
        for host in self._hosts.values():
            host.now = now = dict(second.hosts.get(host.id, {}))
            now["client_cpu_seconds"] = float(host.sample.get("client_cpu_seconds") or 0.0)
            if phase == "ramp":  # its last second is the one in which the hold begins
                host.hold_first, host.hold_last = now, now
                host.hold_min = int(now.get("connections", 0))
            elif phase == "hold":
                host.hold_last = now
                host.hold_min = min(host.hold_min or 0, int(now.get("connections_min", 0)))
            for name, value in {**now, **host.sample}.items():
                if isinstance(value, int | float):
                    host.peaks[name] = max(value, host.peaks.get(name, value))
            offset_s = self.offset_s(host.id)
            if host.report.get("clock"):
                known = [*host.offsets_s, offset_s]
                host.offsets_s = [min(known), max(known)]
            totals = {f"{name}_total": now.get(name, 0) for name in ("requests", "failures", "reconnects",
                                                                    "received_bytes")}  # fmt: skip
            told.append(
                {**host.sample, **now, **totals}
                | {"time_s": round(elapsed_s, 1), "phase": phase, "host": host.name}
                | {"heard_s_ago": round(time.monotonic() - host.heard, 1)}
                | {"clock_offset_ms": round(offset_s * 1000, 3)}
            )
        return told

    def machine(self, own: MachineSample) -> MachineSample:
        """The hosts' machines added up.

        Hosts on one kernel (containers, namespaces) share its memory, those in one network namespace its
        sockets: these count once. CPU beyond the clients' own can then not be told apart and is not known.

        :param own: the master's machine, of which only the master itself counts.
        """
        hosts = [host for host in self._hosts.values() if host.sample and not host.lost]
        kernels = {host.facts["kernel_id"]: host for host in hosts}
        namespaces = {(host.facts["kernel_id"], host.facts["namespace_id"]): host for host in hosts}
        alone = len(kernels) == len(hosts)
        return dataclasses.replace(
            own,
            kernel_cores=_sum("kernel_cores", hosts) if alone else None,
            busy_cores=_sum("busy_cores", kernels.values()),
            lost=(),
            **{name: _sum(name, kernels.values()) for name in _OF_THE_KERNEL},
            **{name: _sum(name, namespaces.values()) for name in _OF_THE_NAMESPACE},
            **{name: _plus(getattr(own, name), _sum(name, self._hosts.values() if name == "client_cpu_seconds"
                                                   else hosts)) for name in _OF_THE_HOST},
        )  # fmt: skip

    def table(self) -> list[dict[str, Any]]:
        """Each host, for run.json."""
        return [
            {
                "name": host.name,
                "id": host.id,
                "cpu_count": host.facts["cpu_count"],
                "kernel": host.facts["kernel"],
                "kernel_id": host.facts["kernel_id"],
                "namespace_id": host.facts["namespace_id"],
                "memory_total_bytes": host.facts["memory_total_bytes"],
                "nofile_hard": host.facts["nofile_hard"],
                "addresses": host.facts["addresses"],
                "workers": host.workers,
                "connections_planned": host.share,
                "connections_peak": int(host.peaks.get("connections", 0)),
                "connections_min_in_hold": host.hold_min,
                "totals": {name: host.now.get(name, 0) for name in _TOTALS},
                "hold": {
                    name: round(host.hold_last[name] - first, 3)
                    for name, first in host.hold_first.items()
                    if name in (*_TOTALS, "client_cpu_seconds") and name in host.hold_last
                },
                "client_pss_peak_bytes": host.peaks.get("client_pss_bytes"),
                "client_processes": host.peaks.get("client_processes"),
                "sockstat_tcp_inuse_peak": host.peaks.get("sockstat_tcp_inuse"),
                "retrans_segs": host.peaks.get("retrans_segs"),
                "listen_drops": host.peaks.get("listen_drops"),
                "clock_offset_ms": [round(offset_s * 1000, 3) for offset_s in host.offsets_s] or None,
                "clock_error_ms": round(host.report["clock"]["error_s"] * 1000, 3)
                if host.report.get("clock")
                else None,
                "lost_at_s": None if host.lost_at_s is None else round(host.lost_at_s, 1),
                "connections_when_lost": host.carried if host.lost_at_s is not None else None,
            }
            for host in sorted(self._hosts.values(), key=lambda host: host.name)
        ]

    def end(self) -> None:
        """The run has ended."""
        if self._is_headless:
            self._over = "the run has ended"

    def _say_over(self) -> None:
        """The last word to every agent, however Locust's master comes to its end."""
        self._over = self._over or "the master has ended"
        for id_, host in self._hosts.items():
            self._runner.send_message(ANSWER, self._answer(id_, host.report, ""), client_id=id_)
        time.sleep(0.2)  # ZeroMQ sends in a thread of its own


_TOTALS = ("opened", "requests", "failures", "reconnects", "received_bytes")


def _sum(name: str, hosts: Iterable[Host]) -> Any:
    """None if a host does not know it: a part of the sum would pass for all of it."""
    values = [host.sample.get(name) for host in hosts]
    return None if not values or None in values else sum(value for value in values if value is not None)


def _plus(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other
