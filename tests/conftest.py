"""`pytest --share FOLDER`: processes with the same FOLDER run a suite between them, each file once.

Most tests wait more than they compute. pytest-xdist is not for these: it waits for threads, and to import
Locust is to have gevent's in their place.
"""

from __future__ import annotations

import hashlib
from itertools import zip_longest
from pathlib import Path

import pytest

#: Files that take long begin first, so that none is left to one process when the others have ended.
LONG = (
    *("test_run.py", "test_several_hosts.py", "test_verify.py", "test_metrics.py", "test_other_users.py"),
    *("test_gunicorn.py", "test_install.py", "test_operations.py", "test_torture.py", "test_gevent_suite.py"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", type=Path, metavar="FOLDER", help="run only files that no other has taken")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """As pytest's own loop, file by file."""
    folder = session.config.getoption("share")
    if folder is None or session.testsfailed:  # which were not even collected: pytest's own loop says so
        return None
    files: dict[Path, list[pytest.Item]] = {}
    for item in session.items:
        files.setdefault(item.path, []).append(item)
    for path, items in sorted(files.items(), key=lambda file: file[0].name not in LONG):
        if not take(folder, path):
            continue
        # Without a next one, all fixtures of the file end with its last test.
        for item, following in zip_longest(items, items[1:]):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
    return True


def take(folder: Path, path: Path) -> bool:
    """Whether *path* is ours: the first who asks has it."""
    try:
        (folder / hashlib.sha256(bytes(path)).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
