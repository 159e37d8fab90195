"""Requests a second, latency, CPU and memory of several servers with the same application.

Each server runs one worker on one core, wrk on another, over loopback, with keep-alive. The servers take
turns for several rounds, so that what else the machine does hits all of them; the table shows medians. A
server's CPU time per request is the more reliable figure on a busy machine: what others take does not count.
Latencies are of requests that were answered; *over 1 s* are those that waited longer when wrk looked, every
2 s. nginx is shown as it comes, opening its file for each request, and with `open_file_cache`.

What it does not show: a network, TLS, an application that does anything, more than one core.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

CHECKOUT: Final = Path(__file__).resolve().parents[1]
HERE: Final = Path(__file__).resolve().parent
EXIT_USAGE: Final = 2
EXIT_FAILED: Final = 1
#: Seconds that a server may take to answer its first request.
START_TIMEOUT_S: Final = 15.0
#: Seconds between the last change and a look at the memory.
SETTLE_S: Final = 1.0


@dataclass(frozen=True)
class Server:
    """How to start one of the servers, and how to get it."""

    title: str
    command: Callable[[int, Path, int], list[str]]
    available: Callable[[], bool]
    install: str
    #: What to ask for; the static file of a server without the application has another path.
    path: Callable[[int], str] = lambda length: f"/?length={length}"


def _has(module: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(module) is not None


def _nginx(cache: str) -> Callable[[int, Path, int], list[str]]:
    """nginx with its descriptors of files cached or not, which is its default."""
    return lambda port, folder, length: _nginx_command(port, folder, length, cache)


def _nginx_command(port: int, folder: Path, length: int, cache: str) -> list[str]:
    (folder / "text").write_bytes(b"x" * length)
    (folder / "nginx.conf").write_text(
        f"""
        daemon off; worker_processes 1; worker_rlimit_nofile 20000;
        pid {folder}/pid; error_log {folder}/error;
        events {{ worker_connections 19000; multi_accept on; }}
        http {{
            access_log off; keepalive_timeout 600; keepalive_requests 1000000000; tcp_nodelay on; sendfile on;
            {cache} default_type text/plain; client_body_temp_path {folder}/b;
            proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
            scgi_temp_path {folder}/s;
            server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}; }}
        }}
        """
    )
    folder.chmod(0o755)
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


SERVERS: Final = {
    "ours": Server(
        "this server",
        lambda port, _folder, _length: (
            [sys.executable, "-m", "app", "--bind", f"127.0.0.1:{port}", "--workers", "1"]
        ),
        lambda: True,
        "",
    ),
    "pywsgi": Server(
        "gevent.pywsgi, stock",
        lambda port, _folder, _length: [sys.executable, "-m", "benchmarks.stock_pywsgi", str(port)],
        lambda: True,
        "",
    ),
    "gunicorn": Server(
        "gunicorn, gevent worker",
        lambda port, _folder, _length: (
            [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "--keep-alive", "600"]
            + ["--worker-connections", "19000", "--backlog", "4096", "-b", f"127.0.0.1:{port}"]
            + ["app.wsgi:application"]
        ),
        _has("gunicorn"),
        "pip install gunicorn packaging",
    ),
    "granian": Server(
        "granian, WSGI",
        lambda port, _folder, _length: (
            [sys.executable, "-m", "granian", "--interface", "wsgi", "--workers", "1", "--no-access-log"]
            + ["--backlog", "4096", "--backpressure", "19000", "--host", "127.0.0.1", "--port", str(port)]
            + ["app.wsgi:application"]
        ),
        _has("granian"),
        "pip install granian",
    ),
    "uvicorn": Server(
        "uvicorn, WSGI",
        lambda port, _folder, _length: (
            [
                sys.executable,
                "-m",
                "uvicorn",
                "--interface",
                "wsgi",
                "--no-access-log",
                "--log-level",
                "error",
            ]
            + ["--timeout-keep-alive", "600", "--backlog", "4096", "--host", "127.0.0.1", "--port", str(port)]
            + ["app.wsgi:application"]
        ),
        _has("uvicorn"),
        "pip install uvicorn uvloop httptools",
    ),
    "nginx": Server(
        "nginx, static file",
        _nginx(""),
        lambda: shutil.which("nginx") is not None,
        "apt install nginx-light",
        lambda _length: "/text",
    ),
    "nginx-cache": Server(
        "nginx, open_file_cache",
        _nginx("open_file_cache max=1000; open_file_cache_valid 60s;"),
        lambda: shutil.which("nginx") is not None,
        "apt install nginx-light",
        lambda _length: "/text",
    ),
}


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
def running(server: Server, options: argparse.Namespace) -> Iterator[tuple[psutil.Process, int]]:
    """The server, pinned to its core and answering, and its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null:
        process = psutil.Popen(
            ["taskset", "-c", str(options.server_cpu), *server.command(port, Path(folder), options.length)],
            cwd=CHECKOUT,
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
            with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
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


def measure_rate(server: Server, connections: int, options: argparse.Namespace) -> dict[str, float]:
    """One run of wrk; the first second is a run of its own and thrown away."""
    with running(server, options) as (process, port):
        url = f"http://127.0.0.1:{port}{server.path(options.length)}"
        wrk = ["taskset", "-c", str(options.client_cpu), "wrk", "-t1", f"-c{connections}", "--timeout", "1"]
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


def measure_memory(server: Server, options: argparse.Namespace) -> float:
    """Bytes of the server's processes for each connection that has had one answer and is idle."""
    with running(server, options) as (process, port):
        time.sleep(SETTLE_S)
        before = memory_bytes(process)
        clients: list[socket.socket] = []
        try:
            for _ in range(options.idle):
                sock = socket.create_connection(("127.0.0.1", port), timeout=10)
                clients.append(sock)
                ask(sock, server.path(options.length))
            time.sleep(SETTLE_S)
            return float((memory_bytes(process) - before) / options.idle)
        finally:
            for sock in clients:
                sock.close()


def rounds_of(results: dict[str, Figures]) -> int:
    counts = [len(rates) for figures in results.values() for rates in figures.rates.values()]
    return max(counts, default=0)


def measure(names: list[str], options: argparse.Namespace, results: dict[str, Figures]) -> None:
    """Add the rounds that were asked for to *results*."""
    done = rounds_of(results)
    for number in range(done, done + options.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            server, figures = SERVERS[name], results.setdefault(name, Figures())
            for connections in options.connections:
                with noting_failure(figures, f"{connections:,} connections"):
                    add_rate(figures, connections, measure_rate(server, connections, options))
                    rate = figures.rates[connections][-1]
                    progress(f"round {number + 1}: {server.title}: {connections} connections: {rate:.0f}/s")
            if options.idle and not figures.idle_bytes:
                with noting_failure(figures, f"{options.idle:,} idle connections"):
                    figures.idle_bytes.append(measure_memory(server, options))
                    progress(f"{server.title}: {figures.idle_bytes[-1]:.0f} bytes a connection")


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
        "| server | connections | requests/s | against pywsgi | p50 ms | p99 ms | over 1 s"
        " | CPU us/request: user | system | bytes/idle connection |",
        "| --- " * 10 + "|",
    ]
    reference = results.get("pywsgi")
    for name in [name for name in SERVERS if name in results]:
        figures = results[name]
        for connections in options.connections:
            rates = figures.rates.get(connections)
            if not rates:
                continue
            rate = statistics.median(rates)
            base = statistics.median(reference.rates[connections]) if reference and reference.rates else 0
            cells: list[Any] = [
                SERVERS[name].title,
                f"{connections:,}",
                f"{rate:,.0f}",
                f"{rate / base:.1f}x" if base else "-",
                f"{statistics.median(figures.p50_ms[connections]):.1f}",
                f"{statistics.median(figures.p99_ms[connections]):.1f}",
                f"{statistics.median(figures.timeouts[connections]):.0f}",
                f"{statistics.median(figures.user_us[connections]):.1f}",
                f"{statistics.median(figures.system_us[connections]):.1f}",
                f"{statistics.median(figures.idle_bytes):,.0f}" if figures.idle_bytes else "-",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    for name, figures in results.items():
        for failure, count in Counter(figures.failures).items():
            lines.append(f"\n{SERVERS[name].title}: FAILED {count} times: {failure}")
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--connections", type=numbers, default="100,10000", help="[%(default)s]")
    parser.add_argument(
        "--idle", type=int, default=15_000, help="connections for the memory figure [%(default)s]"
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
