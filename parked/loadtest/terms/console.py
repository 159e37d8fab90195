"""What a run prints: lines of which none can hold it up or end it, and the line a second.

The line has the form of the original's log, so that old and new logs compare.

    time 104s, concurrency: 400000, total requests: 646431, throughput: 31.26M/s, 6205.60 requests/seconds

Throughput and rate are averages since the start, as there. Behind ` | ` stands what the last second showed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import select
import sys
from typing import Any

from parked.loadtest.terms.harmless import for_line
from parked.loadtest.terms.units import MIB
from parked.shared.log import GuardedLog

#: Seconds that a reader may take for the next bytes of what a program reads.
READER_S = 60.0


def say(text: object) -> None:
    """Print one line. Where nobody reads any more (a pipe's reader is gone, the disk is full, the terminal is
    closed) it is dropped: a run goes on without its readers. What strangers say in it is made harmless."""
    if sys.stdout is not None:  # closed by the caller: `>&-`
        _guarded(sys.stdout).write(f"{for_line(str(text))}\n")


def hand_over(text: str) -> None:
    """Print what a program reads, of lines of our own making: all of it, also to a reader that is slow."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):  # the reader is gone, the disk is full
        sys.stdout.flush()
        try:
            descriptor = sys.stdout.fileno()
        except io.UnsupportedOperation:  # it is in memory
            sys.stdout.write(f"{text}\n")
            return
        left = memoryview(f"{text}\n".encode())
        while left and select.select((), (descriptor,), (), READER_S)[1]:
            left = left[os.write(descriptor, left[: select.PIPE_BUF]) :]


@functools.lru_cache(maxsize=1)
def _guarded(file: Any) -> GuardedLog:
    if isinstance(file, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # it is in memory
            file.fileno()
            file.reconfigure(line_buffering=True)  # nothing is left in a buffer, to fail again at the exit
    return GuardedLog(file)


def line(row: dict[str, Any]) -> str:
    """The line for a row of samples.csv. `concurrency` is connections that are established, never users."""
    elapsed_s = max(float(row["time_s"]), 0.001)
    now = [f"{row['phase']} {row['connections'] * 100 // max(row['connections_wanted'], 1)}%"]
    now.append(f"{row['requests']} requests")
    if "latency_p50_ms" in row:
        now.append(f"p50/p99 {row['latency_p50_ms']:.0f}/{row['latency_p99_ms']:.0f} ms")
    now.append(f"{row['failures']} failures")
    now.append(f"{row['reconnects']} reconnects")
    if row.get("streams") not in (None, ""):
        now.append(f"{row['streams']} waiting, {row['events_total']} events")
    return (
        f"time {elapsed_s:.0f}s, concurrency: {row['connections']}, total requests: {row['requests_total']}, "
        f"throughput: {row['received_bytes_total'] / MIB / elapsed_s:.2f}M/s, "
        f"{row['requests_total'] / elapsed_s:.2f} requests/seconds | {', '.join(now)}"
    )
