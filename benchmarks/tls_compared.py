"""What a parked TLS connection costs a server in memory, beside nginx with the same certificate.

Each server runs one worker on one core. Clients connect one after the other, ask once and stay; memory is
the growth of PSS without pages of files, over the connections that answer a second time. All use the system's
OpenSSL, and most of what is seen is its own. nginx sends a file, the others run the application of
`./run_test`.

What it does not show: what the kernel takes for a socket, the same for all; handshakes under way.
"""

from __future__ import annotations

import argparse
import platform
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.compare_servers import (
    APPLICATIONS,
    EXIT_FAILED,
    EXIT_USAGE,
    BenchmarkError,
    cpu_model,
    measure_memory,
    progress,
)
from benchmarks.compared import HOST, Server, nginx

#: By which the others are measured.
FLOOR: Final = "nginx"
#: What this server is to need at most, as a multiple of that.
GOAL: Final = 1.2
VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def servers(certificate: Path, key: Path, version: str) -> dict[str, Server]:
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = VERSIONS[version]

    with_pair = f"ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {certificate}; ssl_certificate_key {key};"

    def ours(port: int, _folder: Path, _length: int, app: str) -> list[str]:
        words = [sys.executable, "-m", "app", "--app", app, "--bind", f"{HOST}:{port}", "--workers", "1"]
        return [*words, "--certfile", str(certificate), "--keyfile", str(key)]

    def hosted(which: str) -> Callable[[int, Path, int, str], list[str]]:
        words = [sys.executable, "-m", "benchmarks.hosted", which]
        return lambda port, _folder, _length, app: [*words, str(port), app, str(certificate), str(key)]

    return {
        "ours": Server("this server", ours, lambda: True, "", tls=context),
        "imported": Server("this server, by certfile", hosted("parked"), lambda: True, "", tls=context),
        "pywsgi": Server("gevent.pywsgi, stock", hosted("pywsgi"), lambda: True, "", tls=context),
        FLOOR: nginx("nginx", with_pair, context),
    }


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own authority, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"],
        check=True,
        capture_output=True,
    )
    return certificate, key


def table(found: dict[tuple[str, str], list[float]], titles: dict[str, str], connections: int) -> str:
    rounds = max(map(len, found.values()), default=0)
    versions = f"Linux {platform.release()}, Python {platform.python_version()}, {ssl.OPENSSL_VERSION}"
    lines = [
        f"{connections:,} connections, medians of {rounds} rounds,"
        f" {time.strftime('%Y-%m-%d', time.gmtime())}, {cpu_model()}, {versions}.",
        "",
        "| server | TLS | bytes/idle connection | against nginx |",
        "| --- | --- | --- | --- |",
    ]
    for (name, version), sizes in found.items():
        size, floor = statistics.median(sizes), found.get((FLOOR, version))
        ratio = f"{size / statistics.median(floor):.2f}x" if floor else "-"
        lines.append(f"| {titles[name]} | {version} | {size:,.0f} | {ratio} |")
    return "\n".join(lines) + "\n"


def missed(found: dict[tuple[str, str], list[float]]) -> bool:
    """Whether this server needs more than its goal in any version."""
    return any(
        statistics.median(sizes) > GOAL * statistics.median(found[FLOOR, version])
        for (name, version), sizes in found.items()
        if name == "ours" and (FLOOR, version) in found
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/tls", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--servers", default=f"ours,{FLOOR}", help="ours, imported, pywsgi, nginx [%(default)s]"
    )
    parser.add_argument("--versions", default="1.3,1.2", help="of TLS [%(default)s]")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each server [%(default)s]")
    parser.add_argument("--idle", type=int, default=5_000, help="connections [%(default)s]")
    parser.add_argument("--length", type=int, default=5600, help="bytes of a response [%(default)s]")
    parser.add_argument("--server-cpu", type=int, default=0, help="core of the server [%(default)s]")
    return parser.parse_args()


def main() -> int:
    options = parse()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: dict[tuple[str, str], list[float]] = {}
    titles: dict[str, str] = {}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        pair = certify(Path(folder))
        for _ in range(options.rounds):
            for version in options.versions.split(","):
                there = servers(*pair, version)
                for name in options.servers.split(","):
                    if name not in there or not there[name].available():
                        progress(f"not here: {name}; {', '.join(there)} are known")
                        return EXIT_USAGE
                    titles[name] = there[name].title
                    try:
                        alive, size = measure_memory(there[name], APPLICATIONS["falcon"], options)
                    except (BenchmarkError, OSError) as error:
                        progress(f"FAILED: {name}: {error}")
                        failed = True
                        continue
                    progress(f"{name}, TLS {version}: {alive} alive, {size:.0f} bytes per connection")
                    failed |= alive < options.idle
                    found.setdefault((name, version), []).append(size)
    print(table(found, titles, options.idle), end="")
    return EXIT_FAILED if failed or missed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
