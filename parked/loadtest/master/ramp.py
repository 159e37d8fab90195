"""The ramp: as fast as connections are accepted and requests stay on time, and no faster.

With `--adaptive` Locust's spawn rate is only where the ramp begins. Every second the pace rises while all
goes well and falls as soon as something is late, as TCP does with its window: a server whose accept queue
overflows drops SYNs, and each of these costs its client a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from locust.dispatch import UsersDispatcher

if TYPE_CHECKING:
    from locust import User

    from parked.loadtest.machine.monitor import MachineSample
    from parked.loadtest.master.fleet import Second

#: Lateness of event loops and of the slowest percent of responses below which the pace rises, and above which
#: it falls, seconds. Between them it rises slowly: without a core to spare nothing is on time any more, and a
#: pace that never rose again would end at its least after a few late seconds.
ON_TIME_S = 0.2
LATE_S = 0.5
#: Seconds within which each worker is heard when all is well: it tells its counts once a second, the row that
#: takes them in comes at a moment of its own.
SAMPLE_S = 1.0
#: Factors by which the pace changes a second.
FASTER = 1.15
A_LITTLE_FASTER = 1.04
SLOWER = 0.7
#: Seconds after slowing down in which the pace is not slowed again: requests that were late already end in
#: them.
PATIENCE_S = 3
#: After dropped SYNs.
MUCH_SLOWER = 0.5
#: Bounds, in multiples of the rate to begin with.
LEAST, MOST = 0.2, 2.0


class Pace:
    """Connections to open a second.

    :ivar per_s: the rate now.
    """

    def __init__(self, begin_per_s: float) -> None:
        self._dropped = 0
        self._patience_s = 0
        self._begin_per_s = 0.0
        self.begin(begin_per_s)

    def begin(self, per_s: float) -> None:
        """Go on from another rate: the web UI's form was sent again. The same one changes nothing."""
        if per_s != self._begin_per_s:
            self._begin_per_s = self.per_s = per_s
            self._least = max(1.0, LEAST * per_s)
            self._most = MOST * per_s

    def observe(self, second: Second, machine: MachineSample | None) -> None:
        """Take in what the last second was like."""
        dropped = (machine.listen_overflows or 0) + (machine.listen_drops or 0) if machine is not None else 0
        waiting = second.users - second.connections
        # A worker that owes its sample, one a second, is as late as that, and says so only afterwards.
        late_s = max(second.loop_lag_max_s, second.silent_s - SAMPLE_S)
        if second.latencies.get_total_count():
            late_s = max(late_s, second.latencies.get_value_at_percentile(99) / 1e6)
        factor = 1.0
        self._patience_s -= 1
        if dropped > self._dropped:
            factor = MUCH_SLOWER
        elif late_s > LATE_S:
            if self._patience_s <= 0:
                factor = SLOWER
                self._patience_s = PATIENCE_S
        elif waiting < 2 * self.per_s:
            if late_s < ON_TIME_S:
                factor = FASTER
            elif self._patience_s <= 0:
                factor = A_LITTLE_FASTER
        self._dropped = dropped
        self.per_s = min(max(self.per_s * factor, self._least), self._most)


class PacedDispatcher(UsersDispatcher):
    """Locust's dispatcher, asking for the pace before each second's users.

    Set as `Environment.dispatcher_class`, which is Locust's own place for it.
    """

    pace: ClassVar[Pace | None] = None

    def new_dispatch(
        self, target_user_count: int, spawn_rate: float, user_classes: list[type[User]] | None = None
    ) -> None:
        if self.pace is not None:
            self.pace.begin(spawn_rate)
        super().new_dispatch(target_user_count, spawn_rate, user_classes)

    def _add_users_on_workers(self) -> dict[str, dict[str, int]]:
        if self.pace is not None:
            self._user_count_per_dispatch_iteration = max(1, round(self.pace.per_s))
            self._wait_between_dispatch = 1.0
        return super()._add_users_on_workers()
