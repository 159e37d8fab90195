"""Five pictures of a run, drawn from its samples.csv: connections, throughput, latency, CPU, memory.

Each has a title that is the result in one sentence, the ramp and the hold shaded and named, one unit an axis
(a second quantity gets a panel of its own, never a second scale), and names beside the curves instead of a
legend.  Colours are Okabe and Ito's, which colour-blind readers can tell apart; line styles differ too.

Only matplotlib's object interface is used: nothing here changes its global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from PIL import Image  # matplotlib's own requirement

from parked.loadtest.report.record import per_second
from parked.loadtest.terms import files
from parked.loadtest.terms.units import GIB, MIB, digits

Series = np.ndarray[tuple[int], np.dtype[np.float64]]

#: 1,200 x 675 pixels: the width at which GitHub shows a picture, and text in it stays readable.
SIZE_INCHES = (12.0, 6.75)
DOTS_PER_INCH = 100

#: Colours of a picture, shades at the edges of lines and letters included.
PALETTE_COLORS = 128

#: Seconds of run above which the time axis is in minutes.
MINUTES_ABOVE_S = 600

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
_PHASES = {"ramp": "#FFF6DF", "hold": "#E8F3EC", "stop": "#EEEEEE"}
_TEXT, _SMALL, _TITLE = 13, 11.5, 16
_BAD = ("failures", "reconnects")

#: Left, width and right margin of the panels as shares of the picture; names of curves are in the margin.
_LEFT, _WIDTH = 0.1, 0.745


@dataclass
class _Run:
    """samples.csv as arrays, with nan where a cell is empty, and summary.json."""

    columns: dict[str, Series]
    phases: list[str]
    summary: Mapping[str, Any]

    def __getitem__(self, name: str) -> Series:
        """A column; all nan if the file does not have it."""
        return self.columns.get(name, np.full(len(self.phases), np.nan))

    def per_second(self, total: str) -> Series:
        """How fast a total of the workers' grows; nan where that is unknown."""
        columns = (self[name].tolist() for name in (total, "counted_unix_s", "time_s"))
        return np.array(per_second(*columns), dtype=np.float64)

    @property
    def held(self) -> bool:
        return "hold" in self.phases

    @property
    def of_streams(self) -> bool:
        """Whether its responses are streams, of which events come, and no requests in the hold."""
        return math.isfinite(self.figure("heard.events_per_s"))

    @property
    def minutes(self) -> bool:
        return float(self["time_s"][-1]) > MINUTES_ABOVE_S

    @property
    def time(self) -> Series:
        return self["time_s"] / 60 if self.minutes else self["time_s"]

    def spans(self) -> Iterator[tuple[str, float, float]]:
        """Each phase with its begin and end on the time axis; one follows the other without a gap."""
        first = 0
        for row in range(1, len(self.phases) + 1):
            if row == len(self.phases) or self.phases[row] != self.phases[first]:
                # A row tells of the time since the row before it.
                begin = float(self.time[first - 1]) if first else 0.0
                yield self.phases[first], begin, float(self.time[row - 1])
                first = row

    def settled(self, values: Series) -> float:
        """The median of the last part of the hold, or of the file if there was none; nan if unknown."""
        rows = [row for row, phase in enumerate(self.phases) if phase == "hold"] or list(range(len(values)))
        part = values[rows[-max(3, len(rows) // 5) :]]
        part = part[np.isfinite(part)]
        return float(np.median(part)) if len(part) else math.nan

    def figure(self, name: str, default: float = math.nan) -> float:
        """A number of the summary; nested ones by dots; `default` if it is missing or null."""
        value: Any = self.summary
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return default if value is None else float(value)


def draw(samples_csv: Path, folder: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Write the five pictures into `folder`, which exists; their paths, or none if no second was sampled."""
    run = _read(samples_csv, summary)
    if not run.phases:
        return []
    pictures: dict[str, Callable[[_Run, Figure], None]] = {
        "connections": _connections,
        "throughput": _throughput,
        "latency": _latency,
        "cpu": _cpu,
        "memory": _memory,
    }
    paths = []
    for name, picture in pictures.items():
        figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, facecolor="white")
        picture(run, figure)
        paths.append(folder / f"{name}.png")
        _save(figure, paths[-1])
    return paths


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette: few colours are used, and half an hour of latency stays below 150 KB."""
    pixels = io.BytesIO()
    figure.savefig(pixels, format="rgba")  # drawn by Agg, which needs no display
    size = round(SIZE_INCHES[0] * DOTS_PER_INCH), round(SIZE_INCHES[1] * DOTS_PER_INCH)
    picture = Image.frombytes("RGBA", size, pixels.getvalue()).convert("RGB")
    encoded = io.BytesIO()
    picture.quantize(PALETTE_COLORS, dither=Image.Dither.NONE).save(encoded, format="png")
    files.replace(path, encoded.getvalue())


def _read(samples_csv: Path, summary: Mapping[str, Any]) -> _Run:
    rows = list(files.table(files.read_text(samples_csv).splitlines()))
    names = [name for name in (rows or [{}])[0] if name != "phase"]
    if len(rows) == 1:  # a curve needs two points
        second = dict(rows[0], time_s=str(_number(rows[0]["time_s"]) + 1))
        rows.append(second)
    columns = {name: np.array([_number(row[name]) for row in rows], dtype=np.float64) for name in names}
    return _Run(columns, [row["phase"] for row in rows], summary)


def _number(cell: str | None) -> float:
    """nan for an empty cell, and for the rest of a row that was cut off when the run was killed."""
    try:
        value = float(cell or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _connections(run: _Run, figure: Figure) -> None:
    target = run.figure("target_connections", _most(run["connections_wanted"]))
    peak = run.figure("peak_connections", _most(run["connections"]))
    least = run.figure("min_connections_in_hold")
    if not math.isfinite(least):
        title = f"{_whole(peak)} of {_whole(target)} connections were open at the peak; there was no hold"
    elif least < target:
        title = f"{_whole(peak)} of {_whole(target)} connections at the peak,"
        title += f" {_whole(least)} at the least during the hold"
    else:
        title = f"{_whole(least)} connections held for {_whole(run.figure('hold_seconds'))} s"
        title += _when(", opened in {} s", run.figure("ramp_seconds"))
    note = _when("The kernel counted {} TCP sockets in use at the peak", _most(run["sockstat_tcp_inuse"]))
    note += _when(", {} in TIME-WAIT", _most(run["sockstat_tcp_tw"]))
    note = "; ".join(filter(None, [note, ", ".join(f"{_whole(_sum(run[name]))} {name}" for name in _BAD)]))
    upper, lower = _panels(run, figure, title, note)
    lines = [
        _line(upper, run, run["connections_wanted"], "wanted", GREY, "--"),
        _line(upper, run, run["connections"], "established", BLUE),
    ]
    upper.set_ylabel("connections", fontsize=_TEXT)
    _from_zero(upper, _whole)
    _names(upper, run, lines)
    events = [
        _line(lower, run, run.per_second("failures_total"), "failures", RED),
        _line(lower, run, run.per_second("reconnects_total"), "reconnects", PURPLE, "--"),
        _line(lower, run, _steps(run["listen_drops"]), "SYN drops", GREY, ":"),
    ]
    lower.set_ylabel("events/s", fontsize=_TEXT)
    _from_zero(lower, _whole, least_top=4)
    _names(lower, run, events)


def _throughput(run: _Run, figure: Figure) -> None:
    target = run.figure("target_connections", _most(run["connections_wanted"]))
    offered_at_target = run.figure("offered_rps")
    answered = run.per_second("requests_total")
    reached = run.figure("hold_rps", run.settled(answered))
    title = _when("{} requests/s answered", reached)
    if run.of_streams:
        title = _when("{} events/s arrived", run.figure("heard.events_per_s"))
    if run.held:
        title += _when(" of {} offered", offered_at_target)
        title += _when(", {} MiB/s received", run.figure("hold_mib_per_second"), digits)
    else:
        title = f"{title} at the end; there was no hold" if title else "Requests were not measured"
    note = _when("{} requests in all", run.figure("requests", _most(run["requests_total"])))
    note += _when(", {} failed", run.figure("failures", _most(run["failures_total"])))
    upper, lower = _panels(run, figure, title, note)
    offered = run["connections"] * (offered_at_target / target) if target else run["connections"] * math.nan
    lines = [
        _line(upper, run, answered, "answered", BLUE),
        _line(upper, run, offered, "offered", GREY, "--"),
    ]
    if run.of_streams:
        lines.append(_line(upper, run, run.per_second("events_total"), "events", RED))
    upper.set_ylabel("events/s, requests/s" if run.of_streams else "requests/s", fontsize=_TEXT)
    _from_zero(upper, _whole)
    _names(upper, run, lines)
    received = _line(lower, run, run.per_second("received_bytes_total") / MIB, "received", GREEN)
    lower.set_ylabel("MiB/s", fontsize=_TEXT)
    _from_zero(lower, digits)
    _names(lower, run, [received])


def _latency(run: _Run, figure: Figure) -> None:
    kind, figures, what = "latency", "latency_ms", "responses"
    note = "From the moment a request was due, so time that it waited in the client counts"
    if run.of_streams:
        kind, figures, what = "delivery", "heard.delivery_ms", "events"
        note = "From the sending of an event to its arrival at each client"
    p50, p99, worst = (run.figure(f"{figures}.{name}") for name in ("p50", "p99", "max"))
    title = _when(f"In the hold half of the {what} came within {{}} ms", p50, digits)
    title = title or f"{kind.capitalize()} of each second"
    title += _when(", 99 % within {} ms", p99, digits) + _when(", the last in {} ms", worst, digits)
    axes = _panels(run, figure, title, note, lower=False)[0]
    lines = [
        _line(axes, run, _positive(run[f"{kind}_p50_ms"]), "p50", BLUE),
        _line(axes, run, _positive(run[f"{kind}_p90_ms"]), "p90", GREEN, "-."),
        _line(axes, run, _positive(run[f"{kind}_p99_ms"]), "p99", RED),
        _line(axes, run, _positive(run[f"{kind}_max_ms"]), "max", GREY, ":"),
    ]
    axes.set_yscale("log")
    known = np.concatenate([values[np.isfinite(values)] for _, values, _ in lines] + [np.array([1.0])])
    bottom, top = float(known.min()) / 1.5, float(known.max()) * 2.2
    axes.set_ylim(bottom, top)
    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    steps = (1, 2, 5) if top / bottom < 1_000 else (1, 3)
    axes.yaxis.set_major_locator(FixedLocator([step * 10.0**decade for decade in decades for step in steps]))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: digits(value)))
    axes.set_ylabel(f"{kind}, ms (log scale)", fontsize=_TEXT)
    _names(axes, run, lines)


def _cpu(run: _Run, figure: Figure) -> None:
    shares = {name: run[f"{name}_cores"] for name in ("server", "client", "kernel")}
    known = np.nansum(list(shares.values()), axis=0)
    shares["other"] = np.maximum(0, run["busy_cores"] - known)
    cores = run.figure("machine.cpu_count", run.figure("machine.cores"))
    # The figures of the hold are the summary's, as on the page and in the terminal.
    used = {
        name: run.figure(f"cores_in_hold.{name}", run.settled(values))
        for name, values in (shares | {"busy": run["busy_cores"]}).items()
    }
    where = "in the hold" if run.held else "at the end"
    title = _when(f"{{}} cores busy {where}", used.pop("busy"), _hundredths)
    title = title.replace("cores", f"of {_whole(cores)} cores", 1) if math.isfinite(cores) else title
    parts = [_when(f"{name} {{}}", value, _hundredths) for name, value in used.items()]
    title += ": " + ", ".join(filter(None, parts)) if title and any(parts) else ""
    note = "Kernel: time in the kernel that neither side is charged with; other: other programs here"
    axes = _panels(run, figure, title or "CPU was not measured", note, lower=False)[0]
    bands = _stack(axes, run, shares, (BLUE, ORANGE, GREEN, PURPLE))
    axes.set_ylabel("busy cores", fontsize=_TEXT)
    if math.isfinite(cores):
        axes.axhline(cores, color="black", linewidth=1.2, dashes=(6, 3))
        bands.append((f"{_whole(cores)} cores", np.full(len(run.phases), cores), "black"))
    _from_zero(axes, digits, least_top=1.08 * cores if math.isfinite(cores) else 1)
    _names(axes, run, bands)


def _memory(run: _Run, figure: Figure) -> None:
    shares = {
        "server": run["server_pss_bytes"],
        "client": run["client_pss_bytes"],
        "kernel": (run["slab_bytes"] if np.isnan(run["socket_bytes"]).all() else run["socket_bytes"])
        + np.nan_to_num(run["sockstat_tcp_mem_bytes"]),
    }
    server = run.figure("server.pss_peak_bytes", _most(shares["server"]))
    client = run.figure("client.pss_peak_bytes", _most(shares["client"]))
    parts = [
        _when("server {}", server, _size) if server else "",
        _when("client {}", client, _size),
        _when("kernel {}", _most(shares["kernel"]), _size),
    ]
    peak = run.figure("peak_connections", _most(run["connections"]))
    title = f"Memory at {_whole(peak)} connections, peaks: " + ", ".join(filter(None, parts))
    title = title if any(parts) else "Memory was not measured"
    note = "Server and client: PSS of all processes; kernel: sockets and TCP buffers of the whole machine"
    upper, lower = _panels(run, figure, title, note)
    total = _most(np.nansum(list(shares.values()), axis=0))
    unit, name = (GIB, "GiB") if total >= 4 * GIB else (MIB, "MiB")
    bands = _stack(upper, run, {key: values / unit for key, values in shares.items()}, (BLUE, ORANGE, GREEN))
    upper.set_ylabel(f"in use, {name}", fontsize=_TEXT)
    _from_zero(upper, digits)
    _names(upper, run, bands)
    available = _line(lower, run, run["memory_available_bytes"] / GIB, "available", GREY)
    lower.set_ylabel("GiB", fontsize=_TEXT)
    _from_zero(lower, digits)
    _names(lower, run, [available])


# What the pictures share

#: Name of a curve or band, the values that its name stands beside, its colour.
_Named = tuple[str, Series, str]


def _panels(run: _Run, figure: Figure, title: str, note: str, lower: bool = True) -> list[Axes]:
    """The panels with title, shaded phases and time axis; a low second one if asked for."""
    failed = run.summary.get("verdict") == "fail"
    title = f"FAILED: {title}" if failed else title
    size = _TITLE * min(1.0, 84 / len(title))  # a long title gets smaller instead of leaving the picture
    figure.text(0.015, 0.95, title, fontsize=size, fontweight="bold", color=RED if failed else "black")
    figure.text(0.015, 0.908, note, fontsize=_SMALL, color=GREY)
    boxes = [(0.315, 0.55), (0.1, 0.165)] if lower else [(0.1, 0.76)]
    panels: list[Axes] = []
    for bottom, height in boxes:
        axes = figure.add_axes((_LEFT, bottom, _WIDTH, height), sharex=panels[0] if panels else None)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=_SMALL)
        axes.grid(axis="y", color="#CCCCCC", linewidth=0.6)
        axes.set_axisbelow(True)
        for phase, begin, end in run.spans():
            axes.axvspan(begin, end, color=_PHASES.get(phase, "white"), linewidth=0, zorder=-2)
        panels.append(axes)
    axes = panels[0]
    end = max(float(run.time[-1]), 1.0)
    axes.set_xlim(0, end)
    for phase, phase_begin, phase_end in run.spans():
        if (phase_end - phase_begin) / end > 0.04:  # else there is no room for its name
            place = (phase_begin + phase_end) / 2 / end
            axes.text(place, 1.01, phase, transform=axes.transAxes, ha="center", fontsize=_SMALL, color=GREY)
    if lower:
        axes.tick_params(labelbottom=False)
    panels[-1].set_xlabel(f"time since the start, {'minutes' if run.minutes else 's'}", fontsize=_TEXT)
    panels[-1].xaxis.set_major_locator(MaxNLocator(10, integer=True))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: digits(value)))
    return panels


