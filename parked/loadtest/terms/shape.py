"""Whether data that came from elsewhere has the shape that a TypedDict says.

For messages and files: what a stranger may have sent or written is looked at once, where it enters. After
that figures are finite, numbers are numbers, and nothing that is needed is missing.
"""

from __future__ import annotations

import functools
import types
from typing import Any, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

#: Beyond any count of bytes, and still a double: sums of a million of them are finite.
MOST = 1e18
#: Characters of a text, items of a list or mapping.
LONGEST, MANY = 1 << 20, 1_000_000


def wrong(value: Any, kind: Any, name: str = "it") -> str:
    """Why the value is not of that kind; "" if it is.

    :param kind: a TypedDict, or what stands in one: int, float (which an int is too), bool, str, bytes, list,
        tuple, dict, unions with None, Any.
    """
    if kind is Any:
        return ""
    if kind is int or kind is float:
        return _wrong_number(value, kind, name)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Required, NotRequired):
        return wrong(value, parts[0], name)
    if origin in (Union, types.UnionType):
        whys = [wrong(value, part, name) for part in parts]
        return "" if "" in whys else whys[0]
    if kind is type(None):
        return "" if value is None else f"{name} is not null"
    if is_typeddict(kind):
        return _wrong_record(value, kind, name)
    container = origin or kind
    accepted = (list, tuple) if container in (list, tuple) else container
    if not isinstance(value, accepted):
        return f"{name} is no {_WORDS[container]}"
    if container in (str, bytes):
        return f"{name} is too long" if len(value) > LONGEST else ""
    if container in (list, tuple, dict) and len(value) > MANY:
        return f"{name} has too many items"
    return _wrong_items(value, container, parts, name)


def _wrong_number(value: Any, kind: Any, name: str) -> str:
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if number and -MOST <= value <= MOST:
        return ""
    return f"{name} is no {'whole number' if kind is int else 'number'}"


def _wrong_items(value: Any, container: Any, parts: tuple[Any, ...], name: str) -> str:
    if container is dict and parts:
        whys = (
            wrong(key, parts[0], f"a key of {name}") or wrong(item, parts[1], f"{name}.{key}"[:200])
            for key, item in value.items()
        )
    elif container is tuple and parts and parts[-1] is not Ellipsis:
        if len(value) != len(parts):
            return f"{name} has not {len(parts)} items"
        whys = (wrong(item, part, f"an item of {name}") for item, part in zip(value, parts, strict=True))
    elif parts[:1] == (int,) and value and {*map(type, value)} == {int} and _are_small(value):
        return ""  # as most messages have it, in a tenth of the time
    elif container in (list, tuple) and parts:
        whys = (wrong(item, parts[0], f"an item of {name}") for item in value)
    else:
        return ""
    return next(filter(None, whys), "")


def _are_small(values: Any) -> bool:
    return bool(min(values) >= -MOST and max(values) <= MOST)


@functools.cache
def _hints(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """Those of a TypedDict, and what must be there: not its __required_keys__, which knows no NotRequired in
    annotations that are text (PEP 563)."""
    hints = get_type_hints(kind, include_extras=True)
    return hints, [key for key, hint in hints.items() if get_origin(hint) is not NotRequired]


def _wrong_record(value: Any, kind: Any, name: str) -> str:
    if not isinstance(value, dict):
        return f"{name} is no mapping"
    hints, needed = _hints(kind)
    if missing := [key for key in needed if key not in value]:
        return f"{name} lacks {', '.join(missing)}"
    whys = (wrong(value[key], hint, key) for key, hint in hints.items() if key in value)
    return next(filter(None, whys), "")


_WORDS = {
    str: "text",
    bytes: "bytes",
    bool: "yes or no",
    list: "list",
    tuple: "list",
    dict: "mapping",
}
