"""What a run has to reach beside its verdict's own rules: `--fail-if 'latency_ms.p99 > 200'`."""

from __future__ import annotations

import dataclasses
import difflib
import operator
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: Longest first: `<=` begins like `<`.
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*([a-z0-9_.]+)\s*(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*")


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure of summary.json that must not be so, in that figure's unit."""

    text: str
    name: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Raises ValueError with a sentence for a person."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(
                f"{text!r} is no condition like 'latency_ms.p99 > 200' (a figure of summary.json)"
            )
        name, sign, limit = found.groups()
        return cls(f"{name} {sign} {limit}", name, sign, float(limit))

    def missed(self, summary: dict[str, Any]) -> str:
        """Why the run fails by it; empty if it does not. A figure that is not known has not been reached."""
        figures = flat(summary)
        value = figures.get(self.name)
        if value is None:
            close = difflib.get_close_matches(self.name, figures, 1)
            hint = f"; did you mean {close[0]}?" if self.name not in figures and close else ""
            return f"{self.name} is not known{hint} (--fail-if '{self.text}')"
        if _OPERATORS[self.sign](value, self.limit):
            return f"{self.name} is {value:,g} (--fail-if '{self.text}')"
        return ""


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Every number of a summary, and every null, by its name with dots."""
    found: dict[str, float | None] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            found |= flat(inner, f"{prefix}{key}.")
        elif inner is None or (isinstance(inner, int | float) and not isinstance(inner, bool)):
            found[f"{prefix}{key}"] = inner
    return found
