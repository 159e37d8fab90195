"""`index.html`: a run on one page that needs nothing but itself.

Verdict and sentence come first, then the charts, then the tables. Text and tables are plain HTML, so they are
there without scripts; the charts are data for `assets/page.js` and uPlot, which the page carries. A policy in
its head forbids the browser to load anything.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from parked.loadtest.report import charts, heard, limits, tables
from parked.loadtest.terms import checkout
from parked.loadtest.terms.harmless import for_page
from parked.loadtest.terms.units import digits, some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parked.loadtest.report.charts import Chart
    from parked.loadtest.report.record import Record
    from parked.loadtest.report.tables import Table

_HERE = Path(__file__).resolve().parent
#: A figure, with its unit: it goes to the right of its cell.
_NUMBER = re.compile(r"[+-]?[\d.,]+( [A-Za-z%]+)?( PSS| heap)?")


def of_run(record: Record, summary: dict[str, Any], sentence: str) -> str:
    """The page of a run. `sentence`: what a person wants to know first."""
    passed = summary["verdict"] == "pass"
    reasons = "".join(f"<li>{for_page(reason)}</li>" for reason in summary["reasons"])
    shown = charts.of_run(record, summary)
    body = [
        "<header>",
        verdict(passed),
        f"<h1>{_unbroken(for_page(sentence))}</h1>",
        f"<ul class='reasons'>{reasons}</ul>" if reasons else "",
        _about(record, summary),
        "</header>",
        _tiles(summary),
        places(shown),
        "<h2>What limits these figures</h2><ul>",
        *(f"<li>{for_page(text)}</li>" for text in limits.sentences(record, summary)),
        "</ul>",
        *map(table, [it for it in (heard.table(summary),) if it.rows]),
        *map(table, tables.of_run(record, summary)),
        f"<footer><code>{checkout.COMMAND} verify</code> recomputes every figure."
        f"{_not_told(record)}</footer>",
    ]
    title = f"{summary['target_connections']:,} connections: {summary['verdict']}"
    return assemble(title, "\n".join(body), shown)


#: Files beside the page, and what they have.
_BESIDE = {
    "summary.json": "every figure",
    "samples.csv": "a row per second",
    "latencies.hdr": "the histogram",
    "logfile": "the lines of the run",
    "locust.html": "Locust's own report",
}


def _about(record: Record, summary: dict[str, Any]) -> str:
    """Target, server, date, command and the other files: for a reader who did not make the run."""
    began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(summary["started_unix_s"]))
    software = summary["server"]["software"]
    target = for_page(summary["workload"]["host"]) + (f" ({for_page(software)})" if software else "")
    beside = ", ".join(
        f"<a href='{name}'>{name}</a> ({what})"
        for name, what in _BESIDE.items()
        if name == "summary.json" or (record.folder / name).is_file()
    )
    return (
        f"<p class='about'>Target {target}, {began}, by <code>{for_page(summary['command'])}</code><br>"
        f"Beside this page: {beside}</p>"
    )


def _not_told(record: Record) -> str:
    if record.facts.get("server_metrics"):
        return ""
    return " The server told nothing of itself (<code>--server-metrics</code>): no lag, no pauses, no counts."


def _unbroken(text: str) -> str:
    """No line ends between a figure and its unit."""
    return re.sub(r"(\d) (s|ms|MiB)\b", "\\1&nbsp;\\2", text)


def verdict(passed: bool) -> str:
    """Word, sign and colour: any one of them is enough."""
    return f"<p class='verdict {'pass' if passed else 'fail'}'>{'✓ pass' if passed else '✗ fail'}</p>"


def _tiles(summary: dict[str, Any]) -> str:
    latency, server, cores = summary["latency_ms"], summary["server"], summary["cores_in_hold"]
    peak = summary["peak_connections"]
    tiles = {
        "connections held": f"{summary['min_connections_in_hold']:,} of {summary['target_connections']:,}",
        "requests/s in the hold": f"{summary['hold_rps']:,.0f}"
        + (f" of {summary['offered_rps']:,.0f}" if summary["offered_rps"] else ""),
        "went wrong": f"{summary['failures']:,} failed, {some(summary['reconnects'], 'reconnects')}",
    }
    if latency["p99"] is not None:
        tiles["latency p50 / p99, ms"] = f"{digits(latency['p50'])} / {digits(latency['p99'])}"
    if server["pss_peak_bytes"] and peak:
        tiles["server memory per connection"] = f"{server['pss_peak_bytes'] / peak:,.0f} B"
    used = {name: value for name in ("server", "client") if (value := (cores or {}).get(name)) is not None}
    if used:
        tiles[f"cores: {', '.join(used)}"] = ", ".join(f"{value:.2f}" for value in used.values())
    rows = "".join(
        f"<div><dt>{for_page(name)}</dt><dd>{for_page(value)}</dd></div>" for name, value in tiles.items()
    )
    return f"<dl class='tiles'>{rows}</dl>"


def places(shown: Sequence[Chart]) -> str:
    """A figure for each chart, in order; the script fills them."""
    figures = "".join(
        f"<figure><figcaption>{for_page(chart.title)} <small>{for_page(chart.unit)}</small>"
        f"</figcaption><div class='chart' role='img' aria-label='{for_page(_told(chart))}'>"
        "</div></figure>"
        for chart in shown
    )
    return (
        "<p class='hint'>Point at a chart for its values, drag to zoom all of them, double-click to go back."
        "</p><noscript><p>The charts need JavaScript; the .png files beside this page do not.</p></noscript>"
        f"<section class='charts'>{figures}</section>"
    )


def _told(chart: Chart) -> str:
    """For those who can't see it."""
    parts = []
    for line in chart.lines:
        known = [value for value in line.values if value is not None]
        if known:
            parts.append(f"{line.name} from {min(known):,.4g} to {max(known):,.4g}")
    return f"{chart.title}, {chart.unit}: {'; '.join(parts)}"


