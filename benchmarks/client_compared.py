"""`benchmarks/client`: load generators that hold keep-alive connections, `KeepAliveUser` among them.

All talk to the same server in turns, a process each, and what each costs is measured from outside: CPU and
memory of its processes by /proc, connections and requests by the server's own counts. Memory is without pages
of files; per user, it is what the process has more than with a single one. *held* is the lesser number of
connections that the server had at the beginning and at the end of the measured seconds.

What it does not show: the kernel's memory, which is the same for all, and several processes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from benchmarks.clients import CLIENTS, NO_PACKAGE, OURS, SPAWN_PER_S, Load
from benchmarks.compare_servers import BenchmarkError, cpu_seconds, memory_bytes

MIB: Final = 1 << 20
CHECKOUT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = CHECKOUT / "docs" / "figures.md"
BEGIN, END = "<!-- benchmarks/client: begin -->", "<!-- benchmarks/client: end -->"

#: Descriptors of a client or the server beside its connections: libraries, pipes, epoll sets.
OTHER_DESCRIPTORS: Final = 200
#: Seconds after the last connection was opened, beside the longest think time, before measuring begins.
SETTLE_S: Final = 1.0
#: Seconds that a client may take to open its connections beside those that it is meant to, and to end.
SPARE_S: Final = 10.0
END_S: Final = 10.0
#: Share of the connections that is enough to begin with: some reconnect all the time.
ENOUGH: Final = 0.99


class Round(NamedTuple):
    """What one client took in one round."""

    held: float
    cpu_us: float  #: of a request
    user_bytes: float
    all_mib: float
    requests_per_s: float
    reconnects: float  #: connections beyond one per user, from the beginning
    failed: float
    failures: dict[str, int]


#: Names of its figures in the table, and whether the spread is shown too.
FIGURES: Final = (
    ("held", False),
    ("CPU us per request", True),
    ("bytes per user", True),
    ("MiB in all", False),
    ("requests/s", False),
    ("reconnects", False),
    ("failed", False),
)

#: Of each client and number of connections: its rounds, or what became of one that is no figure.
Row = Round | str
Results = dict[tuple[str, int], list[Row]]


def parser() -> argparse.ArgumentParser:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = hard - OTHER_DESCRIPTORS

    def users(text: str) -> list[int]:
        counts = [int(part) for part in text.split(",")]
        if not all(1 <= count <= most for count in counts):
            raise argparse.ArgumentTypeError(
                f"{text}: 1 to {most:,} (the hard limit of open files is {hard:,})"
            )
        return counts

    def clients(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in CLIENTS]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(CLIENTS)}")
        return names

    def rounds(text: str) -> int:
        if not 1 <= int(text) <= 20:
            raise argparse.ArgumentTypeError(f"{text}: 1 to 20")
        return int(text)

    def seconds(text: str) -> float:
        if not 1 <= float(text) <= 600:
            raise argparse.ArgumentTypeError(f"{text}: 1 to 600")
        return float(text)

    made = argparse.ArgumentParser(
        prog="benchmarks/client",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("-u", "--users", type=users, default=[2000], help="one or more, with commas [2000]")
    made.add_argument("--clients", type=clients, default=list(CLIENTS), help=f"[{','.join(CLIENTS)}]")
    made.add_argument("--rounds", type=rounds, default=3, help="rounds, all clients in each [3]")
    made.add_argument(
        "--seconds", type=seconds, default=10.0, help="measured seconds a round and client [10]"
    )
    made.add_argument(
        "--think",
        type=_think,
        default=(1.0, 3.0),
        metavar="MIN:MAX",
        help="seconds, not too close to each other: wrk starts all at once [1:3]",
    )
    made.add_argument("--length", type=int, default=5632, help="characters of a response [5632]")
    made.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(CHECKOUT)}")
    made.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return made


def _think(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    span = float(low), float(high or low)
    if not 0 < span[0] <= span[1] <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:MAX, 0 < MIN <= MAX <= 60")
    return span


# The command


def compare(chosen: argparse.Namespace) -> int:
    if chosen.write and not (PAGE.exists() and {BEGIN, END} <= set(PAGE.read_text().splitlines())):
        sys.exit(f"benchmarks/client: {PAGE} has no lines {BEGIN} and {END}")
    _raise_descriptor_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks/client: ended"))  # with what it has started
    there = [name for name in chosen.clients if CLIENTS[name].available()]
    for name in chosen.clients:
        if name not in there:
            progress(f"left out: {name} ({CLIENTS[name].install})")
    results: Results = {(name, users): [] for users in chosen.users for name in there}
    with served() as server:
        alone_mib = {name: measure_alone(name, server, chosen) for name in there}
        for number in range(1, chosen.rounds + 1):
            for (name, users), rounds in results.items():
                rounds.append(attempt(name, server, chosen, users, alone_mib[name]))
                progress(f"round {number}, {name}, {users:,}: {rounds[-1]}")
    table = "\n".join(rows(chosen, results))
    print(table)
    if chosen.write:
        replaced = re.sub(
            f"{re.escape(BEGIN)}.*{re.escape(END)}",
            lambda _: f"{BEGIN}\n{table}\n{END}",
            PAGE.read_text(),
            flags=re.DOTALL,
        )
        PAGE.write_text(replaced)
    return 0


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def attempt(name: str, server: Server, chosen: argparse.Namespace, users: int, alone_mib: float) -> Row:
    """A round, or why it is none: no reason to drop the others."""
    try:
        return run(name, server, chosen, users, alone_mib)
    except (BenchmarkError, OSError, ValueError, LookupError, psutil.Error) as error:
        return str(error)


def run(name: str, server: Server, chosen: argparse.Namespace, users: int, alone_mib: float) -> Round:
    """Have the client hold so many connections, and measure it.

    Raises BenchmarkError if it has ended by itself or asked nothing.
    """
    with holding(name, server, chosen, users) as (process, folder, at_first):
        time.sleep(chosen.think[1] + SETTLE_S)
        began, before, cpu_before = time.monotonic(), server.state(), sum(cpu_seconds(process))
        time.sleep(chosen.seconds)
        after, cpu_s = server.state(), sum(cpu_seconds(process)) - cpu_before
        elapsed_s, size = time.monotonic() - began, memory_bytes(process)
        if process.poll() is not None:
            raise BenchmarkError(f"it has ended: {said(folder)}")
        os.killpg(process.pid, CLIENTS[name].ends_by)
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(END_S)
        failures = CLIENTS[name].failures((folder / "printed").read_text(), folder)
        requests = after.requests - before.requests
        if not requests:
            raise BenchmarkError(f"no request, {after.connections:,} connections: {said(folder)}")
    return Round(
        held=min(before.connections, after.connections),
        cpu_us=cpu_s / requests * 1e6,
        user_bytes=(size - alone_mib * MIB) / users,
        all_mib=size / MIB,
        requests_per_s=requests / elapsed_s,
        reconnects=max(0, after.accepted - at_first.accepted - users),
        failed=sum(failures.values()),
        failures=failures,
    )


def measure_alone(name: str, server: Server, chosen: argparse.Namespace) -> float:
    """MiB that the client has with one connection."""
    with holding(name, server, chosen, 1) as (process, _, _):
        time.sleep(SETTLE_S)
        return memory_bytes(process) / MIB


@contextlib.contextmanager
def holding(
    name: str, server: Server, chosen: argparse.Namespace, users: int
) -> Iterator[tuple[psutil.Popen, Path, State]]:
    """The client's process with its connections open, or as many as it can have in a time; its folder, and
    what the server had counted before."""
    server.wait_for(lambda state: state.connections == 0, SPARE_S)
    ramp_s = users / SPAWN_PER_S * 3 + SPARE_S
    bound_s = math.ceil(ramp_s + chosen.think[1] + SETTLE_S + chosen.seconds + SPARE_S)
    load = Load(server.url, users, chosen.think, chosen.length, bound_s)
    at_first = server.state()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        with started(CLIENTS[name].command(load, folder), folder) as process:
            server.wait_for(lambda state: state.connections >= ENOUGH * users, ramp_s)
            yield process, folder, at_first


@contextlib.contextmanager
def started(command: list[str], folder: Path) -> Iterator[psutil.Popen]:
    """A process in a group of its own, of which nothing is left afterwards."""
    with (folder / "printed").open("w") as printed, (folder / "said").open("w") as errors:
        process = psutil.Popen(
            command,
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=errors,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said(folder: Path) -> str:
    """The last that a client has told."""
    return " ".join(((folder / "printed").read_text() + (folder / "said").read_text()).split())[-300:]


def rows(chosen: argparse.Namespace, results: Results) -> Iterator[str]:
    low, high = chosen.think
    today = datetime.datetime.now(datetime.UTC).date()
    yield f"{today}, Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores:"
    yield f"think {low:g}-{high:g} s, {chosen.length:,} characters per response,"
    yield f"medians of {chosen.rounds} rounds of {chosen.seconds:g} s (least-most)."
    yield ""
    yield f"| client | connections | {' | '.join(name for name, _ in FIGURES)} |"
    yield "| --- " * (len(FIGURES) + 2) + "|"
    for (name, users), rounds in results.items():
        figures = [one for one in rounds if isinstance(one, Round)]
        if figures:
            yield f"| {name} | {users:,} | {' | '.join(cells(figures))} |"
        else:
            yield f"| {name} | {users:,} | {rounds[-1]}{' |' * len(FIGURES)}"
    for name in CLIENTS:
        if name in chosen.clients and not CLIENTS[name].available():
            yield f"| {name} | - | not there: {CLIENTS[name].install}{' |' * len(FIGURES)}"
    for name, why in NO_PACKAGE.items():
        yield f"| {name} | - | {why}{' |' * len(FIGURES)}"
    yield ""
    yield from remarks(results)


def remarks(results: Results) -> Iterator[str]:
    """What a client could not do, in its words, and how it compares with ours."""
    for (name, users), rounds in results.items():
        ours = [one for one in results.get((OURS, users), []) if isinstance(one, Round)]
        figures = [one for one in rounds if isinstance(one, Round)]
        for one in figures:
            if one.failed or one.held < ENOUGH * users:
                told = ", ".join(f"{kind} {count:,}" for kind, count in one.failures.items() if count)
                yield f"- {name} held {one.held:,} of {users:,} connections; failed: {told or 'nothing'}"
        if name != OURS and ours and figures:
            cpu = statistics.median(one.cpu_us for one in figures)
            cpu /= statistics.median(one.cpu_us for one in ours)
            size = statistics.median(one.user_bytes for one in figures)
            size /= statistics.median(one.user_bytes for one in ours)
            yield f"- {name} at {users:,}: {cpu:.2f}x the CPU per request of {OURS}, {size:.1f}x the memory"


def cells(rounds: list[Round]) -> Iterator[str]:
    columns = zip(*(one[: len(FIGURES)] for one in rounds), strict=True)
    for (_, has_spread), values in zip(FIGURES, columns, strict=True):
        shown = f"{statistics.median(values):,.0f}"
        if has_spread and len(values) > 1:
            shown += f" ({min(values):,.0f}-{max(values):,.0f})"
        yield shown


# The server


class State(NamedTuple):
    """What the server counts: connections that there are, and all that were and asked."""

    connections: int
    accepted: int
    requests: int


class Server:
    """The server's process, as the command sees it."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self._process = process

    def state(self) -> State:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return State(*map(int, self._process.stdout.readline().split()))

    def wait_for(self, holds: Callable[[State], bool], seconds: float) -> None:
        """Until it does, or the time is over."""
        deadline = time.monotonic() + seconds
        while not holds(self.state()) and time.monotonic() < deadline:
            time.sleep(0.1)


@contextlib.contextmanager
def served() -> Iterator[Server]:
    command = [sys.executable, "-P", "-m", __spec__.name, "--serve"]
    with subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                sys.exit("benchmarks/client: the server did not start")
            yield Server(url, process)
        finally:
            process.terminate()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]


def serve() -> None:
    """Print the URL; then, for each line that comes, what is counted."""
    from gevent import monkey

    monkey.patch_all()
    from gevent.fileobject import FileObject

    from app.wsgi import application
    from parked.server import KeepAliveWSGIServer

    _raise_descriptor_limit()
    listening = KeepAliveWSGIServer(("127.0.0.1", 0), application, log=None, backlog=4096)
    listening.start()
    print(f"http://127.0.0.1:{listening.server_port}", flush=True)
    for _ in FileObject(sys.stdin.buffer, "rb"):
        figures = dict(listening.figures())
        print(figures["connections"], figures["accepted"], listening.requests, flush=True)


def _raise_descriptor_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    if chosen.serve:
        serve()
        return 0
    return compare(chosen)


if __name__ == "__main__":
    sys.exit(main())
