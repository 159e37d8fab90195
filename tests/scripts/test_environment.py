"""scripts/environment, scripts/run and tests/run in a copied checkout, on a PATH of what they may use.

A stub in place of uv makes an environment without packages, in no time and without network;
one test does it with the real venv and pip.
"""

from __future__ import annotations

import ensurepip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
CANNOT_BE_MADE = 69
#: All that the scripts may need from the system, besides a Python.
TOOLS = (
    *(
        "sh",
        "awk",
        "cat",
        "cksum",
        "cut",
        "date",
        "dirname",
        "env",
        "find",
        "flock",
        "grep",
        "mkdir",
        "mktemp",
        "tr",
    ),
    *("printf", "readlink", "rm", "rmdir", "sleep", "tail", "timeout", "xargs"),
)

STUB_UV = """#!/bin/sh
set -eu
echo "$@" >>"{log}"
[ -z "${{UV_FAILS:-}}" ] || {{ echo "error: no such host" >&2; exit 7; }}
case $1 in
venv)
    mkdir -p "$5/bin"
    {ln} -s "$4" "$5/bin/python"
    echo "home = $(dirname "$4")" >"$5/pyvenv.cfg"
    ;;
pip) sleep "${{UV_TAKES_S:-0}}" ;;
esac
"""


class Copy:
    """A checkout in a directory of its own, with everything that a call of its scripts can see."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "check out"
        self.venv = self.path / ".venv"
        self.bin = folder / "bin"
        self.uv_log = folder / "uv.log"
        for directory in ("scripts", "tests", "app"):
            (self.path / directory).mkdir(parents=True)
        self.bin.mkdir()
        for script in ("run_server", "run_test", "scripts/environment", "scripts/run", "tests/run"):
            shutil.copy(CHECKOUT / script, self.path / script)
        (self.path / "requirements.txt").touch()
        for lock in ("requirements.lock", "scripts/pip.lock"):
            (self.path / lock).touch()
        (self.path / "requirements-dev.txt").write_text("-r requirements.txt\n")
        (self.path / "app/__init__.py").touch()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.stub("python3", f'exec "{sys.executable}" "$@"')
        (self.bin / "uv").write_text(STUB_UV.format(log=self.uv_log, ln=shutil.which("ln")))
        (self.bin / "uv").chmod(0o755)

    def stub(self, name: str, body: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def uv_calls(self, what: str) -> int:
        lines = self.uv_log.read_text().splitlines() if self.uv_log.exists() else []
        return sum(line.startswith(what) for line in lines)

    def popen(self, *command: str, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=cwd or self.path,
            env={"PATH": str(self.bin), "HOME": str(self.path)} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.popen(*command, cwd=cwd, **env)
        try:
            out, err = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def environment(
        self, requirements: str = "requirements.txt", **env: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.path / "scripts/environment"), requirements, **env)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def assert_made(result: subprocess.CompletedProcess[str], venv: Path) -> None:
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{venv}/bin/python\n"
    assert subprocess.run([venv / "bin/python", "-c", ""], check=False).returncode == 0


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one line said by a call that could not make the environment."""
    assert result.returncode == CANNOT_BE_MADE, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_first_use_makes_it_and_says_so_in_one_line_and_the_second_says_nothing(copy: Copy) -> None:
    first = copy.environment()
    assert_made(first, copy.venv)
    (line,) = first.stderr.splitlines()
    assert line.startswith(f"parked: making {copy.venv} with uv ... done in ")

    second = copy.environment()
    assert_made(second, copy.venv)
    assert second.stderr == ""
    assert copy.uv_calls("pip") == 1


def test_real_venv_and_pip_make_it_and_a_failing_pip_is_told_with_its_exit_code_and_log(copy: Copy) -> None:
    (copy.bin / "uv").unlink()
    # A newer Python without venv is passed over.
    python_that_says(copy, "python3.14", "sys.version_info = (3, 14, 0); sys.modules['ensurepip'] = None")
    copy.stub("python3", f'[ "$1" = -c ] && exec "{sys.executable}" "$@"; exit 98')
    # The pip that Python has with it takes the place of the one in the registry.
    wheels = Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).with_name("_bundled"))
    (pip,) = wheels.glob("pip-*.whl")
    locked = f"pip @ {pip.as_uri()} --hash=sha256:{hashlib.sha256(pip.read_bytes()).hexdigest()}\n"
    (copy.path / "scripts/pip.lock").write_text(locked)
    first = copy.environment()
    assert_made(first, copy.venv)
    assert "with pip ... done in " in first.stderr

    locked = f"no-such-distribution==1 --hash=sha256:{'0' * 64}\n"
    (copy.path / "requirements.lock").write_text(locked)
    line = refusal(copy.environment(PIP_NO_INDEX="1"))
    assert "pip ended with 1: ERROR: No matching distribution found" in line
    log = copy.path / ".venv.log"
    assert str(log) in line
    assert "no-such-distribution" in log.read_text()


