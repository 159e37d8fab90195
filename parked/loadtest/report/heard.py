"""What users have heard that wait for it (long polls, event streams): figures, reasons, and a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parked.loadtest.report.record import number, numbers
from parked.loadtest.report.tables import Table
from parked.loadtest.terms.units import count

if TYPE_CHECKING:
    from parked.loadtest.report.hearing import Hearing
    from parked.loadtest.report.record import Record

#: Percentiles of deliveries, by their names in summary.json.
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
#: The share of the streams that an event must have come to, to be one for all of them. Fewer: it is of a
#: topic, or of one client. More that are missing would show as numbers left out.
BROADCAST_SHARE = 0.9
_WRONG = {
    "lost": "events were lost on their way: numbers are missing",
    "repeated": "events came twice",
    "disordered": "events came behind later ones",
}


def summarise(record: Record, counted_s: float) -> dict[str, Any] | None:
    """For summary.json; None where nobody waited. `counted_s`: seconds of the hold, as they were counted."""
    facts = record.facts.get("heard")
    if facts is None:
        return None
    totals, hold, deliveries = facts["totals"], facts["hold"], record.deliveries
    known = deliveries.get_total_count() > 0
    made: dict[str, Any] = {
        "streams_least_in_hold": facts["streams_min"],
        "deliveries": deliveries.get_total_count(),
        "delivery_ms": {
            name: round(deliveries.get_value_at_percentile(percent) / 1000, 3) if known else None
            for name, percent in PERCENTILES.items()
        },
    }
    if record.facts.get("workload") == "longpoll":
        return made
    return made | {
        "events": totals["events"],
        "hold_events": hold["events"],
        "events_per_s": round(hold["events"] / counted_s, 2) if counted_s else 0.0,
        **{name: totals[f"events_{name}"] for name in (*_WRONG, "unnumbered")},
        "comments": totals["comments"],
        "broadcasts": _broadcasts(facts),
    }


def _broadcasts(facts: dict[str, Any]) -> dict[str, Any]:
    """Events that came to all, in the order of their first arrival. One that has not come to everybody by
    the end of the hold is still under way, if it is the last."""
    streams = facts["streams_min"]
    to_all = sorted(
        (it for it in facts["broadcasts"] if it[4] >= BROADCAST_SHARE * streams), key=lambda it: it[2]
    )
    if to_all and to_all[-1][4] < streams:
        to_all.pop()
    incomplete = [it for it in to_all if it[4] < streams]
    spans = [last - first for _, _, first, last, _ in to_all]
    after = [last - sent for _, sent, _, last, _ in to_all if sent is not None]
    return {
        "number": len(to_all),
        "incomplete": len(incomplete),
        "fewest_streams": min((it[4] for it in to_all), default=None),
        "first_to_last_mean_s": round(sum(spans) / len(spans), 3) if spans else None,
        "first_to_last_max_s": round(max(spans), 3) if spans else None,
        "sent_to_last_max_s": round(max(after), 3) if after else None,
    }


def _of_some(facts: dict[str, Any]) -> str | None:
    """Events that a part of the streams got. They are of topics, or some streams hear nothing, in whose
    numbers nothing is missing: it is for the reader to know."""
    streams = facts["streams_min"]
    *known, last = sorted(facts["broadcasts"], key=lambda it: it[2]) or [None]
    if last is not None and last[4] >= BROADCAST_SHARE * streams:
        known.append(last)  # else it may be under way
    arrivals = [it[4] for it in known if it[4] < BROADCAST_SHARE * streams]
    if not arrivals:
        return None
    return (
        f"{len(arrivals):,} of {len(known):,} events of the hold came to a part of the {streams:,} streams, "
        f"{max(arrivals):,} at most: is each for all of them?"
    )


def reasons(summary: dict[str, Any]) -> list[str]:
    """Why a run has failed, of what was to be heard."""
    heard = summary.get("heard")
    if not heard or "events" not in heard:
        return []
    found = [f"{heard[name]:,} {text}" for name, text in _WRONG.items() if heard[name]]
    least, target = heard["streams_least_in_hold"], summary["target_connections"]
    if least < target:
        found.append(f"event streams fell to {least:,} of {target:,} in the hold")
    if incomplete := heard["broadcasts"]["incomplete"]:
        fewest = heard["broadcasts"]["fewest_streams"]
        found.append(f"{incomplete:,} events did not come to all streams, one to {fewest:,} only")
    return found


def remarks(record: Record, summary: dict[str, Any]) -> list[str]:
    """What a reader has to know of these figures, and is no failure."""
    heard = summary.get("heard") or {}
    found = []
    if heard.get("hold_events") == 0:
        found.append("no event came in the hold")
    elif "broadcasts" in heard and (said := _of_some(record.facts["heard"])):
        found.append(said)
    if unnumbered := heard.get("unnumbered"):
        found.append(f"{unnumbered:,} events had no id: whether one was lost or came twice can't be seen")
    if heard.get("hold_events") and not heard["deliveries"]:
        found.append("no event says when it was sent: deliveries could not be timed")
    if any(host["clock_offset_ms"] for host in summary.get("hosts", ())):
        found.append("deliveries to other hosts are off by the distance of their clocks from the sender's")
    return found


def agree(record: Record, hearing: Hearing) -> None:
    """Ask the witnesses: rows, histogram and broadcasts of the hold, and the server's own counts."""
    facts, rows = record.facts.get("heard"), record.hold()
    if facts is None or not rows:
        return
    before, last = record.before_hold(), rows[-1]
    for name, total in facts["totals"].items():
        column = f"{name}_total"
        at_last, at_first = number(last, column), number(before, column)
        hearing.equal(f"{name} until the end of the hold", run=total, samples=at_last)
        if at_last is not None and at_first is not None:
            hearing.equal(f"{name} in the hold", run=facts["hold"].get(name), samples=at_last - at_first)
    for name in facts["totals"]:
        known = numbers(record.stated, f"{name}_total")
        hearing.that(known == sorted(known), f"samples.csv: {name}_total falls")
    hearing.equal(
        "deliveries in the hold",
        histogram=record.deliveries.get_total_count(),
        samples=sum(numbers(rows, "deliveries")),
    )
    longest = max(numbers(rows, "delivery_max_ms"), default=None)
    if record.deliveries.get_total_count():
        said = round(record.deliveries.get_value_at_percentile(100) / 1000, 3)
        hearing.equal("longest delivery in the hold, ms", 0.001, samples=longest, histogram=said)
    least = min([*numbers([before or {}], "streams"), *numbers(rows, "streams_min")], default=None)
    hearing.equal("fewest streams in the hold", run=facts["streams_min"], samples=least)
    told = sum(it[4] for it in facts["broadcasts"])
    events = facts["hold"]["events"]
    hearing.that(told <= events, f"broadcasts: {told:,} arrivals, {events:,} events in the hold")
    hearing.rows([
        f"event {it[0]}: its first arrival is behind its last" for it in facts["broadcasts"] if it[2] > it[3]
    ])  # fmt: skip
    _server(record, hearing)


