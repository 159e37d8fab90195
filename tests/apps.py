"""Applications that the tests run in processes of their own: --app tests.apps:NAME."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any


def pid(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Which worker answers; /nap takes 50 ms, /sleep a second, /die never returns."""
    path = environ["PATH_INFO"]
    if path == "/sleep":
        time.sleep(1)  # cooperative, for the command line has patched it
    elif path == "/nap":
        time.sleep(0.05)
    elif path == "/stuck":
        time.sleep(60)
    elif path == "/die":
        os._exit(9)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


def digest(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The MD5 of the content, which is read as large content should be."""
    content = hashlib.md5(usedforsecurity=False)
    while block := environ["wsgi.input"].read(65536):
        content.update(block)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [content.hexdigest().encode()]


_in_flight: list[object] = []
_most: list[int] = [0]


def busiest(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """How many requests have been in flight at once, at most."""
    _in_flight.append(environ)
    _most[0] = max(_most[0], len(_in_flight))
    time.sleep(0.02)
    _in_flight.pop()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % _most[0]]