def test_the_pip_that_comes_with_python_is_taken_where_there_is_no_other(copy: Copy) -> None:
    (copy.bin / "uv").unlink()
    calls, brought = copy.path / "calls", copy.path / "brought"
    inside = copy.stub(
        "inside",
        f'echo "$*" >>"{calls}"\n'
        f'case $* in "-c import pip") [ -e "{brought}" ] ;; "-m ensurepip") : >"{brought}" ;; esac',
    )
    base = copy.stub(
        "base", f'[ "$2" = venv ] && mkdir -p "$4/bin" && {shutil.which("ln")} -s "{inside}" "$4/bin/python"'
    )
    python_that_says(copy, "python3", f"sys._base_executable = {str(base)!r}")
    assert_made(copy.environment(), copy.venv)
    said = calls.read_text().splitlines()
    assert "-m ensurepip" in said
    installed = [line.rpartition("/")[2] for line in said if "--require-hashes" in line]
    assert installed == ["pip.lock", "requirements.lock"]


@pytest.mark.parametrize(
    ("requirements", "told", "compiled"),
    [("requirements.txt", "", 0), ("requirements.txt", "1", 1), ("requirements-dev.txt", "", 1)],
)
def test_what_starts_import_is_compiled_once_where_python_may_not_keep_it_and_for_the_tests(
    copy: Copy, requirements: str, told: str, compiled: int
) -> None:
    (copy.path / "app/wsgi.py").touch()
    assert_made(copy.environment(requirements, PYTHONDONTWRITEBYTECODE=told), copy.venv)
    assert len(list((copy.path / "app").rglob("wsgi.*.pyc"))) == compiled


def test_changed_requirements_refresh_it_in_place(copy: Copy) -> None:
    copy.environment()
    (copy.path / "requirements.txt").write_text("# changed\n")
    result = copy.environment()
    assert_made(result, copy.venv)
    assert result.stderr.startswith("parked: refreshing ")
    assert (copy.uv_calls("venv"), copy.uv_calls("pip")) == (1, 2)
    assert copy.environment().stderr == ""


def test_the_tools_for_tests_share_it_and_running_the_server_does_not_undo_them(copy: Copy) -> None:
    copy.environment()
    assert copy.environment("requirements-dev.txt").stderr.startswith("parked: refreshing ")
    assert copy.environment().stderr == ""
    assert copy.environment("requirements-dev.txt").stderr == ""
    assert copy.uv_calls("pip") == 3  # what is locked, again, and the tools


def test_changed_requirements_are_seen_through_those_of_the_tests(copy: Copy) -> None:
    copy.environment("requirements-dev.txt")
    (copy.path / "requirements.txt").write_text("# changed\n")
    assert copy.environment("requirements-dev.txt").stderr.startswith("parked: refreshing ")
    assert copy.environment().stderr == ""


def test_another_python_asked_for_makes_it_anew(copy: Copy) -> None:
    copy.environment()
    other = str(copy.stub("another-python", f'exec "{sys.executable}" "$@"'))
    assert "making" in copy.environment(PYTHON=other).stderr
    assert copy.environment(PYTHON=other).stderr == ""
    assert copy.environment().stderr == ""


def test_a_moved_checkout_makes_it_anew(copy: Copy) -> None:
    copy.environment()
    moved = copy.path.with_name("moved")
    copy.path.rename(moved)
    result = copy.run(str(moved / "scripts/environment"), "requirements.txt", cwd=moved)
    assert_made(result, moved / ".venv")
    assert "making" in result.stderr


@pytest.mark.parametrize("damage", ["no stamp", "dangling python", "only a directory"])
def test_a_half_made_environment_is_mended_by_the_next_call(copy: Copy, damage: str) -> None:
    copy.environment()
    if damage == "no stamp":
        (copy.venv / ".installed-requirements.txt").unlink()
    elif damage == "dangling python":
        (copy.venv / "bin/python").unlink()
        (copy.venv / "bin/python").symlink_to("/nonexistent/python3")
    else:
        shutil.rmtree(copy.venv)
        (copy.venv / "bin").mkdir(parents=True)
    assert_made(copy.environment(), copy.venv)


def test_a_failed_install_is_one_line_and_the_next_call_tries_again(copy: Copy) -> None:
    line = refusal(copy.environment(UV_FAILS="1"))
    assert "uv ended with 7: error: no such host" in line
    assert_made(copy.environment(), copy.venv)


