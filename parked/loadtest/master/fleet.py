"""The workers as the master sees them: their samples added up, second by second."""

from __future__ import annotations

import dataclasses
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parked.loadtest.master.heard import HeardSecond, Listening
from parked.loadtest.terms.clock import unix_time_s
from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.histogram import add, checked, new_histogram
from parked.loadtest.terms.sample import CUMULATIVE, PARTS_A_SECOND, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Seconds without a sample after which a worker on this machine is looked up in /proc, and after which one on
#: another machine counts as lost.
SILENT_S = 3.0
LOST_S = 30.0
#: Seconds without a sample after which nobody knows what the users of a living worker do.
STUCK_S = 10.0


@dataclasses.dataclass
class Worker:
    """One worker: its last sample and when it came (monotonic)."""

    name: str
    sample: Sample
    heard: float
    lost: bool = False
    #: The event loop's longest lag and the longest garbage collection of the whole run.
    loop_lag_max_s: float = 0.0
    gc_pause_max_s: float = 0.0
    #: Connections when the hold began; None before.
    connections_at_hold: int | None = None
    #: When it was noticed that it had ended, on the wall clock.
    lost_unix_s: float | None = None


@dataclasses.dataclass
class Second:
    """All workers together: totals since the start, and what came since the second before."""

    users: int
    connections: int
    connections_min: int
    totals: dict[str, float]
    failures_by_kind: dict[str, int]
    latencies: Any
    thinks_s: Distribution
    lengths: Distribution
    #: Ages of the requests that are under way, by the living workers' last samples.
    open_s: Distribution
    burst_10ms_max: int
    loop_lag_max_s: float
    gc_pause_max_s: float
    #: For how long nothing has been heard of the living worker that is silent for longest.
    silent_s: float
    #: By the id of the host that joined ("" for workers of this one): its connections and totals.
    hosts: dict[str, dict[str, float]]
    #: What was heard, where users wait for what is sent.
    heard: HeardSecond | None