def table(shown: Table) -> str:
    """A table that scrolls by itself where it is wider than the page."""

    columns = range(1, len(shown.columns))
    numeric = {column for column in columns if all(_is_number(row[column]) for row in shown.rows)}

    def cells(values: Sequence[str], tag: str = "td") -> str:
        made = []
        for column, value in enumerate(values):
            right = " class='number'" if column in numeric else ""
            made.append(f"<{tag}{right}>{for_page(value)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    head = f"<thead>{cells(shown.columns, 'th')}</thead>" if shown.columns else ""
    rows = "".join(cells(row) for row in shown.rows)
    remark = f"<p class='remark'>{for_page(shown.remark)}</p>" if shown.remark else ""
    kind = "" if shown.columns else " class='pairs'"
    return (
        f"<h2>{for_page(shown.title)}</h2><div class='wide'><table{kind}>{head}<tbody>{rows}</tbody>"
        f"</table></div>{remark}"
    )


def _is_number(text: str) -> bool:
    return text in ("-", "unknown", "from 0") or _NUMBER.fullmatch(text) is not None


def assemble(title: str, body: str, shown: Sequence[Chart]) -> str:
    """The whole document with styles, scripts and data in it."""
    # In a script element "</script>" ends it and "<!--" with "<script" keeps it from ending (HTML,
    # 13.2.5.15): so no "<" at all, which stands in JSON's texts only and may be escaped there.
    data = json.dumps([chart.as_dict() for chart in shown], separators=(",", ":")).replace("<", "\\u003c")
    return Template((_HERE / "assets" / "page.html").read_text()).substitute(
        title=for_page(title),
        style=_read("vendor/uplot/uPlot.min.css") + _read("assets/page.css"),
        body=body,
        data=data,
        library=_read("vendor/uplot/uPlot.iife.min.js") + _read("assets/axis.js"),
        script=_read("assets/page.js"),
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text()
