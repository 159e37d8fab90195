"""The page of a comparison: differences, the table with ratios, and the runs' curves over each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parked.loadtest.report import charts, comparison, page
from parked.loadtest.report.charts import Chart, Line
from parked.loadtest.report.record import number, per_second
from parked.loadtest.report.tables import Table
from parked.loadtest.terms.harmless import for_page
from parked.loadtest.terms.units import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parked.loadtest.report.comparison import Run

#: A colour and a dash per run, so that either tells them apart.
_COLORS = (charts.BLUE, charts.RED, charts.GREEN, charts.PURPLE, charts.ORANGE, charts.GREY)
_DASHES: tuple[tuple[int, ...], ...] = ((), (7, 4), (2, 3), (9, 3, 2, 3), (14, 4), (4, 2))

#: Title, unit, column of samples.csv (a total is shown as a rate), and what one unit is in the column's.
_OVER_TIME = (
    ("Connections", "connections", "connections", 1.0),
    ("Requests", "requests/s", "requests_total", 1.0),
    ("Latency p50", "ms, log scale", "latency_p50_ms", 1.0),
    ("Latency p99", "ms, log scale", "latency_p99_ms", 1.0),
    ("CPU of the server", "busy cores", "server_cores", 1.0),
    ("CPU of the client", "busy cores", "client_cores", 1.0),
    ("Memory of the server", "MiB", "server_pss_bytes", MIB),
)


def of_runs(runs: Sequence[Run], warnings: Sequence[str], crossed: Sequence[str]) -> str:
    """The whole document. `crossed`: the thresholds that were."""
    shown = [chart for chart in _charts(runs) if chart.known]
    names = Table(
        "The runs",
        ("", "folder", "verdict", "server", "command"),
        [
            (
                run.letter,
                run.record.folder.resolve().name,
                run.summary["verdict"],
                run.summary["server"]["software"] or "-",
                run.summary["command"],
            )
            for run in runs
        ],
    )
    figures = Table("Figures, and ratios to A", comparison.headings(runs), comparison.rows(runs))
    body = [
        "<header>",
        page.verdict(not crossed) if crossed else "",
        f"<h1>{for_page(_sentence(runs))}</h1>",
        _list(crossed, " class='reasons'"),
        "</header>",
        f"<h2>What differs besides</h2>{_list(warnings)}" if warnings else "",
        page.table(names),
        page.table(figures),
        "<h2>Over each other</h2>",
        page.places(shown),
    ]
    return page.assemble(f"{len(runs)} runs compared", "\n".join(body), shown)


def _sentence(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs[1:]:
        ratios = [
            f"{text} {ratio:.2f} x"
            for name, text in (
                ("hold_rps", "requests/s"),
                ("latency_ms.p99", "p99"),
                ("server_cores", "server CPU"),
                ("server.pss_peak_bytes", "server memory"),
            )
            if (ratio := comparison.ratio(run, runs[0], name)) is not None
        ]
        parts.append(f"{run.letter} against {runs[0].letter}: {', '.join(ratios)}" if ratios else "")
    return "; ".join(filter(None, parts)) or "Nothing to compare"


def _list(texts: Sequence[str], attributes: str = "") -> str:
    items = "".join(f"<li>{for_page(text)}</li>" for text in texts)
    return f"<ul{attributes}>{items}</ul>" if items else ""


def _charts(runs: Sequence[Run]) -> list[Chart]:
    made = []
    ends = [number(run.record.rows[-1], "time_s") or 0.0 for run in runs if run.record.rows]
    seconds = range(round(max(ends, default=0.0)) + 1)  # the same for all charts
    for title, unit, column, scale in _OVER_TIME:
        log = "log" in unit
        # Rows are a second apart, but each run's at moments of its own.
        series: list[dict[int, float]] = []
        for run in runs:
            cells: dict[int, float] = {}
            rows = run.record.rows
            times, counted, values = (
                [number(row, name) for row in rows] for name in ("time_s", "counted_unix_s", column)
            )
            for at, value in zip(
                times,
                per_second(values, counted, times) if column.endswith("_total") else values,
                strict=True,
            ):
                if at is not None and value is not None and (value > 0 or not log):
                    cells[round(at)] = value / scale
            series.append(cells)
        made.append(
            Chart(
                title,
                unit,
                [float(second) for second in seconds],
                [
                    _line(runs, index, [cells.get(second) for second in seconds])
                    for index, cells in enumerate(series)
                ],
                log=log,
            )
        )
    curves = [charts.percentiles(run.record.latencies_and_ages) for run in runs]
    places = sorted({place for curve in curves for place in curve.x if place is not None})
    heights = [dict(zip(curve.x, curve.lines[0].values, strict=True)) for curve in curves]
    made.append(
        Chart(
            curves[0].title,
            curves[0].unit,
            places,
            [
                _line(runs, index, [known.get(place) for place in places])
                for index, known in enumerate(heights)
            ],
            log=True,
            percentiles=True,
        )
    )
    return made


def _line(runs: Sequence[Run], index: int, values: charts.Values) -> Line:
    return Line(runs[index].name, values, _COLORS[index], _DASHES[index])
