"""Folders of strangers: one line, no traceback, nothing written where it should not be."""

from __future__ import annotations

import base64
import copy
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parked.loadtest.report import compare, report, verify
from parked.loadtest.report.record import Record
from tests.loadtest.runs import write_run

NAMES = ("summary.json", "index.html", "latencies.hdr", "connections.png", "cpu.png")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def refused(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What all three say of a folder: one line each."""
    good = write_run(run.parent / "good")
    assert report.main([str(run)]) == 2
    assert verify.main([str(run)]) == 2
    assert compare.main([str(good), str(run), "--page", str(run.parent / "page.html")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 3, said
    assert "\x1b" not in said
    return said


def test_links_in_a_folder_are_not_followed_and_nothing_of_it_is_copied(run: Path) -> None:
    precious = run.parent / "precious"
    precious.write_text("kept")
    facts = json.loads((run / "run.json").read_text())
    facts["hold_latencies"] = facts["hold_latencies"] + "\n\n"
    (run / "run.json").write_text(json.dumps(facts))
    for name in NAMES:
        (run / f"{name}.partial").symlink_to(precious)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(precious)
    assert report.main([str(run)]) == 0
    assert precious.read_text() == "kept"
    assert (run / "latencies.hdr").read_text().count("\n") == 1


def change(**facts: Any) -> Callable[[Path], None]:
    def made(run: Path) -> None:
        known = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(known | facts))

    return made


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(content) and None


HISTOGRAM = b"\x1c\x84\x93\x14" + b"\0\0\0\0"
BOMB = base64.b64encode(HISTOGRAM + zlib.compress(bytes(64 << 20), 9)).decode()


@pytest.mark.parametrize(
    "spoil",
    [
        text("run.json", "[" * 100_000),
        text("run.json", '{"a":' * 100_000),
        text("run.json", "[]"),
        text("run.json", "1e400"),
        text("run.json", "{}"),
        text("samples.csv", "time_s\n1\n"),
        text("samples.csv", "time_s,phase,connections\n" + "1,hold,1\n" * 700_000),
        text("samples.csv", "time_s,phase,connections\n" + "x" * 200_000),
        text("samples.csv", "time_s,phase,connections\n1,hold,2,3,4\n"),
        text("samples.csv", "time_s,phase,connections" + ",x" * 8000 + "\n1" * 600_000),
        text("samples.csv", "time_s,phase,connections,x\n" + "1\n" * 1000),
        change(hold_s=float("inf")),
        change(hold_s="long"),
        change(think_s=[1]),
        change(totals={"requests": "many"}),
        change(totals=[]),
        change(workers=[{}]),
        change(workers=7),
        change(hosts=[{"name": "x"}]),
        change(notes=[1]),
        change(machine=[]),
        change(hold_latencies=BOMB),
        change(hold_latencies="x" * 1000),
        change(hold_thinks_s=[1, 2]),
        change(hold_thinks_s=[1e308, 0, 1, [[1e9, 1]]]),
        change(peak_connections=10**30),
    ],
)
def test_nonsense_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    spoil(run)
    refused(run, capsys)


@pytest.mark.usefixtures("no_pictures")
def test_escape_sequences_of_a_folder_do_not_reach_the_terminal(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(server_software="\x1b[2J\x1b]0;owned\x07", notes=["\x1b[31mred"])(run)
    assert report.main([str(run)]) == 1
    verify.main([str(run)])
    out = capsys.readouterr()
    assert "\x1b" not in out.out + out.err
    assert "owned" in out.out
    assert "<!--" not in (run / "index.html").read_text().split("<script")[-1]


@pytest.mark.usefixtures("no_pictures")
def test_what_a_folder_says_is_in_lines_of_its_own_making(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lie = "1\nverdict      pass\n"
    change(server_software=lie, host=f"http://[{lie}", command=lie, notes=[lie], versions={lie: lie})(run)
    assert report.main([str(run)]) == 1
    assert verify.main([str(run)]) == 0
    (run / "summary.json").write_text(json.dumps({f"{lie}{number}": "x" * 10_000 for number in range(1000)}))
    assert verify.main([str(run)]) == 1
    assert compare.main([str(write_run(run.parent / "good")), str(run), "--page", f"{run}.html"]) == 0
    told = capsys.readouterr()
    assert "verdict      pass" not in (told.out + told.err).splitlines()
    assert len(told.out) < 100_000


@pytest.mark.usefixtures("no_pictures")
def test_few_bytes_do_not_become_very_many(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(run)]) == 0
    names = "Type,Name,Request Count,Failure Count,50%,90%,99%,100%"
    (run / "locust_stats.csv").write_text(f"{names}{',x' * 1_000_000}\n" + f"{'1,' * 8}\n" * 100_000)
    assert report.main([str(run)]) == 0
    figures = dict.fromkeys(map(str, range(50_000)), 0)
    (run / "summary.json").write_text(json.dumps({"x" * 1_000_000: figures}))
    assert verify.main([str(run)]) == 2
    assert capsys.readouterr().err.endswith("summary.json has a name that is too long)\n")


def test_what_a_mutation_makes_is_read_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small fuzzing with a fixed seed: any exception that is not told in a line fails it."""
    chance = random.Random(7)
    run = write_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    odd = [None, -1, 0, 1e300, "", "x", [], {}, [[]], {"a": None}, True, 2**70, -1e18, 1e18]
    for _ in range(150):
        spoiled = json.loads(json.dumps(facts))
        for _ in range(chance.randint(1, 3)):
            place: Any = spoiled
            while isinstance(place, dict | list) and place:
                keys = list(place) if isinstance(place, dict) else range(len(place))
                key = chance.choice(list(keys))
                if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.3:
                    place[key] = copy.deepcopy(chance.choice(odd))
                    break
                place = place[key]
        (run / "run.json").write_text(json.dumps(spoiled))
        assert verify.main([str(run)]) in (1, 2)
        assert len(capsys.readouterr().err.splitlines()) <= 1


def test_a_run_as_it_is_written_has_the_shape_that_is_asked_for(run: Path) -> None:
    assert Record.read(run).facts["hold_s"] == 10
