"""A locustfile of the user's own: the servers that its classes name, read without running it, and a word
where its users are not ours."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def hosts(file: Path) -> list[str]:
    """What its classes say that `host` is, each once; nothing of what is no Python: Locust will say so.

    :raises ValueError: with a sentence for a person; if the file can't be read, or computes a host.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    except (SyntaxError, ValueError):
        return []
    found = []
    for value in _assigned(tree, "host"):
        known = value.value if isinstance(value, ast.Constant) else ""
        if known == "":
            raise ValueError(f"{file.name} computes a host in line {value.lineno}: say it with --host")
        if isinstance(known, str) and known.startswith(("http://", "https://")):
            found.append(known.rstrip("/"))
    return list(dict.fromkeys(found))


def missing(named: Path) -> str:
    """What Locust would not find of what -f names, files and folders with commas; empty if all is there."""
    for one in (Path(name.strip()) for name in str(named).split(",")):
        if not one.exists():
            return f"cannot read {one}: no such file or folder"
        if not one.is_dir() and one.suffix != ".py":
            return f"cannot read {one}: its name does not end in .py"
    return ""


def _assigned(tree: ast.Module, name: str) -> Iterator[ast.expr]:
    """What is assigned to a name in the bodies of classes."""
    for one in ast.walk(tree):
        for statement in one.body if isinstance(one, ast.ClassDef) else ():
            targets: list[ast.expr] = []
            value: ast.expr | None = None
            if isinstance(statement, ast.Assign):
                targets, value = statement.targets, statement.value
            elif isinstance(statement, ast.AnnAssign):
                targets, value = [statement.target], statement.value
            if value is not None and any(isinstance(it, ast.Name) and it.id == name for it in targets):
                yield value


def explained(file: Path, said: str) -> str:
    """Locust's last words, or what they mean: without a KeepAliveUser it does not know a run's options."""
    if "unrecognized arguments: --think" not in said:
        return said
    return (
        f"{file.name} has no KeepAliveUser: in place of Locust's, import "
        "`from parked.user import KeepAliveUser as FastHttpUser`"
    )
