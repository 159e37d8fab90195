"""Requests a second, latency, CPU and memory of several servers with the same applications.

One application is Falcon's of `./run_test`, the other does nothing, so that more of what is seen is the
server. Each server runs one worker on one core, wrk on another, over loopback, with keep-alive. The servers
take turns for several rounds, so that what else the machine does hits all of them; the table shows medians. A
server's CPU time per request is the more reliable figure on a busy machine: what others take does not count.
Latencies are of requests that were answered; *over 1 s* are those that waited longer when wrk looked, every
2 s. *alive* are the connections, of those opened one after the other and left idle after their first answer,
that answer a second time, and memory is of these. nginx is shown as it comes, opening its file for each
request, and with `open_file_cache`.

What it does not show: a network, TLS, an application that does anything, more than one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.compared import SERVERS, Server

CHECKOUT: Final = Path(__file__).resolve().parents[1]
HERE: Final = Path(__file__).resolve().parent
EXIT_USAGE: Final = 2
EXIT_FAILED: Final = 1
#: Seconds that a server may take to answer its first request.
START_TIMEOUT_S: Final = 15.0
#: Seconds between the last change and a look at the memory.
SETTLE_S: Final = 1.0
#: The applications, in the order of the table.
APPLICATIONS: Final = {"falcon": "app.wsgi:application", "bare": "benchmarks.bare:application"}
#: What this server is to reach with Falcon, as a multiple of another's requests/s: at so many connections.
GOALS: Final = (("granian", 100, 1.05), ("bjoern", 100, 0.75), ("bjoern", 1_000, 0.9))
#: Where it is to be the first of all that run an application.
FIRST_AT: Final = 10_000
#: Connections in a row without an answer, after which no more are opened.
MAX_UNANSWERED: Final = 20


@dataclass
class Figures:
    """All measurements of one server, one entry a round; failures with their text."""

    rates: dict[int, list[float]] = field(default_factory=dict)
    p50_ms: dict[int, list[float]] = field(default_factory=dict)
    p99_ms: dict[int, list[float]] = field(default_factory=dict)
    user_us: dict[int, list[float]] = field(default_factory=dict)
    system_us: dict[int, list[float]] = field(default_factory=dict)
    timeouts: dict[int, list[int]] = field(default_factory=dict)
    idle_bytes: list[float] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Figures:
        """JSON has no keys but strings; ours are numbers of connections."""
        return cls(
            **{
                name: {int(key): figures for key, figures in value.items()}
                if isinstance(value, dict)
                else value
                for name, value in fields.items()
            }
        )


class BenchmarkError(Exception):
    """A measurement that could not be made; never counted as a figure."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    server: Server, application: str, options: argparse.Namespace
) -> Iterator[tuple[psutil.Process, int]]:
    """The server, pinned to its core and answering, and its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null:
        process = psutil.Popen(
            [
                *("taskset", "-c", str(options.server_cpu)),
                *server.command(port, Path(folder), options.length, application),
            ],
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdout=null,
            stderr=null,
            start_new_session=True,
        )
        try:
            wait_for_answer(server, process, port, options.length)
            yield process, port
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(5)
            except psutil.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(5)


def wait_for_answer(server: Server, process: psutil.Process, port: int, length: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with server.connect(port, timeout=2) as sock:
                ask(sock, server.path(length))
                return
        except OSError as error:
            if time.monotonic() > deadline or not process.is_running():
                raise BenchmarkError(f"does not answer: {error}") from error
            time.sleep(0.1)


def ask(sock: socket.socket, path: str) -> None:
    """One request, its answer read to the end of its length."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: benchmark\r\n\r\n".encode())
    data = b""
    while True:
        received = sock.recv(65536)
        if not received:
            raise ConnectionError("closed by the server")
        data += received
        head, end, content = data.partition(b"\r\n\r\n")
        if end:
            if not head.startswith(b"HTTP/1.1 200"):
                raise BenchmarkError(f"answers {head[:40]!r}")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            if length and len(content) >= int(length[1]):
                return


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> tuple[float, float]:
    times = [member.cpu_times() for member in family(process)]
    return sum(time.user for time in times), sum(time.system for time in times)


