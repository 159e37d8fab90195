"""What this server relies on inside gevent, beyond what gevent documents, looked at once at import.

`KeepAliveWSGIServer` and its handler are subclasses, so that they stand in the middle of code which is not
theirs. Two things may become of such a place when gevent changes. If a name is gone, or the function above it
no longer calls it, our part would be left out, and the server would be wrong: that is an `ImportError`. If
the function still calls it but reads otherwise than in any version that was tried, a warning says in one line
what that costs: most often that gevent's change does not reach our version of the step.

Tried: gevent 23.9.1, 24.2.1, 24.11.1, 25.9.1 and 26.9.0. Older ones have CVE-2023-41419 in handlers that read
requests themselves.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from types import CodeType
from typing import Any, Final, NamedTuple

import gevent
from gevent import baseserver, pywsgi, server


class UpstreamWarning(UserWarning):
    """gevent has changed in a place that this server relies on."""


class Reliance(NamedTuple):
    """One function of gevent's."""

    #: Where it is, from `gevent` on.
    name: str
    #: Names that its code has to use, or ours is never called; separated by spaces.
    uses: str
    #: `fingerprint` of its source in the versions tried, separated by spaces.
    known: str
    #: What it costs when it reads otherwise.
    cost: str


_READING: Final = "gevent's changes to the reading of content do not reach parked connections"
_WRITING: Final = "gevent's changes to the writing of responses do not reach parked connections"
_ERRORS: Final = "errors of an application may be answered or logged otherwise than by gevent itself"
_LOGGING: Final = "the access log may be written otherwise"
_ENVIRON: Final = "environ may lack what gevent itself puts there"
_ACCEPTING: Final = "accepting may pause or go on otherwise than in gevent itself"

_handler: Final = "pywsgi.WSGIHandler."
_base: Final = "baseserver.BaseServer."

RELIANCES: Final = (
    Reliance(
        "pywsgi.Input.__init__",
        "rfile content_length chunked_input position",
        "bfb32b1d bd7abf0e",
        _READING,
    ),
    Reliance("pywsgi.Input.read", "", "118bd00f", _READING),
    Reliance("pywsgi.Input.readline", "", "1de13829", _READING),
    Reliance("pywsgi.Input._do_read", "", "6bed547d", _READING),
    Reliance("pywsgi.Input._chunked_read", "", "50f3517e", _READING),
    Reliance("pywsgi.Input._discard", "", "684b6e99 6e091a5f", _READING),
    Reliance(_handler + "handle_one_response", "run_application _discard", "757c2601", _ERRORS),
    Reliance(_handler + "run_application", "process_result start_response", "4e5e2699", _WRITING),
    Reliance(_handler + "start_response", "status code response_headers", "2abb51a5", _WRITING),
    Reliance(_handler + "write", "_write _write_with_headers headers_sent", "3a39b1b4", _WRITING),
    Reliance(_handler + "_write", "", "f1494c85", _WRITING),
    Reliance(_handler + "_write_with_headers", "", "f7f1c17c", _WRITING),
    Reliance(_handler + "_sendall", "", "25e8ea61", _WRITING),
    Reliance(_handler + "finalize_headers", "", "bb0bcc3f", _WRITING),
    Reliance(_handler + "process_result", "", "2452d221", _WRITING),
    Reliance(_handler + "handle_error", "_log_error _send_error_response_if_possible", "d7c0240a", _ERRORS),
    Reliance(_handler + "_log_error", "handle_error environ", "972059a1", _ERRORS),
    Reliance(_handler + "_handle_client_error", "", "590b937d", _ERRORS),
    Reliance(_handler + "_send_error_response_if_possible", "start_response write", "7ec3ec45", _ERRORS),
    Reliance(_handler + "log_error", "error_log", "acb3b2d8", _ERRORS),
    Reliance(_handler + "log_request", "format_request", "d9d8a807", _LOGGING),
    Reliance(_handler + "get_environ", "_connection_upgrade_requested", "98667d78", _ENVIRON),
    Reliance("pywsgi.WSGIServer.__init__", "log error_log set_environ", "9cacd998", _ENVIRON),
    Reliance("pywsgi.WSGIServer.set_environ", "base_env", "35325c20", _ENVIRON),
    Reliance("pywsgi.WSGIServer.update_environ", "", "3bceebb9", _ENVIRON),
    Reliance("pywsgi.WSGIServer.handle", "handler_class", "ec3a7bcc", _ACCEPTING),
    Reliance("pywsgi.format_date_time", "", "c05b002e", "the Date field may be written otherwise"),
    Reliance("server.StreamServer.init_socket", "socket ssl_args", "548a847f", _ACCEPTING),
    Reliance("server.StreamServer.do_read", "_accept", "5db34d0a", _ACCEPTING),
    Reliance(_base + "set_spawn", "pool _spawn full", "35b8f748", _ACCEPTING),
    Reliance(_base + "_start_accepting_if_started", "start_accepting", "e4f09d25", _ACCEPTING),
    Reliance(_base + "start_accepting", "_watcher _do_read", "b91a6d2d", _ACCEPTING),
    Reliance(_base + "stop_accepting", "_watcher _timer", "086fd6d3", _ACCEPTING),
    Reliance(_base + "_do_read", "do_read do_handle", "90dff992", _ACCEPTING),
    Reliance(_base + "close", "stop_accepting", "b9212e29", _ACCEPTING),
    Reliance(_base + "is_fatal_error", "", "1b7a120a", _ACCEPTING),
)