@pytest.mark.parametrize("lock", ["flock", "mkdir"])
def test_two_first_calls_at_once_make_it_once(copy: Copy, lock: str) -> None:
    if lock == "mkdir":
        (copy.bin / "flock").unlink()
    command = str(copy.path / "scripts/environment")
    calls = [copy.popen(command, "requirements.txt", UV_TAKES_S="0.5") for _ in range(3)]
    for call in calls:
        out, err = call.communicate(timeout=60)
        assert call.returncode == 0, err
        assert out == f"{copy.venv}/bin/python\n"
    assert copy.uv_calls("pip") == 1
    assert not (copy.path / ".venv.lock.d").exists()


def test_a_lock_whose_holder_was_killed_does_not_stop_the_next_call(copy: Copy) -> None:
    (copy.bin / "flock").unlink()
    ended = subprocess.Popen(["true"])
    ended.wait()
    (copy.path / ".venv.lock.d").mkdir()
    (copy.path / ".venv.lock.d/pid").write_text(f"{ended.pid}\n")
    assert_made(copy.environment(), copy.venv)


def python_that_says(copy: Copy, name: str, lie: str) -> Path:
    """A Python on the PATH that believes LIE, a statement run before what -c gives it."""
    return copy.stub(name, f'[ "$1" = -c ] || exit 99\nexec "{sys.executable}" -c "import sys; {lie}\n$2"')


def test_a_python_that_is_too_old_is_named_in_one_line(copy: Copy) -> None:
    python_that_says(copy, "python3", "sys.version_info = (3, 9, 2)")
    line = refusal(copy.environment())
    assert line.startswith("parked: needs Python >= 3.11, found none (")
    assert line.endswith(" is 3.9)")


def test_no_python_at_all_is_one_line(copy: Copy) -> None:
    (copy.bin / "python3").unlink()
    assert refusal(copy.environment()) == "parked: needs Python >= 3.11, found none"
    assert "as PYTHON=nothing" in refusal(copy.environment(PYTHON="nothing"))


def test_a_missing_venv_module_is_one_line_with_the_package_to_install(copy: Copy) -> None:
    (copy.bin / "uv").unlink()
    python_that_says(copy, "python3", "sys.version_info = (3, 12, 1); sys.modules['ensurepip'] = None")
    assert "has no venv module (Debian, Ubuntu: apt install python3.12-venv)" in refusal(copy.environment())


def test_a_place_that_cannot_be_written_is_one_line_that_names_the_way_out(copy: Copy) -> None:
    (copy.path / "file").touch()  # works for root too, who may write to a read-only directory
    line = refusal(copy.environment(PARKED_VENV=str(copy.path / "file/venv")))
    assert "can't write" in line
    assert "PARKED_VENV" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only directory")
def test_a_read_only_checkout_is_one_line_that_names_the_way_out(copy: Copy) -> None:
    copy.path.chmod(0o555)
    try:
        assert "PARKED_VENV" in refusal(copy.environment())
    finally:
        copy.path.chmod(0o755)


def test_it_can_be_kept_elsewhere_relative_to_the_caller(copy: Copy, tmp_path: Path) -> None:
    command = str(copy.path / "scripts/environment")
    result = copy.run(command, "requirements.txt", cwd=tmp_path, PARKED_VENV="else/where")
    assert_made(result, tmp_path / "else/where")
    assert not copy.venv.exists()


