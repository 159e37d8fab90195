"""The words of ./run_test, and what they need."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands
from tests.loadtest.runs import write_run

#: Runs the command where these packages can't be imported.
WITHOUT = """
import importlib.util, sys
gone = set(sys.argv.pop(1).split(","))
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in gone else find_spec(name, *rest)
from parked.loadtest.command.__main__ import main
sys.exit(main())
"""


def command(without: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return commands.run(
        [sys.executable, "-c", WITHOUT, without, *words],
        cwd=cwd,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        timeout=60,
    )


def test_runs_are_read_compared_and_verified_without_locust_and_without_gevent(tmp_path: Path) -> None:
    gone = "locust,gevent,psutil,rich,prometheus_client,httptools,matplotlib"
    runs = [str(write_run(tmp_path / name)) for name in ("a", "b")]
    for run in runs:
        made = command(gone, "report", run)
        assert made.returncode == 0, made.stderr
        assert "pip install 'parked[plots]'" in made.stdout
    assert command(gone, "verify", *runs).returncode == 0
    assert command(gone, "compare", *runs, cwd=tmp_path).returncode == 0
    assert (tmp_path / "compare.html").exists()


def test_help_and_plan_need_no_locust() -> None:
    gone = "locust,gevent,psutil,rich,prometheus_client,httptools,hdrh,matplotlib"
    assert "report RUN" in command(gone, "--help").stdout
    assert "holds" in command(gone, "--plan").stdout


@pytest.mark.parametrize(
    ("gone", "words", "extra"),
    [("locust", ("-c", "10"), "loadtest"), ("hdrh", ("verify", "nowhere"), "plots")],
)
def test_what_is_missing_is_one_line_with_the_command_that_brings_it(
    gone: str, words: tuple[str, ...], extra: str
) -> None:
    lacking = command(gone, *words)
    assert lacking.returncode == 5
    assert lacking.stderr.endswith(f"pip install 'parked[{extra}]'\n")
    assert lacking.stderr.count("\n") == 1


def test_an_interrupt_from_before_it_could_be_taken_ends_it_without_a_traceback() -> None:
    env = {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    ended = commands.interrupted([sys.executable, "-P", "-m", "loadtest", "-c", "10"], env)
    assert ended == (-signal.SIGINT, "")