def _server(record: Record, hearing: Hearing) -> None:
    """The server has written no fewer events than have come. What a client that comes back
    had missed may be one write."""
    rows, totals = record.stated, record.facts["totals"]
    if not record.facts.get("server_metrics") or totals.get("reconnects") or totals.get("elsewhere"):
        return
    last = rows[-1] if rows else None
    came, written = number(last, "events_total"), number(last, "server_messages_total")
    if came is not None and written is not None and record.facts.get("ended", True):
        hearing.that(
            came <= written, f"events in all: {came:,.0f} have come, the server has written {written:,.0f}"
        )


def line(heard: dict[str, Any]) -> str:
    """For the terminal."""
    latency = " ".join(
        f"{name} {value:,.0f}" for name, value in heard["delivery_ms"].items() if value is not None
    )
    timed = f"sending to arrival ms {latency}" if latency else "not timed"
    if "events" not in heard:
        return timed
    text = (
        f"{heard['streams_least_in_hold']:,} streams or more, {heard['events_per_s']:,.0f} events/s, "
        f"{heard['lost']:,} lost, {heard['repeated']:,} repeated; {timed}"
    )
    longest = heard["broadcasts"]["first_to_last_max_s"]
    return text if longest is None else f"{text}; first to last client {longest:,.2f} s at most"


def table(summary: dict[str, Any]) -> Table:
    """For the page."""
    heard = summary.get("heard")
    if not heard:
        return Table("", (), ())
    rows = [("waiting at once, least in the hold", count(heard["streams_least_in_hold"]))]
    if "events" in heard:
        broadcasts = heard["broadcasts"]
        rows += [
            ("events in all, in the hold", f"{count(heard['events'])}, {count(heard['hold_events'])}"),
            ("events/s in the hold", f"{heard['events_per_s']:,.1f}"),
            *((f"events {name}", count(heard[name])) for name in (*_WRONG, "unnumbered")),
            ("comments (heartbeats)", count(heard["comments"])),
            ("events of the hold that came to all", count(broadcasts["number"])),
            ("first to last client, mean and longest", _seconds(broadcasts, "mean", "max")),
        ]
        if (last_s := broadcasts["sent_to_last_max_s"]) is not None:
            rows.append(("sending to last client, longest", f"{last_s:,.3f} s"))
    rows += [
        (f"sending to arrival, {name}", f"{value:,.1f} ms")
        for name, value in heard["delivery_ms"].items()
        if value is not None
    ]
    return Table(
        "What was sent to those who wait",
        (),
        rows,
        "Arrival is when the load test has read it. Sending is the time that the event or answer states.",
    )


def _seconds(broadcasts: dict[str, Any], *names: str) -> str:
    known = [broadcasts[f"first_to_last_{name}_s"] for name in names]
    return "-" if None in known else ", ".join(f"{value:,.3f} s" for value in known)
