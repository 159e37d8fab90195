"""A run's results folder while the run goes on: rows and lines as they come, the facts every few seconds.

The facts are written anew each time: whatever becomes of the master, what was measured stays.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
from typing import TYPE_CHECKING, Any

from parked.loadtest.master.reserve import Reserve
from parked.loadtest.master.rows import COLUMNS
from parked.loadtest.terms import console, files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


class Folder:
    """Raises OSError where it can't be written; after :meth:`give_up` there is nothing more to write.

    :param host_columns: of hosts.csv; None if there is none to write.
    :ivar rows: how many rows there are.
    """

    def __init__(self, path: Path, host_columns: Sequence[str] | None = None) -> None:
        path.mkdir(parents=True, exist_ok=True)
        if found := files.links(path):
            raise OSError(errno.ELOOP, f"{found[0]} is a link", str(path))
        self.path = path
        self.rows = 0
        self._reserve = Reserve(path)
        self._told_full = False
        self._samples = self._reserve.lines(path / "samples.csv")
        self._log = self._reserve.lines(path / "logfile")
        self._writer: csv.DictWriter[str] | None = csv.DictWriter(self._samples, COLUMNS)
        self._writer.writeheader()
        self._hosts = None if host_columns is None else self._reserve.lines(path / "hosts.csv")
        self._hosts_writer: csv.DictWriter[str] | None = None
        if self._hosts is not None and host_columns is not None:
            self._hosts_writer = csv.DictWriter(self._hosts, host_columns, extrasaction="ignore")
            self._hosts_writer.writeheader()

    def write_row(self, row: dict[str, Any], of_hosts: Iterable[dict[str, Any]] = ()) -> None:
        """A second's row, its line of the log, and the rows of the hosts."""
        if self._writer is None:
            return
        self._log.write(console.line(row) + "\n")
        self._writer.writerow(row)
        self.rows += 1
        if self._hosts_writer is not None:
            self._hosts_writer.writerows(of_hosts)

    def write_facts(self, facts: dict[str, Any]) -> None:
        self._reserve.replace(self.path / "run.json", json.dumps(facts, indent=1))

    def give_up(self) -> bool:
        """Write no more rows; whether there were any until now."""
        given_up, self._writer = self._writer is not None, None
        return given_up

    def filled_up(self) -> bool:
        """Whether the disk is full now: true once."""
        told, self._told_full = self._told_full, self._reserve.spent
        return self._reserve.spent and not told

    def close(self) -> None:
        for file in filter(None, (self._samples, self._log, self._hosts)):
            with contextlib.suppress(OSError):  # told already, when it was to be written
                file.close()
        self._reserve.close()