class Fleet:
    """Takes samples, gives seconds."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        #: Whether a sample has come since the last second.
        self.news: bool
        self._connections_min: dict[str, int] = {}
        #: How many samples of a worker have come since the last second.
        self._samples: dict[str, int] = {}
        self._listening = Listening()
        self._begin_second()

    def _begin_second(self) -> None:
        self.news = False
        self._latencies = new_histogram()
        self._thinks_s, self._lengths = Distribution(), Distribution()
        #: Sends by part of a second, added up over the workers; a list for each of their samples, since a
        #: worker that is heard twice has sent in two seconds, not twice as much in one.
        self._sends: list[list[int]] = []
        self._samples.clear()
        self._lag_max_s = self._pause_max_s = 0.0
        self._connections_min.clear()

    def take(self, name: str, sample: Sample, offset_s: float = 0.0) -> None:
        """A worker's sample has come. One that comes twice, or behind a later one, is passed over.

        :param offset_s: of its host's clock, as far as it is not in the sample's time already.
        Raises ValueError or TypeError for a histogram or distribution that is none, and then takes nothing.
        """
        known = self.workers.get(name)
        if known is not None and sample["unix_time_s"] <= known.sample["unix_time_s"]:
            return
        Distribution.of(sample["open_s"])
        thinks_s, lengths = Distribution.of(sample["thinks_s"]), Distribution.of(sample["lengths"])
        latencies = checked(sample["latencies"])
        if (heard := sample.get("heard")) is not None:
            self._listening.take(name, heard, offset_s)
        add(self._latencies, latencies)
        self.workers[name] = Worker(
            name,
            sample,
            time.monotonic(),
            loop_lag_max_s=max(known.loop_lag_max_s if known else 0.0, sample["loop_lag_max_s"]),
            gc_pause_max_s=max(known.gc_pause_max_s if known else 0.0, sample["gc_pause_max_s"]),
            connections_at_hold=known.connections_at_hold if known else None,
        )
        self.news = True
        place = self._samples.get(name, 0)
        self._samples[name] = place + 1
        if place == len(self._sends):
            self._sends.append([0] * PARTS_A_SECOND)
        for part, sends in enumerate(sample["sends"]):
            self._sends[place][part] += sends
        self._thinks_s.merge(thinks_s)
        self._lengths.merge(lengths)
        self._lag_max_s = max(self._lag_max_s, sample["loop_lag_max_s"])
        self._pause_max_s = max(self._pause_max_s, sample["gc_pause_max_s"])
        least = self._connections_min.get(name, sample["connections_min"])
        self._connections_min[name] = min(least, sample["connections_min"])

    @property
    def counted_unix_s(self) -> float:
        """When the workers took their last samples, on average; 0 if there is none.

        Samples come once a second, as rows do, but at moments of their own: a row may be up to a second ahead
        of its counts. A rate over rows would be wrong by as much.
        """
        workers = self.workers.values()
        alive = [worker for worker in workers if not worker.lost] or workers  # the last ones' counts stay
        times = [worker.sample["unix_time_s"] for worker in alive]
        return sum(times) / len(times) if times else 0.0

    @property
    def server_software(self) -> str:
        """What the server calls itself in its responses (RFC 9110, 10.2.4); "" if it does not say."""
        return next((name for worker in self.workers.values() if (name := worker.sample["server"])), "")

    def lose_silent(self, may_be_alive: Callable[[Worker], bool] | None = None) -> list[Worker]:
        """Workers that have ended since the last call. What they had counted stays, their connections are
        gone.

        :param may_be_alive: knows of workers on hosts that joined.
        """
        lost = []
        now = time.monotonic()
        for worker in self.workers.values():
            silent_s = now - worker.heard
            if worker.lost or silent_s <= SILENT_S:
                continue
            if may_be_alive is not None and worker.sample.get("host"):
                alive = may_be_alive(worker)
            else:
                alive = _may_be_alive(worker, silent_s)
            if not alive:
                worker.lost, worker.lost_unix_s = True, unix_time_s()
                lost.append(worker)
        return lost

    def stuck(self) -> list[tuple[Worker, float]]:
        """Living workers that are not heard, and since how many seconds: stopped (sooner told of, since that
        is certain), or at something that does not end."""
        now = time.monotonic()
        silent = [(worker, now - worker.heard) for worker in self.workers.values() if not worker.lost]
        return [
            (worker, silent_s)
            for worker, silent_s in silent
            if silent_s > STUCK_S or (silent_s > SILENT_S and _is_here(worker) and _state(worker) in "Tt")
        ]

    def second(self) -> Second:
        """Everything known now; latencies, bursts and minima begin anew."""
        now = time.monotonic()
        alive = [worker for worker in self.workers.values() if not worker.lost]
        failures_by_kind: dict[str, int] = {}
        for worker in self.workers.values():
            for kind, count in worker.sample["failures_by_kind"].items():
                failures_by_kind[kind] = failures_by_kind.get(kind, 0) + count
        connections = sum(worker.sample["connections"] for worker in alive)
        second = Second(
            users=sum(worker.sample["users"] for worker in alive),
            connections=connections,
            connections_min=min(
                sum(self._connections_min.get(worker.name, worker.sample["connections"]) for worker in alive),
                connections,
            ),
            totals={
                name: sum(worker.sample[name] for worker in self.workers.values()) for name in CUMULATIVE
            },
            failures_by_kind=failures_by_kind,
            latencies=self._latencies,
            thinks_s=self._thinks_s,
            lengths=self._lengths,
            open_s=_merged(Distribution.of(worker.sample["open_s"]) for worker in alive),
            burst_10ms_max=max(map(max, self._sends), default=0),
            loop_lag_max_s=self._lag_max_s,
            gc_pause_max_s=self._pause_max_s,
            silent_s=max((now - worker.heard for worker in alive), default=0.0),
            hosts=self._by_host(),
            heard=self._heard(),
        )
        self._begin_second()
        return second

    @property
    def answered(self) -> int:
        """Requests that were answered as they should be, as far as is told."""
        return sum(worker.sample["requests"] - worker.sample["failures"] for worker in self.workers.values())

    def _heard(self) -> HeardSecond | None:
        told = {
            name: heard
            for name, worker in self.workers.items()
            if (heard := worker.sample.get("heard")) is not None
        }
        alive = {name: heard for name, heard in told.items() if not self.workers[name].lost}
        return self._listening.second(alive, told.values()) if told else None

    def _by_host(self) -> dict[str, dict[str, float]]:
        hosts: dict[str, dict[str, float]] = {}
        for worker in self.workers.values():
            sample = worker.sample
            sums = hosts.setdefault(sample.get("host", ""), {})
            least = self._connections_min.get(worker.name, sample["connections"])
            gauges = {} if worker.lost else {"connections": sample["connections"], "connections_min": least}
            for name, value in (dict.fromkeys(("connections", "connections_min"), 0) | gauges).items():
                sums[name] = sums.get(name, 0) + value
            for name in CUMULATIVE:
                sums[name] = sums.get(name, 0) + sample[name]
        return hosts

    def hold_begins(self) -> None:
        """Note how many connections each worker has now."""
        for worker in self.workers.values():
            worker.connections_at_hold = None if worker.lost else worker.sample["connections"]

    def table(self) -> list[dict[str, Any]]:
        """A row a worker, for the results."""
        kept = (
            "pid",
            "source",
            "users",
            "connections",
            *CUMULATIVE,
        )
        return [
            {"worker": number, "name": worker.name, "lost": worker.lost}
            | {key: value for key, value in worker.sample.items() if key in kept}
            | ({"host": host} if (host := worker.sample.get("host")) else {})
            | {
                "loop_lag_max_s": worker.loop_lag_max_s,
                "gc_pause_max_s": worker.gc_pause_max_s,
                "connections_at_hold": worker.connections_at_hold,
                "heard_unix_s": worker.sample["unix_time_s"],
                "lost_unix_s": worker.lost_unix_s,
            }
            for number, worker in enumerate(self.workers.values())
        ]


def _merged(parts: Iterable[Distribution]) -> Distribution:
    merged = Distribution()
    for part in parts:
        merged.merge(part)
    return merged


def _may_be_alive(worker: Worker, silent_s: float) -> bool:
    return _state(worker) not in "ZX" if _is_here(worker) else silent_s < LOST_S


def _is_here(worker: Worker) -> bool:
    if worker.sample.get("host"):
        return False
    # Locust names a worker after its host: HOST_UUID.
    return worker.name.rpartition("_")[0] in (socket.gethostname(), "") or worker.name == "local"


def _state(worker: Worker) -> str:
    """As in proc(5), /proc/pid/stat; X (dead) where there is none any more."""
    try:
        return Path(f"/proc/{worker.sample['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
