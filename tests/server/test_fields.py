from __future__ import annotations

from parked.server import fields


def test_remembered_header_fields_are_bounded() -> None:
    for number in range(fields.MAX_REMEMBERED_FIELDS + 100):
        fields.encode_field("X", str(number))
    fields.encode_field("X", "y" * 1000)
    assert len(fields.encoded_fields) <= fields.MAX_REMEMBERED_FIELDS
    assert ("X", "y" * 1000) not in fields.encoded_fields
