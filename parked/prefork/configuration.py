"""Settings in a file: TOML, with the names that the flags have."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path


def read(name: str, known: Collection[str]) -> dict[str, str]:
    """The settings of a file as texts, as flags have them.

    :param known: names of settings, with - or _ between words.
    :raises ValueError: it cannot be read, or something in it is unknown; in a line that begins with the file.
    """
    import tomllib  # most servers have no such file
    from difflib import get_close_matches

    try:
        values = tomllib.loads(Path(name).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    found: dict[str, str] = {}
    for key, value in values.items():
        setting = key.replace("-", "_")
        if setting not in known:
            close = get_close_matches(setting, known, 1)
            nearest = f"; is it {close[0].replace('_', '-')}?" if close else ""
            raise ValueError(f"{name}: unknown setting {key}{nearest}")
        if setting in found:
            raise ValueError(f"{name}: {key} is there twice")
        try:
            found[setting] = text_of(value)
        except TypeError as error:
            raise ValueError(f"{name}: {key} {error}") from None
    return found


def text_of(value: object) -> str:
    """A value of TOML as the text of a flag.

    :raises TypeError: it has none.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, (str, int)) for part in value):
        return ",".join(map(str, value))
    raise TypeError("needs a text, a number, yes or no (true, false), or a list of texts")
