"""What it takes to have gevent patch Python's modules."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator


@contextlib.contextmanager
def packages_read_once() -> Iterator[None]:
    """gevent looks for its plug-ins around each module that it patches, in all packages that there are.

    With a hundred of them that takes a fifth of a second, a third of a start.
    """
    look = importlib.metadata.entry_points
    importlib.metadata.entry_points = look().select
    try:
        yield
    finally:
        importlib.metadata.entry_points = look
