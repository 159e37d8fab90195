"""What others make of a run that has ended: a program (`--json`), a build server (`--junit`), a browser."""

from __future__ import annotations

import contextlib
import errno
import os
import webbrowser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from parked.loadtest.report.goals import Goal
from parked.loadtest.terms import checkout, files
from parked.loadtest.terms.harmless import for_line, for_terminal

if TYPE_CHECKING:
    from pathlib import Path


def junit(summary: dict[str, Any], goals: tuple[str, ...]) -> str:
    """The run as a suite of tests in JUnit's form: its own rules are one, each --fail-if another."""
    missed = {text: Goal.parse(text).missed(summary) for text in goals}
    others = [reason for reason in summary["reasons"] if reason not in missed.values()]
    cases = {"the run itself": "\n".join(others), **missed}
    suite = ElementTree.Element(
        "testsuite",
        name=f"{summary['target_connections']} connections to {for_line(summary['workload']['host'])}",
        tests=str(len(cases)),
        failures=str(sum(map(bool, cases.values()))),
        time=f"{summary['ramp_seconds'] + summary['hold_seconds']:.1f}",
    )
    for name, text in cases.items():
        why = for_terminal(text)  # XML 1.0 has no place for control characters either
        case = ElementTree.SubElement(suite, "testcase", classname="parked", name=name)
        if why:
            ElementTree.SubElement(case, "failure", message=why.partition("\n")[0]).text = why
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(path: Path, summary: dict[str, Any], goals: tuple[str, ...]) -> None:
    """Raises OSError."""
    files.replace(path, junit(summary, goals))


def unwritable(path: Path) -> str:
    """Why a file could not be written there after a run, as far as one can tell before; "" if it could."""
    if path.is_dir():
        return os.strerror(errno.EISDIR)
    if not path.parent.is_dir():
        return "there is no such folder"
    return "" if os.access(path.parent, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def point_latest_to(folder: Path) -> None:
    """Have `results/latest` lead to the newest of the runs that are kept there."""
    if folder.parent != checkout.results().resolve():
        return
    latest, fresh = folder.parent / "latest", folder.parent / f".latest.{os.getpid()}"
    with contextlib.suppress(OSError):  # a file system without links
        if latest.exists() and not latest.is_symlink():
            return  # somebody's own
        fresh.symlink_to(folder.name)
        fresh.replace(latest)


def show(folder: Path) -> bool:
    """Open the page; whether there was a browser to do so."""
    return webbrowser.open((folder / "index.html").as_uri())
