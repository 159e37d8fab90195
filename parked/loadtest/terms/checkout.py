"""What follows for the load test from where this code lies, in a checkout or in a Python's site-packages."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from parked.shared.place import IS_CHECKOUT, PROJECT

#: What a person types: in the project's folder, or anywhere.
COMMAND = "./run_test" if IS_CHECKOUT else "parked-loadtest"
#: ... and the server's command, in a sentence.
SERVER = "run_server" if IS_CHECKOUT else "parked-server"
#: What --help and messages call the program: the checkout's script, unless the installed command was called.
PROGRAM = "parked-loadtest" if Path(sys.argv[0]).name == "parked-loadtest" else "run_test"


def results() -> Path:
    """Where runs are kept by default: beside the code in a checkout; installed, where the user is."""
    return PROJECT / "results" if IS_CHECKOUT else Path("results")


def run_folder(text: str) -> Path:
    """A run's folder as it is named on a command line: `last` and `previous` are of those in `results()`."""
    order = {"last": -1, "latest": -1, "previous": -2}
    if text not in order or Path(text).exists():
        return Path(text)
    kept = [file.parent for file in results().glob("*/samples.csv") if not file.parent.is_symlink()]
    kept.sort(key=lambda folder: (folder / "samples.csv").stat().st_mtime)
    try:
        return kept[order[text]]
    except IndexError:
        raise argparse.ArgumentTypeError(f"there is no {text} run in {results()}") from None


#: What users do, and the built-in locustfile in which they do it.
WORKLOADS = {"keepalive": "keepalive.py", "longpoll": "long_poll.py", "events": "event_streams.py"}


def locustfile(workload: str = "keepalive") -> Path:
    """The built-in locustfile; pyproject.toml says where it is installed."""
    return PROJECT / ("loadtest" if IS_CHECKOUT else "parked/demo") / WORKLOADS[workload]


def sysconfig(script: str) -> str:
    """The command that runs a script of `sysconfig/`; pyproject.toml says where it is installed."""
    return f"sysconfig/{script}" if IS_CHECKOUT else f"{sys.prefix}/share/parked/sysconfig/{script}"


def environment() -> dict[str, str]:
    """Environment for a Python that has to find these packages; one that is installed does by itself."""
    if not IS_CHECKOUT:
        return dict(os.environ)
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}
