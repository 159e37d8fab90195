"""A process in which nothing can be allocated any more ends, instead of staying and failing.

gevent prints a traceback for each failure and goes on (`Hub.handle_error`). By then a timer, or the greenlet
that reports the figures, has ended: the process stays, and does nothing. One that has ended is replaced, or
named.
"""

from __future__ import annotations

import mmap
import os
import traceback
from typing import Any, Final

import gevent

#: Bytes that Python's allocator takes at a time (ARENA_SIZE in Objects/obmalloc.c, since 3.10).
ARENA_BYTES: Final = 1024 * 1024


def end_process(line: bytes, code: int) -> None:
    """From now on end this process with *line* on standard error and exit *code* when its hub has no memory.

    What an application allocates in vain is its request's error, which comes with the request's environ, if
    there is memory again once it has failed. Else each request from then on would fail, with a traceback.

    :param line: made while there is memory.
    """
    hub = gevent.get_hub()
    usual = hub.handle_error

    def handle_error(context: Any, kind: Any, value: Any, trace: Any) -> None:
        if kind is not None and issubclass(kind, MemoryError):
            of_a_request = isinstance(context, dict)
            if not (of_a_request and _is_there_again(trace)):
                try:
                    os.write(2, line)
                except OSError:
                    pass  # a line less; it ends all the same
                os._exit(code)
        usual(context, kind, value, trace)

    hub.handle_error = handle_error


def _is_there_again(trace: Any) -> bool:
    """Whether Python can go on allocating, without what the frames of *trace* hold."""
    traceback.clear_frames(trace)
    try:
        mmap.mmap(-1, ARENA_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True