def memory_bytes(process: psutil.Process) -> int:
    """PSS of its processes without pages of files, which the kernel takes away and gives back as it likes."""
    total = 0
    for member in family(process):
        rollup = Path(f"/proc/{member.pid}/smaps_rollup").read_text("ascii")
        total += sum(int(kib) * 1024 for kib in re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+)", rollup, re.M))
    return total


def measure_rate(
    server: Server, application: str, connections: int, options: argparse.Namespace
) -> dict[str, float]:
    """One run of wrk; the first second is a run of its own and thrown away."""
    with running(server, application, options) as (process, port):
        scheme = "https" if server.tls is not None else "http"
        url = f"{scheme}://127.0.0.1:{port}{server.path(options.length)}"
        wrk = ["taskset", "-c", str(options.client_cpu), "wrk", "-t1", f"-c{connections}", "--timeout", "1"]
        wrk += [word for line in server.fields for word in ("-H", line)]
        subprocess.run([*wrk, "-d1", url], check=True, capture_output=True, timeout=60)
        before = cpu_seconds(process)
        command = [*wrk, f"-d{options.duration}", "-s", str(HERE / "wrk_report.lua"), url]
        output = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=options.duration + 60
        ).stdout
        after = cpu_seconds(process)
    report: dict[str, float] = json.loads(output.splitlines()[-1])
    if not report["requests"] or report["bad_status"]:
        raise BenchmarkError(f"{report['requests']} requests, {report['bad_status']} of them refused")
    report["user_us"] = (after[0] - before[0]) / report["requests"] * 1e6
    report["system_us"] = (after[1] - before[1]) / report["requests"] * 1e6
    return report


def measure_memory(server: Server, application: str, options: argparse.Namespace) -> tuple[int, float]:
    """Idle connections that are still there to be used, and bytes of the server's processes for each."""
    path = server.path(options.length)
    with running(server, application, options) as (process, port):
        time.sleep(SETTLE_S)
        before = memory_bytes(process)
        clients: list[socket.socket] = []
        unanswered = 0
        try:
            while len(clients) < options.idle and unanswered < MAX_UNANSWERED:
                sock = server.connect(port, timeout=START_TIMEOUT_S)  # a handshake may take a while
                sock.settimeout(1)
                clients.append(sock)
                unanswered = 0 if is_answered(sock, path) else unanswered + 1
            time.sleep(SETTLE_S)
            growth = memory_bytes(process) - before
            alive = unanswered = 0
            for sock in clients:
                answered = is_answered(sock, path)
                alive += answered
                unanswered = 0 if answered else unanswered + 1
                if unanswered == MAX_UNANSWERED:
                    sock.settimeout(0.01)  # no more patience than it takes to see whether one is left
            if not alive:
                raise BenchmarkError(f"none of {len(clients):,} connections is left")
            return alive, float(growth / alive)
        finally:
            for sock in clients:
                sock.close()


def is_answered(sock: socket.socket, path: str) -> bool:
    try:
        ask(sock, path)
    except (BenchmarkError, OSError):
        sock.close()  # it is nobody's any more
        return False
    return True


def rounds_of(results: dict[str, Figures]) -> int:
    counts = [len(rates) for figures in results.values() for rates in figures.rates.values()]
    return max(counts, default=0)


def measure(names: list[str], options: argparse.Namespace, results: dict[str, Figures]) -> None:
    """Add the rounds that were asked for to *results*, whose keys are those of `pairs`."""
    done = rounds_of(results)
    for number in range(done, done + options.rounds):
        order = list(pairs(names, options.apps))
        for key, server, application in order if number % 2 == 0 else reversed(order):
            figures = results.setdefault(key, Figures())
            for connections in options.connections:
                with noting_failure(figures, f"{connections:,} connections"):
                    add_rate(figures, connections, measure_rate(server, application, connections, options))
                    rate = figures.rates[connections][-1]
                    progress(f"round {number + 1}: {key}: {connections} connections: {rate:.0f}/s")
            if options.idle and not figures.alive and application == APPLICATIONS["falcon"]:
                with noting_failure(figures, f"{options.idle:,} idle connections"):
                    alive, size = measure_memory(server, application, options)
                    figures.alive.append(alive)
                    figures.idle_bytes.append(size)
                    progress(f"{key}: {alive} alive, {size:.0f} bytes per connection")


