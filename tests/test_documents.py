"""What documents say of files: links lead somewhere, the design names every module, examples are files."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tests import documented

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), CHECKOUT / "results/README.md"])
#: Folders that a source distribution is without.
RUNS = {CHECKOUT / "results/reference", CHECKOUT / "results/before-1.0"}
IS_SDIST = (CHECKOUT / "PKG-INFO").is_file()

#: [text](target) and ![text](target), outside of code.
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"^( {4}.*|```.*?^```)$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(document: Path) -> list[str]:
    dead = []
    for target in _LINK.findall(_CODE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name) if name else document
        if RUNS & {path.resolve(), *path.resolve().parents} and IS_SDIST:
            continue
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    assert dead_links(document) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    document = tmp_path / "one.md"
    document.write_text(
        "# Of two words\n[good](one.md#of-two-words) [far](https://x.example/y) `[code](not)`\n"
        "[file](two.md) [heading](#of-three)\n"
    )
    assert dead_links(document) == ["two.md", "#of-three"]


FOLDERS = sorted(
    path.parent for path in (CHECKOUT / "parked").glob("**/__init__.py") if path.parent.name != "loadtest"
)


@pytest.mark.parametrize("folder", FOLDERS[1:], ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_the_design_has_a_table_for_every_folder_with_every_module(folder: Path) -> None:
    name = f"`{folder.relative_to(CHECKOUT)}/`: "
    table = (CHECKOUT / "docs/design.md").read_text().split(f"\n{name}")[1].split("\n\n")[1]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("__"))


def test_the_locustfile_that_is_shown_is_the_one_that_is_tried() -> None:
    code = (CHECKOUT / "docs/examples/orders.py").read_text().split('"""')[2].strip()
    assert textwrap.indent(code, "    ") in (CHECKOUT / "docs/client.md").read_text()


def test_every_command_of_the_documents_is_run_or_named_with_a_reason() -> None:
    shown = {command for document in documented.DOCUMENTS for command in documented.commands(document)}
    played = {
        line.removeprefix("& ").strip()
        for scene in documented.SCENES.values()
        for line in textwrap.dedent(scene).strip().splitlines()
        if not line.startswith("+ ")
    }
    untried = {command for command in shown if command.split()[0] in documented.UNTRIED_PROGRAMS}
    untried |= set(documented.UNTRIED)
    assert sorted(shown - played - untried) == []
    assert sorted((played | set(documented.UNTRIED)) - shown) == []  # what is not shown any more
