from __future__ import annotations

import pytest

from parked.server import fields


def test_remembered_header_fields_are_bounded() -> None:
    for number in range(fields.MAX_REMEMBERED_FIELDS + 100):
        fields.encode_field("X", str(number))
    fields.encode_field("X", "y" * 1000)
    assert len(fields.encoded_fields) <= fields.MAX_REMEMBERED_FIELDS
    assert ("X", "y" * 1000) not in fields.encoded_fields


def test_response_fields_that_may_hold_secrets_are_not_remembered() -> None:
    for name in ("Set-Cookie", "X-Auth-Token", "X-Session-Id", "Authentication-Info"):
        fields.encode_field(name, "secret")
        assert (name, "secret") not in fields.encoded_fields
    fields.encode_field("X-Plain", "open")
    assert ("X-Plain", "open") in fields.encoded_fields


def test_of_the_seconds_gone_by_no_date_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 2_000_000_000.5
    monkeypatch.setattr(fields.time, "time", lambda: now)
    dates = {fields.date_field()}
    remembered = len(fields._field_lines)
    for _ in range(5):
        now += 1.0
        dates.add(fields.date_field())
        assert fields.date_field() in dates
    assert len(dates) == 6
    assert len(fields._field_lines) == remembered
