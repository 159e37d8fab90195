"""deploy/container/Containerfile."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
CONTAINERFILE = CHECKOUT / "deploy/container/Containerfile"


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("hadolint"), path], capture_output=True, text=True, check=False
    )


def test_hadolint_finds_nothing_wrong() -> None:
    done = lint(CONTAINERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_an_image_that_runs_as_root(tmp_path: Path) -> None:
    wrong = tmp_path / "Containerfile"
    wrong.write_text(CONTAINERFILE.read_text().replace("USER 10001:10001", "USER root"))
    assert "DL3002" in lint(wrong).stdout


def test_the_base_is_the_same_bytes_whenever_it_is_built() -> None:
    """A tag may be moved. And not with a tag beside, which some builders refuse (containers/image)."""
    image = CONTAINERFILE.read_text()
    bases = re.findall(r"^(?:ARG BASE=|FROM )(\S+)", image, re.MULTILINE)
    assert [base for base in bases if base != "${BASE}"] == [bases[0]]
    assert re.fullmatch(r"docker\.io/library/python@sha256:[0-9a-f]{64}", bases[0])


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    sources = re.findall(r"^COPY (?!--)(.+) \S+$", CONTAINERFILE.read_text(), re.MULTILINE)
    copied = {word for line in sources for word in line.split()}
    assert {"parked", "app", "loadtest"} <= copied
    ignored = (CHECKOUT / ".containerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((CHECKOUT / name).exists() for name in copied)


def test_the_manifests_expect_what_the_image_has() -> None:
    image = CONTAINERFILE.read_text()
    python = re.search(r"\(Python (3\.\d+)\.\d+;", image)  # as the comment on the digest says
    assert python
    version = re.search(r'"(.+)"', (CHECKOUT / "parked/__init__.py").read_text().splitlines()[-1])
    assert version
    for path in (CHECKOUT / "deploy/kubernetes").glob("*.yaml"):
        text = path.read_text()
        assert set(re.findall(r"image: (\S+)", text)) == {f"parked:{version[1]}"}
        assert set(re.findall(r"/opt/parked/lib/(python[\d.]+)/", text)) <= {f"python{python[1]}"}
        users = {
            thing["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
            for thing in yaml.safe_load_all(text)
            if "template" in thing["spec"]
        }
        assert users == {int(re.search(r"^USER (\d+):", image, re.MULTILINE)[1])}  # type: ignore[index]
