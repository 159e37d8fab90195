"""Applications that the tests run in processes of their own: --app tests.apps:NAME."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import greenlet


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


def sized(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Which worker answers, with the length of it."""
    text = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text]


def _loop() -> None:
    while True:
        pass


def _sleep_in_c() -> None:
    ctypes.PyDLL(None).sleep(1000)  # which keeps Python's lock


def standing(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Which worker answers; /loop and /c-sleep keep its event loop from turning."""
    if environ["PATH_INFO"] == "/loop":
        _loop()
    elif environ["PATH_INFO"] == "/c-sleep":
        _sleep_in_c()
    return sized(environ, start_response)


_leaked: list[bytearray] = []


def leaking(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Which worker answers; each request takes 10 KB of it for ever."""
    _leaked.append(bytearray(b"x" * 10_000))
    return pid(environ, start_response)


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


def refuse(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """401 to whatever comes, without a look at its content; at /iterated with a result that is no list."""
    text = b"not you\n"
    start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return iter([text]) if environ["PATH_INFO"] == "/iterated" else [text]


_pending: set[Any] = set()


def waiting(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """/poll waits, /flood writes until its reader is slow; /census says what there is of everything."""
    path = environ["PATH_INFO"]
    if path in ("/poll", "/flood"):
        pending = environ["parked.defer"](timeout=600, on_close=_pending.discard)
        _pending.add(pending)
        if path == "/flood":
            pending.start("200 OK", [])
            while pending.write(b"x" * 1_000_000):
                pass
        return []
    gc.collect()
    alive = gc.get_objects()
    figures = {
        "open": len(_pending),
        "responses": sum(type(thing).__name__ == "PendingResponse" for thing in alive),
        "connections": sum(type(thing).__name__ == "Connection" for thing in alive),
        "greenlets": sum(isinstance(thing, greenlet.greenlet) and not thing.dead for thing in alive),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "objects": len(alive),
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(figures).encode()]


def made() -> Callable[..., Any]:
    """A factory: --app tests.apps:made()."""
    return pid


def unmakeable() -> Callable[..., Any]:
    """A factory that fails."""
    raise RuntimeError("no application today")
