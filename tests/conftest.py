"""`pytest --share FOLDER`: processes with the same FOLDER run a suite between them, each file once.

Most tests wait more than they compute. pytest-xdist is not for these: it waits for threads, and to import
Locust is to have gevent's in their place.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

#: Files that take long begin first, the longest of all at the very first, so that none is left to one process
#: when the others have ended.
LONG = (
    *(
        "command/test_run.py",
        "drills/test_small_forms.py",
        "master/test_several_hosts.py",
    ),
    *("deploy/test_install.py", "report/test_verify.py", "examples/test_notify.py", "report/test_heard.py"),
    *("plugin/test_install.py", "plugin/test_metrics.py", "tests/test_gunicorn.py"),
    *("prefork/test_operations.py", "foreign/test_foreign.py", "plugin/test_other_users.py"),
    *("plugin/test_connections_tab.py", "command/test_shell.py", "command/test_screen.py"),
    *("scripts/test_environment.py", "server/test_torture.py", "server/test_gevent_suite.py"),
    *("prefork/test_forks.py", "prefork/test_reload.py", "prefork/test_signals.py"),
)


def turn(path: Path) -> int:
    """Its place among the files that take long; after them all if it is none."""
    name = "/".join(path.parts[-2:])
    return LONG.index(name) if name in LONG else len(LONG)


#: In the environment: the folder of those who share the tests.
SHARED = "TESTS_SHARED"
#: What there is to share.
FOUND = pytest.StashKey[list[pytest.File]]()


class Unread(pytest.File):
    """Whoever takes a file reads it: that each process read all took a tenth of the time."""

    def collect(self) -> list[pytest.Item]:
        self.config.stash[FOUND].append(self)
        return []


#: What a command takes for itself when it is called here, as if the process were its own.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", type=Path, metavar="FOLDER", help="run only files that no other has taken")


def pytest_configure(config: pytest.Config) -> None:
    if (folder := config.getoption("share")) is not None:
        config.stash[FOUND] = []
        os.environ[SHARED] = str(folder)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.File | None:
    return Unread.from_parent(parent, path=module_path) if FOUND in parent.config.stash else None


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """As pytest's own loop, file by file."""
    config, folder = session.config, session.config.getoption("share")
    if folder is None or session.testsfailed:  # in what comes before the tests: pytest's own loop says so
        return None
    collected = 0
    for file in sorted(config.stash[FOUND], key=lambda file: turn(file.path)):
        if not take(folder, file.path):
            continue
        assert file.parent is not None
        items = list(session.genitems(pytest.Module.from_parent(file.parent, path=file.path)))
        config.hook.pytest_collection_modifyitems(session=session, config=config, items=items)
        collected += len(items)
        session.testscollected = collected  # so far: what the line of a file ends with is a part of this
        # Without a next one, all fixtures of the file end with its last test.
        for item, following in zip_longest(items, items[1:]):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
    (folder / "done").touch()  # each file has been taken by somebody
    session.testscollected = max(1, collected)  # that the others were faster is no error
    return True


def take(folder: Path, path: Path) -> bool:
    """Whether *path* is ours: the first who asks has it."""
    try:
        (folder / hashlib.sha256(bytes(path)).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
