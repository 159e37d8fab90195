from __future__ import annotations

from parked.server import reports
from parked.server.reports import Reports, described


def test_some_lines_are_written_and_the_others_counted() -> None:
    now = 100.0
    lines: list[str] = []
    said = Reports(lines.append, lambda: now)
    for number in range(reports.LINES + 5):
        said.say("refused", str(number))
    assert lines == [f"refused: {number}\n" for number in range(reports.LINES)]
    said.say("TLS", "another kind has its own")
    assert lines[-1] == "TLS: another kind has its own\n"
    now += reports.LINES_S
    said.say("refused", "again")
    said.say("refused", "and again")
    assert lines[-2:] == ["refused: again (5 more like it before)\n", "refused: and again\n"]


def test_an_error_is_told_in_one_line_that_does_nothing_to_who_reads_it() -> None:
    assert described(ValueError("a\nb\x1b[2J ü")) == "ValueError: a b\\x1b[2J ü"
    assert described(ValueError()) == "ValueError"
