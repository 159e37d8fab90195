"""What an extra of pyproject.toml would bring is named; what else is missing is left as Python says it."""

from __future__ import annotations

import pytest

from parked.shared.extras import imported


def test_a_package_that_is_missing_is_told_with_its_extra() -> None:
    with pytest.raises(ModuleNotFoundError) as raised, imported("a face", ("no_such_package",), "some"):
        import no_such_package  # type: ignore[import-not-found] # noqa: F401
    assert str(raised.value) == "a face needs no_such_package: pip install 'parked[some]'"
    assert raised.value.name == "no_such_package"
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)


def test_a_module_that_is_missing_within_it_is_left_as_it_is() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match="No module named"),
        imported("it", ("json",), "x"),
    ):
        import json.none  # noqa: F401