def test_a_directory_named_by_mistake_is_not_emptied(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    line = refusal(copy.environment(PARKED_VENV=str(tmp_path / "precious")))
    assert "is not a virtual environment" in line
    assert (tmp_path / "precious/file").exists()


SHOW = """
import os, signal, sys
print(os.getcwd(), sys.argv[1:], os.environ["GEVENT_TRACK_GREENLET_TREE"], os.getpid(), flush=True)
signal.pause() if "wait" in sys.argv else None
"""


def test_run_server_keeps_directory_and_arguments_also_through_a_link(copy: Copy, tmp_path: Path) -> None:
    (copy.path / "app/__main__.py").write_text(SHOW)
    (tmp_path / "link").symlink_to(copy.path / "run_server")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "app").mkdir(parents=True)
    (elsewhere / "app/__init__.py").touch()
    (elsewhere / "app/__main__.py").write_text("raise SystemExit('the wrong app')")
    result = copy.run(str(tmp_path / "link"), "--bind", "a b", cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{elsewhere} ['--bind', 'a b'] 0 ")


def test_run_server_becomes_the_program_so_that_signals_reach_it(copy: Copy) -> None:
    (copy.path / "app/__main__.py").write_text(SHOW)
    process = copy.popen(str(copy.path / "run_server"), "wait")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert int(line.split()[-1]) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("holds", [True, False])
def test_an_interrupt_waits_while_python_itself_starts_where_env_can_hold_it_back(
    copy: Copy, holds: bool
) -> None:
    mask = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    (copy.path / "app/__main__.py").write_text(mask)
    if not holds:  # busybox, or coreutils before 8.31
        (copy.bin / "env").unlink()
        copy.stub("env", 'echo "env: unrecognized option" >&2; exit 1')
    result = copy.run(str(copy.path / "run_server"))
    assert (result.returncode, "SIGINT" in result.stdout) == (0, holds), result


@pytest.fixture
def checks(copy: Copy) -> Copy:
    """A copy whose environment holds stubs of the tools, each of which says that it ran."""
    assert copy.environment("requirements-dev.txt").returncode == 0
    for tool in ("ruff", "mypy", "lint-imports", "shellcheck"):
        path = copy.venv / "bin" / tool
        path.write_text(f'#!/bin/sh\necho "{tool} $*"\n[ "${{FAILING:-}}" != {tool} ]\n')
        path.chmod(0o755)
    (copy.path / "pytest.py").write_text(
        "import os, sys\n"
        "failing = os.environ.get('FAILING') in sys.argv\n"
        "ours = ('--share=', '--basetemp=')\n"
        "print('pytest', [word for word in sys.argv[1:] if not word.startswith(ours)])\n"
        "print('1 failed, 2 passed' if failing else '2 passed, 1 skipped, 2 warnings', 'in 1s (0:01)')\n"
        "sys.exit(failing)\n"
    )
    return copy


def test_all_checks_run_and_pass(checks: Copy) -> None:
    result = checks.run(str(checks.path / "tests/run"))
    assert result.returncode == 0, result.stdout
    for line in (
        "ruff format --check",
        "ruff check",
        "mypy --strict parked app loadtest",
        "lint-imports",
        "pytest ['--ignore', 'tests/loadtest']",
        "pytest ['tests/loadtest']",
        "== 20 passed, 10 skipped, 20 warnings in ",
    ):
        assert line in result.stdout
    assert result.stdout.endswith("all passed\n")


@pytest.mark.parametrize("tool", ["ruff", "mypy", "lint-imports", "shellcheck"])
def test_one_failing_check_fails_all_but_stops_none(checks: Copy, tool: str) -> None:
    result = checks.run(str(checks.path / "tests/run"), FAILING=tool)
    assert result.returncode == 1
    assert ": FAILED (" in result.stdout
    assert "\nFAILED: " in result.stdout
    assert "-- tests: passed" in result.stdout


def test_a_failure_of_one_process_is_told_and_counted(checks: Copy) -> None:
    result = checks.run(str(checks.path / "tests/run"), FAILING="--ignore")
    assert result.returncode == 1
    assert "-- tests: FAILED (" in result.stdout
    assert "== 5 failed, 20 passed, 5 skipped, 10 warnings in " in result.stdout
    assert result.stdout.endswith("\nFAILED: tests\n")


def test_python_scripts_are_found_by_their_first_line(checks: Copy) -> None:
    (checks.path / "app/drill").write_text("#!/usr/bin/env python3\n")
    (checks.path / "app/other").write_text("#!/bin/sh\n#!/usr/bin/env python3\n")
    result = checks.run(str(checks.path / "tests/run"))
    for line in ("ruff format --check --quiet . ./app/drill", "ruff check --quiet . ./app/drill"):
        assert line in result.stdout.splitlines()


def test_shell_scripts_are_found_by_their_first_line(checks: Copy) -> None:
    (checks.path / "app/new").write_text("#!/usr/bin/env bash\n")
    (checks.path / "app/table").write_text("# shellcheck shell=sh\n")
    (checks.path / "app/other").write_text("#!/usr/bin/python3\n#!/bin/sh\n")
    result = checks.run(str(checks.path / "tests/run"))
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("shellcheck "))
    assert set(line.split()[2:]) == {
        "./app/new",
        "./app/table",
        *(
            f"./{script}"
            for script in ("run_server", "run_test", "scripts/environment", "scripts/run", "tests/run")
        ),
    }


def test_arguments_go_to_pytest_alone(checks: Copy, tmp_path: Path) -> None:
    result = checks.run(str(checks.path / "tests/run"), "tests/app", "-k", "idle", cwd=tmp_path)
    assert result.stdout.startswith("pytest ['tests/app', '-k', 'idle']\n")


def test_an_up_to_date_environment_costs_a_start_next_to_nothing(copy: Copy) -> None:
    copy.environment()
    best_s = 1.0
    for _ in range(10):
        began = time.monotonic()
        copy.environment()
        best_s = min(best_s, time.monotonic() - began)
    assert best_s < 0.1  # about 10 ms; starting one Python would be 20 ms, pip 300 ms
