from __future__ import annotations

from collections.abc import Iterator

import pytest

from parked.server import fields


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    _forget()
    yield
    _forget()


def _forget() -> None:
    for memory in (fields.encoded_fields, fields._field_lines, fields._encoded_names):
        memory.clear()
    fields._seen_once.forget()


def twice(name: str, value: str) -> bool:
    """Whether a field is remembered when it has come twice."""
    fields.encode_field(name, value)
    fields.encode_field(name, value)
    return fields.known_field((name, value)) is not None


def test_remembered_header_fields_are_bounded() -> None:
    for number in range(fields.MAX_REMEMBERED_FIELDS + 100):
        assert twice("X", str(number))
        fields.encode_field(f"X-{number}", "")
    assert not twice("X", "y" * 1000)
    fields.encode_field("X" * 1000, "y")
    assert len(fields.encoded_fields) <= fields.MAX_REMEMBERED_FIELDS
    assert len(fields._field_lines) <= fields.MAX_REMEMBERED_FIELDS
    assert len(fields._seen_once) <= fields.MAX_SEEN_ONCE
    assert len(fields._encoded_names) <= fields.MAX_REMEMBERED_FIELDS
    assert "X" * 1000 not in fields._encoded_names


def test_fields_that_are_never_the_same_are_not_remembered() -> None:
    for length in range(9_000):
        assert fields.encode_field("Content-Length", str(length)) == (
            (b"Content-Length", b"%d" % length),
            fields.CONTENT_LENGTH,
        )
        assert fields.encode_field("ETag", f'"{length}"') == ((b"ETag", b'"%d"' % length), 0)
        if not length % 10:
            twice("Content-Type", "text/plain")
    assert list(fields.encoded_fields) == [("Content-Type", "text/plain")]
    assert fields.field_line((b"ETag", b'"1"')) == b'ETag: "1"\r\n'
    assert len(fields._field_lines) == 1


def test_response_fields_that_may_hold_secrets_are_not_remembered() -> None:
    for name in ("Set-Cookie", "X-Auth-Token", "X-Session-Id", "Authentication-Info"):
        assert not twice(name, "secret")
        assert not len(fields._seen_once)
    assert twice("X-Plain", "open")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("a\rb", ValueError),
        ("a\nb", ValueError),
        ("\0", ValueError),
        ("\x7f", ValueError),
        ("\u20ac", UnicodeError),
    ],
)
def test_a_known_name_lets_no_bad_value_pass(value: str, error: type[Exception]) -> None:
    assert twice("X-Plain", "open")
    with pytest.raises(error):
        fields.encode_field("X-Plain", value)
    assert fields.encode_field("X-Plain", "a\tb\xe9") == ((b"X-Plain", b"a\tb\xe9"), 0)


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
