"""The ramp: as fast as connections are accepted and requests stay on time, and no faster.

With `--adaptive` Locust's spawn rate is only where the ramp begins. Every second the pace rises while all
goes well and falls as soon as something is late, as TCP does with its window: a server whose accept queue
overflows drops SYNs, and each of these costs its client a second. It has no upper bound of its own: where the
cores are known, what they did for the connections of a second says how many they would have done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from locust.dispatch import UsersDispatcher

from parked.loadtest.terms.options import LEAST_PACE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hdrh.histogram import HdrHistogram
    from locust import User

    from parked.loadtest.machine.monitor import MachineSample
    from parked.loadtest.master.fleet import Second

#: Lateness of event loops and of the slowest percent of responses below which the pace rises, and above which
#: it falls, seconds. Between them it rises slowly: without a core to spare nothing is on time any more, and a
#: pace that never rose again would end at its least after a few late seconds. Where cores are short both ends
#: look at things every 0.09 s (`parked.shared.moderation`): the slowest are 0.2 s behind, and all is well.
ON_TIME_S = 0.3
LATE_S = 0.5
#: ... and below which the cores can't be short, however busy others keep them.
PROMPT_S = 0.05
#: Responses of a second that say what is usual: the least median of such seconds is what a response takes
#: with nothing in its way, and late is what comes on top. A page that always takes 0.8 s holds up no ramp,
#: nor do answers to polls whose server's clock has a grain (400,000 polls: 264,000 were open after 117 s,
#: a third of the cores idle; now all after 103 s).
ENOUGH = 20
#: Seconds of the pace that users may wait for their connections: those of a second begin within the next one,
#: and are counted in the one after it. More of them, and ever more, is a pace that is not kept.
BACKLOG_S = 2
#: Seconds within which each worker is heard when all is well: it tells its counts once a second, the row that
#: takes them in comes at a moment of its own.
SAMPLE_S = 1.0
#: Factors by which the pace changes a second: while the cores have room, as long as all is on time, between
#: on time and late, and when something is late.
MUCH_FASTER = 1.5
FASTER = 1.15
A_LITTLE_FASTER = 1.04
SLOWER = 0.7
#: Busy share of all cores that the pace may lead to by itself. What is beyond it is found out in small steps.
FULL = 0.9
#: Seconds after slowing down in which the pace is not slowed again: requests that were late already end in
#: them.
PATIENCE_S = 3
#: After dropped SYNs.
MUCH_SLOWER = 0.5
#: Up to which pace the cores are not asked, in multiples of the rate to begin with. It has a least, too
#: (`LEAST_PACE`): a machine that is short of cores at the end of its ramp is short of them in the hold, and
#: to creep there only makes the ramp longer (400,000 on a slow day: 231,000 were open after 79 s, and with
#: creeping 179,000 after 81).
UNASKED = 2.0


class Pace:
    """Connections to open a second.

    :ivar per_s: the rate now.
    :param cores: of the machine that has both sides; None if there are several, or it is not known.
    """

    def __init__(self, begin_per_s: float, cores: int | None = None) -> None:
        self._cores = cores
        self._dropped = self._waiting = 0
        self._patience_s = 0
        self._begin_per_s = 0.0
        self._usual_s: float | None = None
        self.begin(begin_per_s)

    def begin(self, per_s: float) -> None:
        """Go on from another rate: the web UI's form was sent again. The same one changes nothing."""
        if per_s != self._begin_per_s:
            self._begin_per_s = self.per_s = self._before_per_s = per_s
            self._least = max(1.0, LEAST_PACE * per_s)

    def observe(self, second: Second, machine: MachineSample | None) -> None:
        """Take in what the last second was like."""
        dropped = (machine.listen_overflows or 0) + (machine.listen_drops or 0) if machine is not None else 0
        established = second.connections
        if second.heard is not None:  # a request that waits for the head of its stream is no less behind
            established = min(established, second.heard.streams)
        waiting = second.users - established
        # A worker that owes its sample, one a second, is as late as that, and says so only afterwards.
        late_s = max(second.loop_lag_max_s, second.silent_s - SAMPLE_S)
        late_s = max(late_s, self._behind_usual_s(second.latencies))
        backs_up = waiting > max(BACKLOG_S * self.per_s, self._waiting)
        factor = 1.0
        self._patience_s -= 1
        if dropped > self._dropped:
            factor = MUCH_SLOWER
        elif late_s > LATE_S or backs_up:
            if self._patience_s <= 0:
                factor = SLOWER
                self._patience_s = PATIENCE_S
        elif second.connections and waiting < BACKLOG_S * self.per_s:
            if late_s < ON_TIME_S:
                factor = self._room(machine, late_s < PROMPT_S)
            elif self._patience_s <= 0:
                factor = A_LITTLE_FASTER
        self._dropped, self._waiting = dropped, waiting
        self._before_per_s = self.per_s
        self.per_s = max(self.per_s * factor, self._least)

    def _behind_usual_s(self, latencies: HdrHistogram) -> float:
        """How much longer than usual the slowest percent of a second's responses took."""
        responses = latencies.get_total_count()
        if not responses:
            return 0.0
        if responses >= ENOUGH:
            median_s = latencies.get_value_at_percentile(50) / 1e6
            self._usual_s = median_s if self._usual_s is None else min(self._usual_s, median_s)
        slow_s: float = latencies.get_value_at_percentile(99) / 1e6
        return slow_s - (self._usual_s or 0.0)

    def _room(self, machine: MachineSample | None, prompt: bool) -> float:
        """By how much faster it may be, as far as the cores can be seen.

        What they were busy with, the requests too, is taken for the work of connections, of those that were
        asked for a second ago, since these are the ones that were opened. If it was mostly other programs,
        nothing follows from it as long as all is prompt.
        """
        if machine is None or self._cores is None or not machine.busy_cores:
            return FASTER
        parts = machine.server_cores, machine.client_cores, machine.kernel_cores
        others = sum(filter(None, parts)) < machine.busy_cores / 2
        allowed_per_s = self._before_per_s * FULL * self._cores / machine.busy_cores
        easy = (prompt and others) or self.per_s < UNASKED * self._begin_per_s
        least = FASTER if easy else A_LITTLE_FASTER
        return min(MUCH_FASTER, max(least, allowed_per_s / self.per_s))


class _Shared(list[Any]):
    """A list in which equal items are one object: of a million tuples that Locust's dispatcher makes, one a
    user, there are as many kinds as workers."""

    def __init__(self, items: Iterable[Any]) -> None:
        super().__init__()
        self._kinds: dict[Any, Any] = {}
        for item in items:
            self.append(item)

    def append(self, item: Any) -> None:
        super().append(self._kinds.setdefault(item, item))


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
        if not isinstance(self._active_users, _Shared):
            self._active_users = _Shared(self._active_users)
        return super()._add_users_on_workers()
