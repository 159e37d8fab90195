"""What `pip install parked` alone does not bring, and which extra of pyproject.toml does."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Collection, Iterator


def needs(what: str, module: str, extra: str) -> str:
    """Say that *what* needs *module*, and how to get it."""
    return f"{what} needs {module}: pip install 'parked[{extra}]'"


def lacks(what: str, module: str, extra: str) -> str:
    """Say the same if *module* is not there; empty if it is."""
    return "" if importlib.util.find_spec(module) else needs(what, module, extra)


@contextlib.contextmanager
def imported(what: str, modules: Collection[str], extra: str) -> Iterator[None]:
    """Around the imports of *what*: say how to get one of *modules* that is not there.

    :raises ModuleNotFoundError: with that line. What is missing besides, or within them, is told by Python.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name not in modules:
            raise
        raise ModuleNotFoundError(needs(what, error.name, extra), name=error.name) from error
