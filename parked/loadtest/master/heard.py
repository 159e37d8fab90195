"""What the users of a run have heard who wait for it: their workers' parts, added up.

A broadcast is one event that goes to very many streams. Each worker tells when it came to its own first and
last one; over all workers that is the time from the first client to the last.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from parked.loadtest.terms.histogram import merge, new_histogram
from parked.loadtest.terms.sample import HEARD, MOST_BROADCASTS, HeardCounter
from parked.loadtest.terms.shape import wrong

if TYPE_CHECKING:
    from collections.abc import Iterable

    from parked.loadtest.terms.sample import Heard

#: Broadcasts of a hold that are kept; later ones are counted, and no more.
MOST_KEPT = 5_000


@dataclasses.dataclass
class HeardSecond:
    """One second of all workers: totals since the start, and what came since the second before."""

    streams: int
    streams_min: int
    totals: dict[HeardCounter, int]
    deliveries: Any  #: histogram of microseconds
    broadcasts: list[list[Any]]  #: parts of them, as in a sample


class Listening:
    """Gathers a second."""

    def __init__(self) -> None:
        self.begin_second()

    def begin_second(self) -> None:
        self._deliveries = new_histogram()
        self._broadcasts: list[list[Any]] = []
        self._least: dict[str, int] = {}

    def take(self, name: str, heard: Heard, offset_s: float = 0.0) -> None:
        """A worker's part of its sample. Raises ValueError for one that makes no sense, and takes nothing.

        :param offset_s: to be added to the times of its host's clock.
        """
        broadcasts = heard["broadcasts"]
        if len(broadcasts) > MOST_BROADCASTS:
            raise ValueError("too many broadcasts")
        for broadcast in broadcasts:
            if why := wrong(broadcast, tuple[str, float | None, float, float, int], "a broadcast"):
                raise ValueError(why)
        if heard["deliveries"]:
            merge(self._deliveries, heard["deliveries"])
        for id_, sent, first, last, count in broadcasts:
            self._broadcasts.append([id_[:64], sent, first + offset_s, last + offset_s, count])
        self._least[name] = min(self._least.get(name, heard["streams_min"]), heard["streams_min"])

    def second(self, alive: dict[str, Heard], all_: Iterable[Heard]) -> HeardSecond:
        """What is known now; begins anew.

        :param alive: by worker, what it said last; `all_`: also of those that have ended.
        """
        streams = sum(heard["streams"] for heard in alive.values())
        known = list(all_)
        made = HeardSecond(
            streams,
            min(streams, sum(self._least.get(name, heard["streams"]) for name, heard in alive.items())),
            {name: sum(heard[name] for heard in known) for name in HEARD},
            self._deliveries,
            self._broadcasts,
        )
        self.begin_second()
        return made


class HeardInHold:
    """The same of a hold. `began_unix_s`: a broadcast that had come to somebody before is not of it."""

    def __init__(self, before: HeardSecond, began_unix_s: float) -> None:
        self._before = self._last = before
        self._began_unix_s = began_unix_s
        self._streams_min = before.streams
        self._deliveries = new_histogram()
        self._broadcasts: dict[str, list[Any]] = {}
        self._early: set[str] = set()
        self._more = 0

    def add(self, second: HeardSecond) -> None:
        self._last = second
        self._streams_min = min(self._streams_min, second.streams_min)
        self._deliveries.add(second.deliveries)
        for part in second.broadcasts:
            self._add(part)

    def _add(self, part: list[Any]) -> None:
        id_, sent, first, last, count = part
        known = self._broadcasts.get(id_)
        if known is not None:
            known[2], known[3] = min(known[2], first), max(known[3], last)
            known[4] += count
        elif first < self._began_unix_s or id_ in self._early:
            self._early.add(id_)
        elif len(self._broadcasts) < MOST_KEPT:
            self._broadcasts[id_] = [id_, sent, first, last, count]
        else:
            self._more += 1

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        first, last = self._before.totals, self._last.totals
        return {
            "totals": last,
            "hold": {name: last[name] - count for name, count in first.items()},
            "streams_min": self._streams_min,
            "deliveries": self._deliveries.encode().decode(),  # base64 by itself
            "broadcasts": list(self._broadcasts.values()),
            "broadcasts_more": self._more,
        }
