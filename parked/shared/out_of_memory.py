"""A process in which nothing can be allocated any more ends, instead of staying and failing.

gevent prints a traceback for each failure and goes on (`Hub.handle_error`). By then a timer, or the greenlet
that reports the figures, has ended: the process stays, and does nothing. One that has ended is replaced, or
named.
"""

from __future__ import annotations

import os
from typing import Any

import gevent


def end_process(line: bytes, code: int) -> None:
    """From now on end this process with *line* on standard error and exit *code* when its hub has no memory.

    What an application allocates in vain is its request's error, which comes with the request's environ.

    :param line: made while there is memory.
    """
    hub = gevent.get_hub()
    usual = hub.handle_error

    def handle_error(context: Any, kind: Any, value: Any, trace: Any) -> None:
        if kind is not None and issubclass(kind, MemoryError) and not isinstance(context, dict):
            try:
                os.write(2, line)
            except OSError:
                pass  # a line less; it ends all the same
            os._exit(code)
        usual(context, kind, value, trace)

    hub.handle_error = handle_error