def _line(axes: Axes, run: _Run, values: Series, name: str, color: str, style: str = "-") -> _Named:
    width = 1.0 if run.minutes else 1.8
    axes.plot(run.time, values, color=color, linestyle=style, linewidth=width, zorder=2 + (style != "-"))
    return name, values, color


def _stack(axes: Axes, run: _Run, shares: Mapping[str, Series], colors: Sequence[str]) -> list[_Named]:
    """Bands on top of each other; the middle of each is where its name goes. Unknown ones are left out."""
    named: list[_Named] = []
    base = np.zeros(len(run.phases))
    for (name, values), color in zip(shares.items(), colors, strict=True):
        if not np.nansum(values) > 0:
            continue
        top = base + np.nan_to_num(values)
        axes.fill_between(run.time, base, top, color=color, alpha=0.85, linewidth=0)
        axes.plot(run.time, top, color=color, linewidth=0.6)
        named.append((name, (base + top) / 2, color))
        base = top
    return named


def _from_zero(axes: Axes, text: Callable[[float], str], least_top: float = 1.0) -> None:
    """Scale from 0 to a little above the highest value, and write the ticks with `text`."""
    data = [line.get_ydata() for line in axes.lines]
    highest = max((_most(np.asarray(values, dtype=np.float64)) for values in data), default=math.nan)
    top = max(least_top, highest * 1.08) if math.isfinite(highest) else least_top
    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(MaxNLocator(6 if axes.get_position().height > 0.3 else 3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _names(axes: Axes, run: _Run, curves: Sequence[_Named]) -> None:
    """Write each curve's name into the right margin, at the height it had at the end of the hold.

    Names that would overlap are moved apart.  Call it when the scale is final.
    """
    known = []
    for name, values, color in curves:
        height = run.settled(values)
        if math.isfinite(height):
            share = float(axes.transAxes.inverted().transform(axes.transData.transform((0, height)))[1])
            known.append((min(1.0, max(0.0, share)), name, color))
    if not known:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", fontsize=_TEXT, color=GREY)
        return
    known.sort(key=lambda item: item[0])
    line_height = 1.35 * _SMALL / 72 / (axes.get_position().height * SIZE_INCHES[1])
    for share, (_, name, color) in zip(_apart([k[0] for k in known], line_height), known, strict=True):
        axes.text(
            1.008, share, name, transform=axes.transAxes, va="center", fontsize=_SMALL,
            color=color, fontweight="bold",
        )  # fmt: skip


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending `heights` moved as little as needed to be `gap` apart, the highest at most at 1."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def _most(values: Series) -> float:
    """The maximum of what is known, nan if nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.max(finite)) if len(finite) else math.nan


def _sum(values: Series) -> float:
    return float(np.nansum(values))


def _steps(totals: Series) -> Series:
    """Growth from row to row of a counter."""
    return np.diff(totals, prepend=totals[:1])


def _positive(values: Series) -> Series:
    """What a log scale can show."""
    return np.where(values > 0, values, np.nan)


def _when(template: str, value: float, text: Callable[[float], str] | None = None) -> str:
    """The template with the value written in, or nothing if it is unknown."""
    return template.format((text or _whole)(value)) if math.isfinite(value) else ""


def _whole(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "?"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"


def _size(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:,.0f} MiB"
