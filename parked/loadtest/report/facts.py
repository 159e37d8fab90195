"""What `run.json` has: the facts that :mod:`parked.loadtest.master.run` writes, and that a report needs.

Those that are not required are of later versions; a run from before them is read as well.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class WorkerFacts(TypedDict):
    """One Locust worker."""

    worker: int
    lost: bool
    pid: int
    source: str | None
    connections: int
    opened: int
    reconnects: int
    requests: int
    failures: int
    late_sends: int
    cpu_s: NotRequired[float]
    gc_pause_s: NotRequired[float]
    gc_pause_max_s: NotRequired[float]
    loop_lag_max_s: NotRequired[float]
    connections_at_hold: NotRequired[int | None]
    heard_unix_s: NotRequired[float]
    lost_unix_s: NotRequired[float | None]
    host: NotRequired[str]


class HostFacts(TypedDict):
    """One host of a run of several."""

    name: str
    id: str
    cpu_count: int
    kernel_id: str
    namespace_id: int
    memory_total_bytes: int
    workers: int
    connections_peak: int
    connections_min_in_hold: int | None
    totals: dict[str, float]
    hold: dict[str, float]
    client_pss_peak_bytes: float | None
    sockstat_tcp_inuse_peak: float | None
    retrans_segs: float | None
    clock_offset_ms: list[float] | None
    clock_error_ms: float | None
    lost_at_s: float | None
    connections_when_lost: int | None


class CpuFacts(TypedDict):
    """CPU seconds of both sides."""

    server: float | None
    client: float | None


class HeardFacts(TypedDict):
    """What users have heard that wait for it, in the hold; `totals` since the start."""

    totals: dict[str, int]
    hold: dict[str, int]
    streams_min: int
    deliveries: str
    broadcasts: list[tuple[str, float | None, float, float, int]]  # id, sent, first, last, streams
    broadcasts_more: int


class Facts(TypedDict):
    """The whole file."""

    host: str
    target_connections: int
    started_unix_s: float
    think_s: tuple[float, float] | None
    length: tuple[float, float] | None
    hold_asked_s: float | None
    ramp_s: float
    hold_s: float
    peak_connections: int
    min_connections_in_hold: int | None
    totals: dict[str, float]
    hold: dict[str, float]
    hold_cpu_s: CpuFacts
    burst_10ms_max: int
    failures_by_kind: dict[str, int]
    workers: list[WorkerFacts]
    server_software: str
    server_is_local: bool
    machine: dict[str, Any]
    versions: dict[str, str]
    command: str
    notes: list[str]
    hold_latencies: str
    think_grain_s: NotRequired[float]
    users_ended_themselves: NotRequired[int]
    workload: NotRequired[str]
    heard: NotRequired[HeardFacts]
    changes: NotRequired[list[dict[str, Any]]]
    hold_counted_s: NotRequired[float]
    hold_thinks_s: NotRequired[list[Any] | None]
    hold_lengths: NotRequired[list[Any] | None]
    hold_open_s: NotRequired[list[Any] | None]
    hosts: NotRequired[list[HostFacts]]
    other_classes: NotRequired[list[str]]
    server_processes_lost: NotRequired[int]
    socket_bytes_from: NotRequired[str | None]
    server_metrics: NotRequired[bool]
    server_gc_pause_s: NotRequired[float | None]
    rows: NotRequired[int]
    ended: NotRequired[bool]
    fail_if: NotRequired[list[str]]  # conditions in the form of `goals`
    salvaged: NotRequired[bool]  # run.json was lost: see `salvage`
