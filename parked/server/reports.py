"""What there is to say of single clients, without a line for each of them.

Clients that send nonsense, or that cannot agree on TLS, come by the thousand: some lines show what it is, the
others are counted, and the next line that is written says how many they were.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

#: Lines of one kind in a row, and seconds after which there may be as many again.
LINES: Final = 10
LINES_S: Final = 10.0


class Reports:
    """Lines of several kinds, each kind with an allowance of its own.

    :param write: writes one line; raises nothing.
    """

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = monotonic) -> None:
        self._write = write
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def say(self, kind: str, text: str) -> None:
        """Write *text*, or count it if there have been `LINES` of its *kind* lately."""
        now = self._clock()
        state = self._kinds.get(kind)
        if state is None:
            state = self._kinds[kind] = _Kind(now)
        if now >= state.since + LINES_S:
            state.since, state.written = now, 0
        if state.written >= LINES:
            state.untold += 1
            return
        state.written += 1
        more = f" ({state.untold} more like it before)" if state.untold else ""
        state.untold = 0
        self._write(f"{kind}: {text}{more}\n")


def described(error: BaseException) -> str:
    """*error* in one line, whatever an application's own makes of it."""
    try:
        text = " ".join(str(error).split())  # with what may come of a client
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    except Exception:
        text = "it cannot say what"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Kind:
    __slots__ = ("since", "untold", "written")

    def __init__(self, since: float) -> None:
        self.since = since
        self.written = 0
        self.untold = 0
