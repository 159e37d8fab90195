"""`benchmarks/client`: Locust's `FastHttpUser` against `KeepAliveUser`, same server and task, a process each.

Three kinds of process, all this module: the command itself, which runs the rounds in turns and makes the
table; a server (unless --host names one), which counts the connections that it accepts; and a Locust without
workers that runs the users of one kind and measures itself.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "figures.md"
BEGIN, END = "<!-- benchmarks/client: begin -->", "<!-- benchmarks/client: end -->"

STOCK, OURS = "FastHttpUser", "KeepAliveUser"
#: Descriptors of a Locust process or the server beside its connections: libraries, pipes, epoll sets.
OTHER_DESCRIPTORS = 200
#: Users started a second: slow enough for the stock user's CPU.
SPAWN_PER_S = 1000
#: Seconds after the last user has started, beside the longest think time, before measuring begins.
SETTLE_S = 1.0
#: Seconds that a round may take beside those that it is meant to.
SPARE_S = 60.0


def parser() -> argparse.ArgumentParser:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = hard - OTHER_DESCRIPTORS

    def users(text: str) -> int:
        count = int(text)
        if not 1 <= count <= most:
            raise argparse.ArgumentTypeError(
                f"{text}: 1 to {most:,} (the hard limit of open files is {hard:,})"
            )
        return count

    def rounds(text: str) -> int:
        if not 1 <= int(text) <= 20:
            raise argparse.ArgumentTypeError(f"{text}: 1 to 20")
        return int(text)

    def seconds(text: str) -> float:
        if not 1 <= float(text) <= 600:
            raise argparse.ArgumentTypeError(f"{text}: 1 to 600")
        return float(text)

    made = argparse.ArgumentParser(prog="benchmarks/client", description=(__doc__ or "").split("\n\n")[0])
    made.add_argument("-u", "--users", type=users, default=2000, help="users of each kind (default 2000)")
    made.add_argument("--rounds", type=rounds, default=3, help="rounds, both kinds in each (default 3)")
    made.add_argument(
        "--seconds", type=seconds, default=10.0, help="measured seconds a round and kind (default 10)"
    )
    made.add_argument(
        "--think", type=_think, default=(1.0, 3.0), metavar="MIN:MAX", help="seconds (default 1:3)"
    )
    made.add_argument("--length", type=int, default=5632, help="characters of a response (default 5632)")
    made.add_argument("--host", help="server to use (default: one of its own, in one process)")
    made.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(CHECKOUT)}")
    made.add_argument("--part", choices=("serve", STOCK, OURS), help=argparse.SUPPRESS)
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
    results: dict[str, list[dict[str, float]]] = {STOCK: [], OURS: []}
    with server(chosen) as host:
        for number in range(1, chosen.rounds + 1):
            for kind, measured in results.items():
                before = host.opened()
                measured.append(run_users(kind, host.url, chosen))
                measured[-1]["reconnects"] = host.opened() - before - chosen.users
                print(f"round {number}, {kind}: {_line(measured[-1])}", file=sys.stderr, flush=True)
    table = "\n".join(rows(chosen, results))
    print(table)
    if chosen.write:
        text = PAGE.read_text()
        replaced = re.sub(
            f"{re.escape(BEGIN)}.*{re.escape(END)}",
            lambda _: f"{BEGIN}\n{table}\n{END}",
            text,
            flags=re.DOTALL,
        )
        PAGE.write_text(replaced)
    return 0


class Host:
    """The server, and how many connections were opened to it."""

    def __init__(self, url: str, process: subprocess.Popen[str] | None) -> None:
        self.url = url
        self._process = process

    def opened(self) -> int:
        if self._process is None:
            # Those of the whole machine (RFC 4022, tcpActiveOpens): a foreign server doesn't tell.
            names, values = [
                line.split()
                for line in Path("/proc/net/snmp").read_text().splitlines()
                if line.startswith("Tcp:")
            ]
            return int(values[names.index("ActiveOpens")])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextlib.contextmanager
def server(chosen: argparse.Namespace) -> Iterator[Host]:
    if chosen.host:
        yield Host(chosen.host, None)
        return
    command = [sys.executable, "-P", "-m", __spec__.name, "--part", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                sys.exit("benchmarks/client: the server did not start")
            yield Host(url, process)
        finally:
            process.terminate()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]


def run_users(kind: str, url: str, chosen: argparse.Namespace) -> dict[str, float]:
    low, high = chosen.think
    words = ["--users", chosen.users, "--seconds", chosen.seconds, "--think", f"{low}:{high}"]
    words += ["--length", chosen.length, "--host", url, "--part", kind]
    bound_s = chosen.users / SPAWN_PER_S * 10 + high + chosen.seconds + SPARE_S
    command = [sys.executable, "-P", "-m", __spec__.name, *map(str, words)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=bound_s, check=False)
    except subprocess.TimeoutExpired:
        sys.exit(f"benchmarks/client: {kind} did not end within {bound_s:.0f} s")
    if done.returncode:
        sys.exit(f"benchmarks/client: {kind} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


#: (name, key, how it is shown, whether the ratio is a gain)
FIGURES = (
    ("CPU per request, us", "cpu_us_a_request", "{:,.0f}", True),
    ("memory per user at rest, bytes (PSS)", "bytes_a_user", "{:,.0f}", True),
    ("reconnects (connections beyond one per user)", "reconnects", "{:,.0f}", False),
    ("requests/s", "requests_per_s", "{:,.0f}", False),
    ("failed requests", "failures", "{:,.0f}", False),
)


def rows(chosen: argparse.Namespace, results: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    low, high = chosen.think
    today = datetime.datetime.now(datetime.UTC).date()
    yield f"{today}, Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores:"
    yield f"{chosen.users:,} users, think {low:g}-{high:g} s, {chosen.length:,} characters per response,"
    yield f"medians of {chosen.rounds} rounds of {chosen.seconds:g} s (least-most)."
    yield ""
    yield f"| one Locust process | {STOCK} | {OURS} | ratio |"
    yield "| --- | --- | --- | --- |"
    for name, key, form, is_gain in FIGURES:
        shown, medians = [], []
        for kind in (STOCK, OURS):
            values = sorted(measured[key] for measured in results[kind])
            medians.append(statistics.median(values))
            shown.append(f"{form.format(medians[-1])} ({form.format(values[0])}-{form.format(values[-1])})")
        ratio = f"{medians[0] / medians[1]:.1f}x" if is_gain and medians[1] > 0 else ""
        yield f"| {name} | {shown[0]} | {shown[1]} | {ratio} |"


def _line(measured: dict[str, float]) -> str:
    return ", ".join(f"{name} {form.format(measured[key])}" for name, key, form, _ in FIGURES)


# The server


def serve() -> None:
    """Print the URL; then, for each line that comes, the number of connections accepted so far."""
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
        print(listening.accepted, flush=True)


def _raise_descriptor_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# The users


def measure(kind: str, chosen: argparse.Namespace) -> dict[str, float]:
    """Run the users of one kind in this process, a Locust without workers, and measure it."""
    import gevent
    from locust import FastHttpUser, between, log, task
    from locust.env import Environment

    log.setup_logging("WARNING")
    _raise_descriptor_limit()
    base: Any = FastHttpUser
    if kind == OURS:
        # Not before: it adjusts Locust, and the stock user is to run in one as it is installed.
        from parked.user import KeepAliveUser

        base = KeepAliveUser
    low, high = chosen.think

    class Compared(base):  # type: ignore[misc]
        host = chosen.host
        think_time = (low, high)
        if kind == STOCK:
            wait_time = between(low, high)

        @task
        def text(self) -> None:
            path = f"/?length={chosen.length}"
            with self.client.get(path, name="/?length=N", catch_response=True) as response:
                if response.ok and len(response.content or b"") != chosen.length:
                    response.failure("body has not the length that was asked for")

    environment = Environment(user_classes=[Compared])
    runner = environment.create_local_runner()
    runner.register_message("parked_sample", lambda environment, msg: None)
    empty_bytes = pss_bytes()
    runner.start(chosen.users, spawn_rate=SPAWN_PER_S)
    while runner.user_count < chosen.users or runner.state != "running":
        gevent.sleep(0.1)
    gevent.sleep(high + SETTLE_S)
    began, cpu_began, requests_began = time.monotonic(), time.process_time(), _requests(environment)
    gevent.sleep(chosen.seconds)
    cpu_s, elapsed_s = time.process_time() - cpu_began, time.monotonic() - began
    requests = _requests(environment) - requests_began
    if not requests:
        sys.exit(f"no request to {chosen.host} was answered")
    measured = {
        "cpu_us_a_request": cpu_s / requests * 1e6,
        "bytes_a_user": (pss_bytes() - empty_bytes) / chosen.users,
        "requests_per_s": requests / elapsed_s,
        "failures": environment.stats.total.num_failures,
    }
    print(json.dumps(measured), flush=True)
    os._exit(0)  # the kernel closes thousands of connections faster than Locust stops their users


def _requests(environment: Any) -> int:
    process = getattr(environment, "parked_process", None)
    count: int = environment.stats.total.num_requests if process is None else process.counters.requests
    return count


def pss_bytes() -> int:
    """This process's proportional set size (proc(5), smaps_rollup)."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss in /proc/self/smaps_rollup")


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    if chosen.part == "serve":
        serve()
    elif chosen.part:
        measure(chosen.part, chosen)
    else:
        return compare(chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
