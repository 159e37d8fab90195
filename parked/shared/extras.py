"""What `pip install parked` alone does not bring, and which extra of pyproject.toml does."""

from __future__ import annotations

import importlib.util


def needs(what: str, module: str, extra: str) -> str:
    """Say that *what* needs *module*, and how to get it."""
    return f"{what} needs {module}: pip install 'parked[{extra}]'"


def lacks(what: str, module: str, extra: str) -> str:
    """Say the same if *module* is not there; empty if it is."""
    return "" if importlib.util.find_spec(module) else needs(what, module, extra)
