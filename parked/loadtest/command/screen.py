"""The live screen of run_test: one picture of the run, drawn anew when something has changed.

It lives on the terminal's alternate screen, so that what was there comes back and the summary stays in the
scrollback. Layout of 80x24; what a terminal has beyond that goes to charts.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import termios
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from parked.loadtest.command.live import CHARTS, Asked, Run, clock
from parked.loadtest.terms.harmless import for_line
from parked.loadtest.terms.units import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import RenderableType

#: Column in which figures begin, behind their labels, and width of a figure.
LABEL, CELL = 13, 11
#: Lines of the table and the least that belong to warnings; a chart has its heading and at least this.
TABLE_LINES, WARNING_LINES, CHART_LINES = 16, 5, 4
#: Columns from which charts stand side by side.
TWO_CHARTS_WIDTH = 120
BLOCKS = " ▁▂▃▄▅▆▇█"


def is_possible() -> bool:
    """Whether standard output is a terminal that can show it, and ours: a background job prints lines."""
    console = Console()
    return (
        sys.stdout.isatty()
        and not console.is_dumb_terminal
        and console.encoding.startswith("utf")
        and _in_foreground()
    )


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdout.fileno()) == os.getpgrp()
    except OSError:  # not the terminal that controls us
        return False


class Screen:
    """The screen from `with` to its end; call `refresh` a few times a second in between.

    INT and TERM are the caller's. Stopped (Ctrl-Z), the terminal is the shell's again; in the background
    nothing is drawn.
    """

    def __init__(self, folder: Path, asked: Asked) -> None:
        self._run = Run(folder, asked)
        self._console = Console(highlight=False)
        self._live: Live | None = None
        self._said = "Ctrl-C ends the test and writes the report"
        self._drawn: tuple[int, int] | None = None
        self._stop_asked = False
        self._terminal: list[Any] | None = None
        self._stop_handler: Any = None

    def __enter__(self) -> Self:
        self._stop_handler = signal.signal(signal.SIGTSTP, self._note_stop)
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTSTP, self._stop_handler)
        self._leave()

    def _note_stop(self, *_: object) -> None:
        self._stop_asked = True

    def say(self, text: str) -> None:
        """Show a line at the bottom from now on."""
        self._said = text
        self._drawn = None
        self.refresh()

    def refresh(self) -> None:
        """Draw if there is news, or another size."""
        if self._stop_asked:
            self._stop_asked = False
            self._leave()
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._live is None:
            if not _in_foreground():
                return
            self._enter()
        width, height = size = self._console.size
        if (self._run.update() or self._drawn != size) and self._live is not None:
            self._drawn = size
            # A terminal that is gone (its window closed) is no reason to end the run.
            with contextlib.suppress(OSError):
                self._live.update(picture(self._run, self._said, width, height), refresh=True)

    def _enter(self) -> None:
        # Typed keys would be echoed into the picture.
        with contextlib.suppress(termios.error):  # standard input is something else
            self._terminal = termios.tcgetattr(0)
            silent = [*self._terminal]
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(0, termios.TCSADRAIN, silent)
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._drawn = None
        self._live.start()

    def _leave(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError):
                live.stop()
        if self._terminal is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._terminal)
            self._terminal = None


def picture(run: Run, said: str, width: int, height: int) -> RenderableType:
    """The whole screen."""
    done, progress = run.progress()
    elapsed = clock(run.value("time_s")) if run.row else ""
    title = Text(f"{run.asked.connections:,} connections to {for_line(run.asked.host)}", "bold")
    title.append(f"{elapsed:>{max(1, width - len(title))}}")
    lines: list[Text] = [
        title,
        _line(f"{run.phase or 'wait':<{LABEL}}", progress, style="bold cyan"),
        Text.assemble(("━" * round(done * width), "green"), ("─" * (width - round(done * width)), "dim")),
        _verdict(run),
        Text(""),
        *_figures(run),
        Text(""),
        *_machine(run),
        Text(""),
    ]
    free = height - len(lines) - 1
    chart_lines = max(0, free - WARNING_LINES)
    charts = _charts(run, width, chart_lines) if run.history else []
    lines += _warnings(run, free - len(charts))
    lines += charts
    lines.append(Text(said, "dim"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)


def _line(label: str, text: str, style: str = "") -> Text:
    return Text.assemble((f"{label:<{LABEL}}", style or "cyan"), text)


def _verdict(run: Run) -> Text:
    reasons = run.reasons()
    if not reasons:
        return Text.assemble((f"{'so far':<{LABEL}}", "cyan"), ("pass", "bold green"))
    more = f" (and {len(reasons) - 1} more)" if reasons[1:] else ""
    return Text.assemble(
        (f"{'so far':<{LABEL}}", "cyan"), ("fail", "bold red"), f": {for_line(reasons[0])}{more}"
    )


def _figures(run: Run) -> list[Text]:
    value = run.value
    least = "" if run.least_in_hold is None else f"least in the hold {run.least_in_hold:,}"
    latency = "   ".join(
        f"{name} {_of(value(f'latency_{name}_ms'), 1)}" for name in ("p50", "p90", "p99", "max")
    )
    return [
        _line("connections", f"{_of(value('connections'))} of {_of(value('connections_wanted'))}   {least}"),
        _line(
            "requests/s",
            f"{_of(run.per_s('requests_total'))} of {_of(run.offered_per_s)} offered   "
            f"{_of(run.per_s('received_bytes_total') / MIB, 2)} MiB/s",
        ),
        _line("latency ms", latency),
        *([] if math.isnan(value("streams")) else [_heard(run)]),
        _line(
            "failures",
            f"{_of(value('failures_total'))}   reconnects {_of(value('reconnects_total'))}   "
            f"retransmits {_of(value('retrans_segs'))}   dropped SYNs {_of(value('listen_drops'))}",
        ),
        _line(
            "late sends",
            f"{_of(value('late_sends_total'))} of {_of(value('requests_total'))} requests   "
            f"loop lag {_of(value('loop_lag_max_ms'))} ms   burst {_of(value('burst_10ms_max'))} in 10 ms",
        ),
    ]


def _heard(run: Run) -> Text:
    """Where users wait for what is sent; the delivery is of the last second in which something came."""
    value = run.value
    delivery = "/".join(_of(run.last(f"delivery_{name}_ms")) for name in ("p50", "p99", "max"))
    return _line(
        "events",
        f"{_of(value('events_total'))}   lost {_of(value('events_lost_total'))}   "
        f"repeated {_of(value('events_repeated_total'))}   waiting {_of(value('streams'))}   "
        f"delivery {delivery} ms",
    )


def _machine(run: Run) -> list[Text]:
    value, asked = run.value, run.asked
    server, client, kernel, busy = (value(f"{name}_cores") for name in ("server", "client", "kernel", "busy"))
    cores = [server, client, kernel, busy - server - client - kernel, asked.cpu_count - busy, asked.cpu_count]
    memory = [
        *(value(f"{name}_bytes") / MIB for name in ("server_pss", "client_pss", "slab")),
        math.nan,
        value("memory_available_bytes") / MIB,
        asked.memory_bytes / MIB,
    ]
    processes = [value("server_processes"), value("client_processes")]
    sockets = (
        f"   TCP sockets {_of(value('sockstat_tcp_inuse'))}, {_of(value('sockstat_tcp_tw'))} in TIME-WAIT"
    )
    return [
        _line("", _cells(["server", "client", "kernel", "other", "free", "of"]), "dim"),
        _line("CPU cores", _cells([_of(max(0.0, number), 2) for number in cores[:5]] + [_of(cores[5])])),
        _line("memory MiB", _cells([_of(number) for number in memory])),
        _line("processes", _cells([_of(number) for number in processes]) + sockets),
    ]


def _warnings(run: Run, height: int) -> list[Text]:
    """Exactly `height` lines: what is the matter now, and behind that the newest of the log."""
    now = [Text(f"! {text}", "yellow") for text in run.warnings()]
    then = [Text(f"  {text}") for text in run.messages]
    shown = now[: max(0, height)]
    room = max(0, height - len(shown))
    shown += then[len(then) - min(room, len(then)) :]
    return shown + [Text("")] * (height - len(shown))


def _charts(run: Run, width: int, height: int) -> list[Text]:
    """As many charts as have room, in one column or two."""
    columns = 2 if width >= TWO_CHARTS_WIDTH else 1
    rows = min(height // (CHART_LINES + 1), math.ceil(len(CHARTS) / columns))
    if not rows:
        return []
    each, part = height // rows, (width - 2 * (columns - 1)) // columns
    drawn = [
        chart(name, values, part, each)
        for name, values in zip(CHARTS, zip(*run.history, strict=True), strict=False)
    ]
    lines: list[Text] = []
    for first in range(0, rows * columns, columns):
        beside = drawn[first : first + columns]
        lines.append(Text("  ").join(heading for heading, _ in beside))
        # One Text a line: each costs rich more than the charts do.
        lines += [
            Text("  ".join(parts), "green") for parts in zip(*(cells for _, cells in beside), strict=True)
        ]
    return lines


def chart(name: str, values: Sequence[float], width: int, height: int) -> tuple[Text, list[str]]:
    """A heading and columns of blocks from zero up. Each shows the greatest of its seconds: a mean would hide
    the peaks."""
    known = [0.0 if math.isnan(value) else value for value in values]
    step = max(1, math.ceil(len(known) / width))
    tops = [max(known[start : start + step]) for start in range(0, len(known), step)]
    top = max(tops, default=0.0)
    heading = Text.assemble((name, "cyan"), f", up to {_of(top, 0 if top >= 10 else 2)}")
    heading.truncate(width, pad=True)
    rows = height - 1
    eighths = [round(value / top * rows * 8) if top else 0 for value in tops]
    columns = [("█" * (filled // 8) + BLOCKS[filled % 8]).ljust(rows)[:rows] for filled in eighths]
    return heading, ["".join(cells).ljust(width) for cells in zip(*columns, strict=True)][::-1]


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"{text:>{CELL}}" for text in texts)


def _of(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"
