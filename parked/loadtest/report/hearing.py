"""What came out of asking a run's witnesses: comparisons, disagreements, and who was not there."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Hearing:
    """What came out of it."""

    compared: int = 0
    disagreements: list[str] = dataclasses.field(default_factory=list)
    #: Witnesses that this run does not have, such as sockstat on another system.
    absent: list[str] = dataclasses.field(default_factory=list)
    #: Differences with a cause that the records name themselves: no disagreement, but to be known.
    explained: list[str] = dataclasses.field(default_factory=list)

    def equal(self, what: str, tolerance: float = 0.0, **said: float | None) -> None:
        """Two witnesses of one figure, by name; one that does not know the figure is not asked."""
        (one, left), (other, right) = said.items()
        if left is not None and right is not None:
            agree = abs(left - right) <= tolerance
            self.that(agree, f"{what}: {name_of(one)} says {told(left)}, {name_of(other)} {told(right)}")

    def that(self, agree: bool, otherwise: str) -> None:
        self.compared += 1
        if not agree:
            self.disagreements.append(otherwise)

    def rows(self, wrong: list[str]) -> None:
        """A check of every row: the first that is wrong is named, the others are counted."""
        more = f" (and {len(wrong) - 1:,} more rows)" if len(wrong) > 1 else ""
        self.that(not wrong, f"samples.csv {wrong[0]}{more}" if wrong else "")


def name_of(witness: str) -> str:
    return {
        "run": "run.json",
        "samples": "samples.csv",
        "workers": "the workers' sum",
        "hosts": "the hosts' sum",
        "locust": "locust_stats.csv",
        "histogram": "the histogram",
        "totals": "the total",
        "kinds": "the sum by kind",
        "lengths": "the histogram of lengths",
        "server": "the server",
    }[witness]


def told(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"