#: Names of gevent's that no function stands for.
NAMES: Final = ("pywsgi._InvalidClientInput", "pywsgi._NoopLog", "pywsgi.WSGIHandler.ignored_socket_errors")

_MODULES: Final = {"baseserver": baseserver, "pywsgi": pywsgi, "server": server}


def check(reliances: Iterable[Reliance] = RELIANCES, names: Iterable[str] = NAMES) -> None:
    """Look at all of them.

    :raises ImportError: the server would be wrong; the text says in one line why.
    """
    for name in names:
        _find(name)
    sources: dict[str, list[str]] = {}
    for reliance in reliances:
        code: CodeType = _find(reliance.name).__code__
        missing = set(reliance.uses.split()) - set(_names_used(code))
        if missing:
            raise ImportError(
                f"parked.server cannot run on gevent {gevent.__version__}: {reliance.name} no longer uses "
                f"{', '.join(sorted(missing))}"
            )
        found = fingerprint(code, sources)
        if found and found not in reliance.known.split():
            warnings.warn(
                f"gevent {gevent.__version__} has another {reliance.name} than parked knows: {reliance.cost}",
                UpstreamWarning,
                stacklevel=2,
            )


def fingerprint(code: CodeType, sources: dict[str, list[str]]) -> str:
    """The first characters of the SHA-256 of its source; empty if there is none to read.

    :param sources: lines by file name, kept from one call to the next.
    """
    name = code.co_filename
    if name not in sources:
        try:
            sources[name] = Path(name).read_text("utf-8").splitlines()
        except (OSError, ValueError):
            sources[name] = []
    lines = sources[name][code.co_firstlineno - 1 : max(_lines(code))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8] if lines else ""


def _find(name: str) -> Any:
    module, _, path = name.partition(".")
    try:
        return attrgetter(path)(_MODULES[module])
    except AttributeError:
        raise ImportError(
            f"parked.server cannot run on gevent {gevent.__version__}: there is no gevent.{name}"
        ) from None


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _names_used(code: CodeType) -> Iterator[str]:
    for part in _nested(code):
        yield from part.co_names


def _lines(code: CodeType) -> Iterator[int]:
    for part in _nested(code):
        yield from (line for _, _, line in part.co_lines() if line)
