"""What a server is given by keyword, checked when it is made.

What is wrong would show only later, in the server's log and in each client's closed connection: gevent takes
any keyword it does not know for one of TLS, and hands it on with each connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gevent.ssl import wrap_socket


def check_tls(given: Mapping[str, Any], constructor: Callable[..., None]) -> None:
    """Refuse keywords that no connection could be wrapped with.

    What may be there is asked of those who will be called: the `wrap_socket` of an *ssl_context*, which may
    be of the user's own class and then knows its options best; else that of gevent.

    :param given: what the *constructor* has no name for.
    :raises TypeError: one is unknown.
    :raises ValueError: without *ssl_context* there is no *certfile*; gevent says so to each connection.
    """
    if not given:
        return
    context = given.get("ssl_context")
    taken, takes_all = _options(wrap_socket if context is None else context.wrap_socket)
    taken.add("ssl_context")
    for name in given:
        if name not in taken and not takes_all:
            raise TypeError(_refusal(name, taken, constructor))
    if context is None and not given.get("certfile"):
        raise ValueError("TLS needs certfile or ssl_context")


def check_bounds(**bounds: float) -> None:
    """Refuse what is less than nothing: seconds, bytes, or how many there may be.

    :raises ValueError: one is negative, or not a number.
    """
    for name, value in bounds.items():
        if not value >= 0:
            raise ValueError(f"{name} has to be 0 or more, not {value!r}")


def _options(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """Keywords that a function takes beside its first argument, and whether it takes any other."""
    from inspect import Parameter, signature  # most servers are without TLS

    try:
        _, *options = signature(function).parameters.values()
    except ValueError:  # it does not say
        return set(), True
    takes_all = any(option.kind is Parameter.VAR_KEYWORD for option in options)
    return {option.name for option in options if option.kind is not Parameter.VAR_KEYWORD}, takes_all


def _refusal(name: str, taken: set[str], constructor: Callable[..., None]) -> str:
    from difflib import get_close_matches

    if name in _options(wrap_socket)[0]:
        return f"{name} cannot be given beside ssl_context, to which it belongs"
    close = get_close_matches(name, sorted(taken | _options(constructor)[0]), 1)
    return f"unknown keyword {name}" + (f"; is it {close[0]}?" if close else "")
