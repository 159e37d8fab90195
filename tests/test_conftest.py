"""tests/conftest.py: a suite that several processes share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

#: Plug-ins take longer to load than all that is done here.
ENVIRONMENT = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

FILE = """
import time
import pytest

@pytest.fixture(scope="module", autouse=True)
def ending():
    yield
    print("ended", __name__)

@pytest.mark.parametrize("number", range(4))
def test_a_little(number):
    time.sleep(0.02)
"""

FIXTURE = """
import pytest

@pytest.fixture
def above(): ...
"""


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


def test_two_processes_run_each_file_once_and_end_its_fixtures(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below/conftest.py").write_text(FIXTURE)
    for name in ("below/test_a.py", "test_b.py", "test_c.py"):
        (tmp_path / name).write_text(FILE)
    with (tmp_path / "below/test_a.py").open("a") as file:
        file.write("\ndef test_above(above): ...\n")
    (tmp_path / "share").mkdir()
    command = [sys.executable, "-m", "pytest", "-s", "--share", "share", "."]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    passed = re.findall(r"(\d+) passed", "".join(outputs))
    assert sum(map(int, passed)) == 13
    ended = re.findall(r"ended (\w+)", "".join(outputs))
    assert sorted(ended) == ["test_a", "test_b", "test_c"]
    assert (tmp_path / "share/done").exists()
    command[-2:] = ["share/below", "below"]  # which is asked for by itself elsewhere: not what is beside it
    (tmp_path / "share/below").mkdir()
    below = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert "5 passed" in below.stdout.splitlines()[-1]
    late = run(command, tmp_path)
    assert late.returncode == 0, late.stdout


def test_a_failure_ends_as_in_a_suite_that_is_not_shared(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_a.py").write_text(
        "def test_wrong():\n    assert False\n\ndef test_right():\n    pass\n"
    )
    command = [sys.executable, "-m", "pytest", "--share", ".", "."]
    done = run(command, tmp_path)
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    (tmp_path / "test_b.py").write_text("import nothing_of_this_name\n")
    done = run(command, tmp_path)
    assert done.returncode == 1
    assert "1 error in" in done.stdout.splitlines()[-1]
