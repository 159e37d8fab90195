"""Reading and writing in folders that others may have prepared.

A file is written whole or not at all, beside its name and then in its place: a link that stands there is
replaced, not followed, and a reader never meets half of it. What is read is a regular file of a bounded size.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import secrets
import stat
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: Bytes of a file that is read whole.
LARGEST = 256 << 20
#: Columns of a table: ours have up to 67, Locust's 25.
MOST_COLUMNS = 128


def new(path: Path, mode: str = "x", **options: Any) -> IO[Any]:
    """Open a new file for writing, in place of what has its name, be it a link or a named pipe.

    :param mode: with an x, which neither follows nor waits (open(2), O_EXCL).
    """
    path.unlink(missing_ok=True)
    return path.open(mode, **options)


def replace(path: Path, content: str | bytes) -> None:
    """Write a file, in place of what has its name."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def read_text(path: Path, most: int = LARGEST) -> str:
    """The text of a regular file. Raises OSError, for what is none or too large too."""
    # A named pipe would be waited for, a device might never end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"larger than {most >> 20} MiB", str(path))
        return file.read(most + 1).decode(errors="replace")


def table(lines: Iterable[str], *needed: str) -> Iterator[dict[str, str]]:
    """The rows of CSV, by the names in its first line; of the last one, which may be cut off, None for cells
    that are not there. Raises ValueError or csv.Error.

    Short rows below very many names would be a megabyte on the disk and all of the memory here.
    """
    reader = csv.DictReader(lines)
    names = reader.fieldnames or ()
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"lacks the column {', '.join(missing)}")
    if len(names) > MOST_COLUMNS:
        raise ValueError(f"has more than {MOST_COLUMNS} columns")
    last: dict[str, str] = {}
    for row in reader:
        if None in row or None in last.values():
            raise ValueError("has a row with more or fewer cells than columns")
        last = row
        yield row


def links(folder: Path) -> list[str]:
    """Names in a folder that are links: to write there is to write elsewhere."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_symlink())
