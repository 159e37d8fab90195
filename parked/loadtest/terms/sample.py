"""A worker's sample: the message in which it tells the master once a second what it has counted.

Everything in it is cumulative since the process started, except the gauges, the maxima, and latencies, think
times and lengths since the sample before. A late or lost sample therefore costs resolution, never a count.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict, get_args

#: Name of the message, one of Locust's custom ones.
MESSAGE = "parked_sample"
#: Requests a second are counted in this many parts, so that bursts within a second show.
PARTS_A_SECOND = 100
#: Counters that only grow.
Counter = Literal[
    "opened",
    "reconnects",
    "closed_by_peer",
    "requests",
    "failures",
    "late_sends",
    "send_delay_s",
    "requests_sent",
    "received_bytes",
    "sent_bytes",
    "cpu_s",
    "gc_pause_s",
    "elsewhere",
    "others",
    "others_failed",
    "users_ended",
]
CUMULATIVE: tuple[Counter, ...] = get_args(Counter)


class Counted(TypedDict):
    """What :class:`parked.loadtest.client.counters.Counters` knows."""

    unix_time_s: float
    pid: int
    source: str  #: the address that connections start from; "" if the kernel chooses it
    users: int
    connections: int
    connections_min: int  #: since the sample before
    opened: int
    reconnects: int
    closed_by_peer: int
    requests: int
    failures: int
    failures_by_kind: dict[str, int]  #: only the kinds that there were
    late_sends: int
    send_delay_s: float  #: that requests left after they were due, all together
    requests_sent: int
    received_bytes: int
    sent_bytes: int
    cpu_s: float
    loop_lag_max_s: float
    sends: list[int]  #: requests sent in each part of a second
    latencies: list[int]  #: in microseconds, as `terms.histogram.counts_of` has them
    thinks_s: list[Any]  #: a distribution, as its `as_list` makes it; so is the next
    lengths: list[Any]


#: Counters among those of :class:`Heard` that only grow.
HeardCounter = Literal[
    "events", "events_lost", "events_repeated", "events_disordered", "events_unnumbered", "comments"
]
HEARD: tuple[HeardCounter, ...] = get_args(HeardCounter)
#: Events of different ids that one sample tells of; others are counted and no more.
MOST_BROADCASTS = 64

#: One event as a process has seen it since the sample before: its id, when it was sent (None if it does not
#: say), when it came first and last (Unix times), and to how many streams.
Broadcast = list[Any]


class Heard(TypedDict):
    """What :class:`parked.loadtest.client.heard.HeardByProcess` knows: of users who wait for what is sent."""

    streams: int  #: responses that are awaited or have begun, and have not ended
    streams_min: int  #: since the sample before
    events: int
    events_lost: int
    events_repeated: int
    events_disordered: int
    events_unnumbered: int
    comments: int
    deliveries: (
        bytes  #: an encoded histogram of microseconds, from sending to arrival; empty if there is none
    )
    broadcasts: list[list[Any]]  #: of :data:`Broadcast`


class Sample(Counted):
    """The whole message."""

    elsewhere: int  #: requests sent to other hosts than the users' own
    others: int  #: requests in Locust's statistics that no KeepAliveUser has sent
    others_failed: int
    users_ended: int  #: by themselves, or because Locust stopped them
    open_s: list[Any]  #: ages of the requests that are under way, since they were due: a distribution
    gc_pause_s: float
    gc_pause_max_s: float
    server: str  #: the Server field of the first response; "" before one came
    host: str  #: id of the host that joined; "" for workers of the master's own
    heard: NotRequired[Heard]  #: where users wait for what is sent (long polls, event streams)
