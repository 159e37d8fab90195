"""What is asked of a run, resolved against the machine."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan import resources, sizing
from parked.loadtest.terms import checkout, options, values

if TYPE_CHECKING:
    import argparse

#: Addresses at which run_server can be started.
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
#: Connections opened a second and core at the beginning of a ramp that adapts.
SPAWN_PER_S_A_CORE = 2500
#: Options with which Locust writes files of its own at the end.
LOCUST_FILES = ("--csv", "--html", "--json-file")
#: Seconds of a run beside its ramp and hold: workers that start, a ramp that stalls for a minute.
SPARE_S = 300


@dataclasses.dataclass(frozen=True)
class Lead:
    """This host leads a run of several and carries no connections itself."""

    hosts: int
    address: str  #: at which Locust's master listens; * for all
    patience_s: int  #: for the hosts to join


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for, resolved against the machine."""

    connections: int
    spawn_per_s: int
    adaptive: bool
    hold: str
    think: str
    length: str
    host: str
    locustfile: Path
    processes: int
    web_port: int | None
    master_port: int
    results: Path
    force: bool
    overwrite: bool
    plain: bool
    metrics: str | None
    command: str
    machine: Machine
    workload: str = "keepalive"  #: of the built-in tests
    path: str | None = None  #: of the built-in test's request; None: it asks for lengths
    rehearses: bool = False  #: whether that is a plain GET, which can be tried before the run
    is_auto: bool = False  #: whether the machine decides how many connections
    as_json: bool = False
    junit: Path | None = None
    open_page: bool = False
    fail_if: tuple[str, ...] = ()  #: in the form of `report.goals`
    abort_on_fail: bool = False
    insecure: bool = False  #: whether any certificate will do
    did_you_mean: str = ""  #: for options that Locust does not know either
    may_start_server: bool = False  #: at the host, if nobody listens there
    of_locust: tuple[str, ...] = ()  #: options that are Locust's, as they were given
    server_metrics: str = ""
    bottleneck: str = ""
    lead: Lead | None = None

    @classmethod
    def of(cls, chosen: argparse.Namespace, machine: Machine, command: str, now_unix_s: float) -> Settings:
        """Fill in what was left to the machine."""
        adaptive = chosen.spawn_rate == "auto"
        spawn_per_s = max(100, int(SPAWN_PER_S_A_CORE * machine.cpu_count)) if adaptive else chosen.spawn_rate
        settings = cls(
            connections=1 if chosen.connections == "auto" else chosen.connections,
            spawn_per_s=spawn_per_s,
            adaptive=adaptive,
            hold=chosen.hold,
            think=chosen.think,
            length=chosen.length,
            host=",".join(values.hosts(chosen.host)),
            locustfile=(chosen.locustfile or checkout.locustfile(chosen.workload)).resolve(),
            workload=chosen.workload,
            processes=chosen.processes,
            web_port=chosen.web_port if chosen.web else None,
            master_port=chosen.master_port,
            results=Path(),
            force=chosen.force,
            overwrite=chosen.overwrite,
            plain=chosen.plain,
            metrics=chosen.metrics,
            command=command,
            machine=machine,
            path=chosen.path,
            rehearses=chosen.locustfile is None
            and not any(getattr(chosen, it.name) for it in options.REQUEST if it.name != "path"),
            is_auto=chosen.connections == "auto",
            as_json=chosen.json,
            junit=chosen.junit,
            open_page=chosen.open,
            fail_if=tuple(chosen.fail_if),
            abort_on_fail=chosen.abort_on_fail,
            insecure=chosen.insecure,
            did_you_mean=chosen.did_you_mean,
            may_start_server=chosen.start_server,
            of_locust=(
                *(word for it in options.REQUEST for word in it.words(getattr(chosen, it.name))),
                *chosen.of_locust,
            ),
            server_metrics=chosen.server_metrics,
            lead=Lead(chosen.expect_hosts, chosen.master, values.duration(chosen.join_timeout))
            if chosen.master
            else None,
        )
        if chosen.connections == "auto":
            fit = resources.largest_that_fits(
                machine, settings.plan(local=settings.is_local, start=settings.is_local)
            )
            settings = dataclasses.replace(
                settings, connections=max(fit.connections, 1), bottleneck=fit.bottleneck
            )
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_unix_s))
        folder = chosen.results or checkout.results() / f"{stamp}-{settings.connections}"
        return dataclasses.replace(settings, results=Path(folder).resolve())

    @property
    def urls(self) -> list[str]:
        return values.hosts(self.host)

    @property
    def verifies(self) -> bool:
        """Whether certificates are looked at before the run; a locustfile of one's own may say otherwise."""
        return not self.insecure and self._is_built_in

    @property
    def wants_locust_files(self) -> bool:
        """Whether Locust writes files of its own to places of somebody's choice."""
        return any(word.partition("=")[0] in LOCUST_FILES for word in self.of_locust)

    @property
    def is_local(self) -> bool:
        """Whether the servers are on this machine, and so are the connections."""
        return self.lead is None and all(urlsplit(url).hostname in LOCAL_HOSTS for url in self.urls)

    @property
    def port(self) -> int:
        parts = urlsplit(self.urls[0])
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def longest_s(self) -> int:
        """Seconds after which the test ends whatever it has come to: a ramp at the least pace, the hold, and
        what a stalled ramp waits."""
        least_per_s = max(1.0, self.spawn_per_s * (options.LEAST_PACE if self.adaptive else 1.0))
        ramp_s = self.connections / least_per_s
        return math.ceil(2 * ramp_s + values.duration(self.hold) + SPARE_S)

    @property
    def _is_built_in(self) -> bool:
        return self.locustfile == checkout.locustfile(self.workload).resolve()

    @property
    def _think_s(self) -> tuple[float, float]:
        """Seconds between two things that a connection brings; of events, as the demo sends them."""
        if self.workload != "events":
            return values.think_time(self.think)
        query = parse_qs(urlsplit(self.path or "").query)
        try:
            every_s = float(query.get("every", ["30"])[0])
        except ValueError:
            every_s = 30.0
        return (every_s, every_s) if 0 < every_s < math.inf else (30.0, 30.0)

    def plan(self, local: bool, start: bool) -> sizing.Plan:
        """The run as the sizing model sees it; process counts of 0 are the model's to fill in."""
        return sizing.Plan(
            connections=self.connections,
            think_s=self._think_s,
            waits=self.workload if self.workload != "keepalive" else "",
            body_bytes=values.length(self.length),
            hold_s=values.duration(self.hold),
            spawn_per_s=self.spawn_per_s,
            local_server=local,
            start_server=start,
            host=urlsplit(self.urls[0]).hostname or "",
            port=self.port,
            client_workers=self.processes,
            master_port=self.master_port,
            master_host=sizing.Plan.master_host if self.lead is None else self.lead.address.removeprefix("*"),
            web_port=self.web_port,
            metrics=values.listen_address(self.metrics) if self.metrics else None,
            workload="" if self._is_built_in else self.locustfile.name,
            results=self.results,
        )
