"""`wsgi.file_wrapper` (PEP 3333, "Optional Platform-Specific File Handling"): a file as a response.

An application calls `environ["wsgi.file_wrapper"](file, block_size)` and returns the result. pywsgi offers
none. Ours goes out with sendfile(2), from the file's position to its end, if the file is one of the system's
and the connection is not TLS; all else is read in blocks.
"""

from __future__ import annotations

import io
import os
import stat
from typing import Any, Final

#: Bytes read at once, where the file has all of its bytes already. Applications ask for 4 or 8 KB, which are
#: a system call and a chunk each.
BLOCK_BYTES: Final = 65536


class FileWrapper:
    """An iterator over the blocks of *file*, and for the handler a little more.

    :param block_size: bytes to read at once from what may have to wait for them, such as a pipe.
    """

    def __init__(self, file: Any, block_size: int = 8192) -> None:
        self.file = file
        self._block_bytes = max(block_size, BLOCK_BYTES) if _is_seekable(file) else block_size

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.file.read(self._block_bytes)
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """Close the file; a server does that at the end of each response (PEP 3333)."""
        close = getattr(self.file, "close", None)
        if close is not None:
            close()

    def extent(self) -> tuple[int, int, int] | None:
        """Descriptor, offset and number of the bytes that are left; None unless it is a plain file.

        Only Python's own file objects are asked: that of gzip has a descriptor too, of what is not meant.
        """
        file = self.file
        raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
        if type(raw) is not io.FileIO or not raw.readable():
            return None
        status = os.fstat(raw.fileno())
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return None  # those in /proc say 0 and have something to read all the same
        offset = file.tell()
        return raw.fileno(), offset, max(0, status.st_size - offset)


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable is not None and seekable())