def pairs(names: list[str], applications: list[str]) -> Iterator[tuple[str, Server, str]]:
    """Each server with each application: a key for the results, the server, what to import."""
    for name in names:
        for application in applications if SERVERS[name].runs_applications else applications[:1]:
            key = (
                name
                if application == "falcon" or not SERVERS[name].runs_applications
                else f"{name}/{application}"
            )
            yield key, SERVERS[name], APPLICATIONS[application]


@contextlib.contextmanager
def noting_failure(figures: Figures, where: str) -> Iterator[None]:
    """A measurement that fails is told with its place; it is no figure, and no reason to drop the others."""
    try:
        yield
    except (BenchmarkError, OSError, subprocess.SubprocessError, psutil.Error) as error:
        figures.failures.append(f"{where}: {error}")
        progress(f"FAILED: {where}: {error}")


def add_rate(figures: Figures, connections: int, report: dict[str, float]) -> None:
    figures.rates.setdefault(connections, []).append(report["requests"] / report["duration_us"] * 1e6)
    figures.p50_ms.setdefault(connections, []).append(report["p50_us"] / 1000)
    figures.p99_ms.setdefault(connections, []).append(report["p99_us"] / 1000)
    figures.user_us.setdefault(connections, []).append(report["user_us"])
    figures.system_us.setdefault(connections, []).append(report["system_us"])
    figures.timeouts.setdefault(connections, []).append(int(report["timeouts"]))


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(results: dict[str, Figures], options: argparse.Namespace) -> str:
    """The medians in Markdown, with what a reader needs to judge them."""
    lines = [
        f"Medians of {rounds_of(results)} rounds of {options.duration} s, {options.length} bytes per response"
        f", {time.strftime('%Y-%m-%d', time.gmtime())}, {cpu_model()},"
        f" Linux {platform.release()}, Python {platform.python_version()}.",
        "",
        "| server | application | connections | requests/s | against pywsgi | p50 ms | p99 ms | over 1 s"
        f" | CPU us/request: user | system | alive of {options.idle:,} idle | bytes/idle connection |",
        "| --- " * 12 + "|",
    ]
    for key in ordered(results):
        name, _, application = key.partition("/")
        figures, server = results[key], SERVERS[name]
        for connections in options.connections:
            if connections not in figures.rates:
                continue
            ratio = ratio_to(results, key, f"pywsgi/{application}" if application else "pywsgi", connections)
            cells: list[Any] = [
                server.title,
                (application or "falcon") if server.runs_applications else "-",
                f"{connections:,}",
                f"{statistics.median(figures.rates[connections]):,.0f}",
                f"{ratio:.1f}x" if ratio else "-",
                f"{statistics.median(figures.p50_ms[connections]):.1f}",
                f"{statistics.median(figures.p99_ms[connections]):.1f}",
                f"{statistics.median(figures.timeouts[connections]):.0f}",
                f"{statistics.median(figures.user_us[connections]):.1f}",
                f"{statistics.median(figures.system_us[connections]):.1f}",
                f"{statistics.median(figures.alive):,.0f}" if figures.alive else "-",
                f"{statistics.median(figures.idle_bytes):,.0f}" if figures.idle_bytes else "-",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    for key, figures in results.items():
        for failure, count in Counter(figures.failures).items():
            lines.append(f"\n{key}: FAILED {count} times: {failure}")
    return "\n".join([*lines, *goals(results)]) + "\n"


def ordered(results: dict[str, Figures]) -> list[str]:
    """The keys of *results* as the table has them: by application, then as the servers are listed."""
    names, applications = list(SERVERS), ["", *APPLICATIONS]

    def place(key: str) -> tuple[int, int]:
        name, _, application = key.partition("/")
        return applications.index(application), names.index(name)

    return sorted(results, key=place)


def ratio_to(results: dict[str, Figures], key: str, other: str, connections: int) -> float:
    """Requests/s of *key* as a multiple of those of *other*; 0 if one is not known."""
    rates = [results[name].rates.get(connections) if name in results else None for name in (key, other)]
    if not rates[0] or not rates[1]:
        return 0.0
    return statistics.median(rates[0]) / statistics.median(rates[1])


def goals(results: dict[str, Figures]) -> list[str]:
    """A line for each goal of this server whose figures there are."""
    peers = [name for name, server in SERVERS.items() if server.runs_applications and name != "ours"]
    wanted = [*GOALS, *((name, FIRST_AT, 1.0) for name in peers)]
    lines = []
    for peer, connections, goal in wanted:
        ratio = ratio_to(results, "ours", peer, connections)
        if ratio:
            verdict = "reached" if ratio >= goal else "missed"
            lines.append(
                f"- {ratio:.2f}x {SERVERS[peer].title} at {connections:,}; goal {goal:.2f}x: {verdict}"
            )
    return ["", "Goals, with Falcon:", "", *lines] if lines else []


def cpu_model() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{found[1] if found else platform.machine()} ({os.cpu_count()} cores)"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--servers", default=",".join(SERVERS), help="comma-separated: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server [%(default)s]")
    parser.add_argument("--duration", type=int, default=5, help="seconds of each run of wrk [%(default)s]")
    parser.add_argument(
        "--apps",
        type=lambda text: text.split(","),
        default=",".join(APPLICATIONS),
        help="applications, comma-separated: %(default)s",
    )
    parser.add_argument("--connections", type=numbers, default="100,1000,10000", help="[%(default)s]")
    parser.add_argument(
        "--idle", type=int, default=10_000, help="connections for the memory figure [%(default)s]"
    )
    parser.add_argument("--length", type=int, default=5600, help="bytes of a response [%(default)s]")
    parser.add_argument("--server-cpu", type=int, default=0, help="core of the server [%(default)s]")
    parser.add_argument("--client-cpu", type=int, default=1, help="core of wrk [%(default)s]")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument(
        "--data", type=Path, help="keep all figures in this file, and add to those that are in it"
    )
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    missing = [tool for tool in ("wrk", "taskset") if not shutil.which(tool)]
    if missing:
        progress(f"needs {' and '.join(missing)}: apt install wrk util-linux")
        return EXIT_USAGE
    names = options.servers.split(",")
    if unknown := [name for name in names if name not in SERVERS]:
        progress(f"unknown servers: {', '.join(unknown)}; there are {', '.join(SERVERS)}")
        return EXIT_USAGE
    if unknown := [name for name in options.apps if name not in APPLICATIONS]:
        progress(f"unknown applications: {', '.join(unknown)}; there are {', '.join(APPLICATIONS)}")
        return EXIT_USAGE
    for name in [name for name in names if not SERVERS[name].available()]:
        progress(f"left out: {SERVERS[name].title} ({SERVERS[name].install})")
        names.remove(name)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = max([*options.connections, options.idle])
    if most + 100 > hard:
        progress(f"{most} connections need more open files than {hard} (ulimit -Hn)")
        return EXIT_USAGE
    results: dict[str, Figures] = {}
    if options.data and options.data.exists():
        results = {
            name: Figures.from_json(fields) for name, fields in json.loads(options.data.read_text()).items()
        }
    measure(names, options, results)
    if options.data:
        options.data.write_text(
            json.dumps({name: figures.to_json() for name, figures in results.items()}, indent=1)
        )
    text = table(results, options)
    print(text, end="")
    if options.output:
        options.output.write_text("# Servers compared\n\n" + (__doc__ or "").strip() + "\n\n" + text)
    return EXIT_FAILED if any(figures.failures for figures in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
