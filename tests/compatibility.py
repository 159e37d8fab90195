"""What tests/compat does: one environment for each case, its tests, its run, and a table of them."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.commands import free_port

CHECKOUT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
#: Seconds that the tests of one case, and its run, may take.
TESTS_S = 1500.0
RUN_S = 300.0
#: What the table shows.
SHOWN = (
    "locust",
    "gevent",
    "greenlet",
    "falcon",
    "httptools",
    "psutil",
    "prometheus-client",
    "rich",
    "matplotlib",
)
#: Of requirements-dev.txt.
TOOLS = (
    *("pytest", "pytest-timeout", "hypothesis", "mypy", "types-psutil", "Django", "flask", "flask-sock"),
    *("Flask-SocketIO", "gevent-websocket", "pyte", "redis", "brotli", "zstandard"),
)
#: In processes of their own, since to import locust is to have gevent in place of socket. What is here
#: runs within Python, gevent, Falcon or Locust. Whole servers and runs that are tested for what the kernel,
#: a network or a browser does are left out.
SERVER = (
    *("tests/server", "tests/app"),
    *(
        f"tests/prefork/test_{name}.py"
        for name in ("application", "forks", "metrics", "settings", "signals", "watchdog", "worker")
    ),
)
LOADTEST = (
    *("tests/loadtest/client", "tests/loadtest/plugin", "tests/loadtest/master", "tests/loadtest/terms"),
    "--ignore=tests/loadtest/plugin/test_connections_tab.py",
    "--ignore=tests/loadtest/master/test_several_hosts.py",
)


class Case(NamedTuple):
    name: str
    #: Its Python; None: the newest that is there.
    python: tuple[int, int] | None
    #: What uv is asked to install.
    packages: tuple[str, ...]
    #: What pytest runs, one process for each.
    suites: tuple[tuple[str, ...], ...] = (SERVER, LOADTEST)


_OLDEST = ("--resolution", "lowest-direct", "-r", "pyproject.toml")
CASES = (
    # Locust wants a newer gevent than the server does.
    Case(
        "server",
        (3, 11),
        (*_OLDEST, "--extra", "metrics", "--extra", "demo", "psutil>=7"),
        (SERVER,),
    ),
    Case("oldest", (3, 11), (*_OLDEST, "--all-extras")),
    Case("pinned", (3, 12), ("-r", "requirements.txt")),
    Case("newest", None, ("-r", "pyproject.toml", "--all-extras")),
)


def interpreters() -> dict[tuple[int, int], Path]:
    """The Pythons of this machine by version: those on the path, then those of pyenv and of uv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    uv = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local/share")) / "uv/python"
    folders = [*map(Path, os.get_exec_path()), *pyenv.glob("versions/*/bin"), *uv.glob("*/bin")]
    found: dict[tuple[int, int], Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("python3.*"))):
        name = re.fullmatch(r"python3\.(\d+)", path.name)
        version = (3, int(name[1])) if name else (0, 0)
        # pyenv has a file on the path for every version, which says of most that they are not chosen
        if (
            version >= OLDEST
            and version not in found
            and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            found[version] = path
    return found


def install(case: Case, python: Path, folder: Path) -> Path:
    """The Python of a fresh environment with what the case wants, and the tests'."""
    pins = (CHECKOUT / "requirements-dev.txt").read_text().splitlines()
    tools = [pin for pin in pins if pin.partition("==")[0] in TOOLS]
    made = folder / "bin/python"
    subprocess.run(["uv", "venv", "--quiet", "--python", str(python), str(folder)], check=True)
    command = ["uv", "pip", "install", "--quiet", "--python", str(made), *case.packages, *tools]
    subprocess.run(command, cwd=CHECKOUT, check=True)
    return made


def versions(python: Path) -> dict[str, str]:
    command = ["uv", "pip", "list", "--format", "json", "--python", str(python)]
    listed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return {package["name"]: package["version"] for package in json.loads(listed)}


def environment(python: Path) -> dict[str, str]:
    """As scripts/run has it, with that Python's programs first."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(CHECKOUT), "GEVENT_TRACK_GREENLET_TREE": "0"}


def run_tests(python: Path, suites: tuple[tuple[str, ...], ...], folder: Path) -> tuple[bool, Counter[str]]:
    """Whether all passed, and how many of each outcome.

    What fails beside the others is run again by itself, and said: here it is versions that are on trial, and
    a machine that was too busy for a moment fails nothing twice.
    """
    commands = [
        [
            "timeout",
            str(TESTS_S),
            str(python),
            "-m",
            "pytest",
            "-q",
            "-o",
            f"cache_dir={folder}/cache.{number}",
        ]
        for number in range(len(suites))
    ]
    processes = []
    for number, (command, suite) in enumerate(zip(commands, suites, strict=True)):
        with (folder / f"tests.{number}").open("wb") as file:
            processes.append(
                subprocess.Popen(
                    [*command, *suite],
                    cwd=CHECKOUT,
                    env=environment(python),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    passed = True
    counts: Counter[str] = Counter()
    for number, process in enumerate(processes):
        code = process.wait()
        text = (folder / f"tests.{number}").read_text(errors="replace")
        print(text if code else text.splitlines()[-1], flush=True)
        outcomes = outcomes_of(text)
        if code == 1:
            again = [*commands[number], "--last-failed", "--last-failed-no-failures=none", *suites[number]]
            print(f"-- the {outcomes['failed'] + outcomes['error']} that failed, by themselves", flush=True)
            done = subprocess.run(
                again, cwd=CHECKOUT, env=environment(python), stdout=subprocess.PIPE, text=True, check=False
            )
            print(done.stdout, flush=True)
            code = done.returncode
            second = outcomes_of(done.stdout)
            outcomes["passed"] += second["passed"]
            outcomes["failed"], outcomes["error"] = second["failed"], second["error"]
        passed &= code == 0
        counts += outcomes
    return passed, counts


def outcomes_of(text: str) -> Counter[str]:
    """What pytest's summary counts; there may be words of a process behind it."""
    summaries = re.findall(r"^(.*) in \d+\.\d+s\b", text, re.MULTILINE)
    found = re.findall(r"(\d+) ([a-z]+)", summaries[-1]) if summaries else []
    return Counter(
        {word.removesuffix("s") if word == "errors" else word: int(number) for number, word in found}
    )


def load(python: Path, folder: Path) -> str:
    """The verdict of `./run_test -c 2000`, and what it rests on."""
    results = folder / "results"
    command = ["timeout", str(RUN_S), str(python), "-P", "-m", "loadtest", "-c", "2000"]
    command += ["--hold", "10s", "--think", "2:6"]
    command += ["--host", f"http://127.0.0.1:{free_port()}", "--start-server"]
    command += ["--master-port", str(free_port())]
    command += ["--results", str(results)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(python),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        print(done.stdout)
        return f"exit code {done.returncode}"
    summary = json.loads((results / "summary.json").read_text())
    # How fast this machine is just now is another matter.
    wrong = [reason for reason in summary["reasons"] if not reason.endswith(" offered")]
    if wrong:
        print(done.stdout)
    verdict = "fail" if wrong else "pass"
    return f"{verdict}, {summary['min_connections_in_hold']:,} held, {summary['failures']} failed"


def main() -> int:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="tests/compat")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(names)} [all]")
    chosen = parser.parse_args().cases or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no case: {', '.join(sorted(unknown))}")
    began = time.monotonic()
    there = interpreters()
    total: Counter[str] = Counter()
    table = [("", "Python", *SHOWN, "tests", "run of 2,000"), ("---",) * (len(SHOWN) + 4)]
    well = True
    for case in (case for case in CASES if case.name in chosen):
        version = case.python or max(there, default=OLDEST)
        if version not in there:
            print(f"== {case.name}: skipped, Python {version[0]}.{version[1]} is not installed")
            continue
        with tempfile.TemporaryDirectory(prefix=f"parked-compat-{case.name}-") as name:
            folder = Path(name)
            python = install(case, there[version], folder / "venv")
            full = subprocess.run(
                [python, "-V"], stdout=subprocess.PIPE, text=True, check=True
            ).stdout.split()[1]
            found = versions(python)
            there_are = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
            print(f"== {case.name}: Python {full}, {there_are}", flush=True)
            passed, counts = run_tests(python, case.suites, folder)
            well &= passed
            told = f"{counts['passed']} passed" + (f", {counts['failed']} failed" if counts["failed"] else "")
            verdict = ""
            if case.python is None:
                types = [
                    str(python),
                    "-m",
                    "mypy",
                    "--strict",
                    "--no-incremental",
                    "parked",
                    "app",
                    "loadtest",
                ]
                well &= subprocess.run(types, cwd=CHECKOUT, check=False).returncode == 0
            if LOADTEST in case.suites:
                verdict = load(python, folder)
                well &= verdict.startswith("pass")
                print(f"-- {case.name}: run of 2,000 connections: {verdict}", flush=True)
        total += counts
        table.append((case.name, full, *(found.get(name, "") for name in SHOWN), told, verdict))
    for row in table:
        print("| " + " | ".join(row) + " |")
    told = ", ".join(f"{number} {word}" for word, number in total.items())
    print(f"== {told or 'no tests ran'} in {time.monotonic() - began:.2f}s ==")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
