"""What one process has counted, for the samples that it sends to the master (`terms.sample`)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from parked.loadtest.client.errors import KINDS, kind_of
from parked.loadtest.terms.clock import unix_time_s
from parked.loadtest.terms.distribution import Distribution
from parked.loadtest.terms.histogram import RANGE_US, counts_of
from parked.loadtest.terms.sample import PARTS_A_SECOND, Counted

if TYPE_CHECKING:
    from parked.loadtest.client.think import ThinkTimer

#: A request that leaves this much after it was due is counted as late: the client, not the server, was slow.
LATE_SEND_S = 0.1


class Counters:
    """Counts of one process."""

    def __init__(self) -> None:
        self.connections = self.connections_min = 0
        self.opened = self.reconnects = self.closed_by_peer = 0
        self.requests = self.failures = self.late_sends = 0
        self.received_bytes = self.sent_bytes = self.requests_sent = 0
        #: Seconds that requests left after they were due, all together.
        self.send_delay_s = 0.0
        self.failures_by_kind = dict.fromkeys(KINDS, 0)
        self.latencies_ms: list[float] = []
        #: Think times, from the end of a turn to when the next request is due, and lengths of bodies, in
        #: bytes.
        self.thinks_s: list[float] = []
        self.lengths: list[int] = []
        self._sends = [0] * PARTS_A_SECOND

    def connection_opened(self, again: bool) -> None:
        self.connections += 1
        self.opened += 1
        if again:
            self.reconnects += 1

    def connection_closed(self, by_peer: bool = False) -> None:
        self.connections -= 1
        self.connections_min = min(self.connections_min, self.connections)
        if by_peer:
            self.closed_by_peer += 1

    def request_sent(self, size_bytes: int) -> None:
        self.sent_bytes += size_bytes
        self._sends[int(time.time() * PARTS_A_SECOND) % PARTS_A_SECOND] += 1

    @property
    def requests_sent_now(self) -> int:
        """All that were sent until now, not only until the last sample."""
        return self.requests_sent + sum(self._sends)

    def sent_late(self, seconds: float) -> None:
        """Note how long after its due time a request leaves."""
        self.send_delay_s += seconds
        if seconds > LATE_SEND_S:
            self.late_sends += 1

    def request_done(
        self, latency_ms: float, length_bytes: int, received_bytes: int, failure: BaseException | str | None
    ) -> None:
        """Count a request that has ended; a response that failed has no length to speak of."""
        self.requests += 1
        self.received_bytes += received_bytes
        self.latencies_ms.append(latency_ms)
        if failure is None:
            self.lengths.append(length_bytes)
        else:
            self.failures += 1
            kind = kind_of(failure)
            self.failures_by_kind[kind] = self.failures_by_kind.get(kind, 0) + 1

    def sample(self, timer: ThinkTimer[Any], source: str, users: int) -> Counted:
        """The state now; what is told once, such as latencies, is forgotten."""
        least_us, most_us = RANGE_US
        latencies_us = [min(max(least_us, round(ms * 1000)), most_us) for ms in self.latencies_ms]
        thinks, lengths = Distribution(), Distribution()
        thinks.add(self.thinks_s)
        lengths.add(self.lengths)
        self.requests_sent += sum(self._sends)
        cpu = os.times()
        message: Counted = {
            "unix_time_s": unix_time_s(),
            "pid": os.getpid(),
            "source": source,
            "users": users,
            "connections": self.connections,
            "connections_min": self.connections_min,
            "opened": self.opened,
            "reconnects": self.reconnects,
            "closed_by_peer": self.closed_by_peer,
            "requests": self.requests,
            "failures": self.failures,
            "failures_by_kind": {kind: count for kind, count in self.failures_by_kind.items() if count},
            "late_sends": self.late_sends,
            "send_delay_s": self.send_delay_s,
            "requests_sent": self.requests_sent,
            "received_bytes": self.received_bytes,
            "sent_bytes": self.sent_bytes,
            "cpu_s": cpu.user + cpu.system,
            "loop_lag_max_s": timer.lag_max_s,
            "sends": self._sends,
            "latencies": counts_of(latencies_us),
            "thinks_s": thinks.as_list(),
            "lengths": lengths.as_list(),
        }
        self.latencies_ms, self.thinks_s, self.lengths = [], [], []
        self._sends = [0] * PARTS_A_SECOND
        self.connections_min = self.connections
        timer.lag_max_s = 0.0
        return message
