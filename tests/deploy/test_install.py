"""`pip install parked`: what is built, what it brings, and what the commands do where nothing else is.

The environments are real ones, made by uv from the registry or its cache; each takes a second, once the
packages were fetched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import commands
from tests.commands import free_ports

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
#: Seconds that one pip call may take on a slow registry.
INSTALL_S = 100.0
#: Where the programs of requirements-dev.txt are.
TOOLS = Path(sys.executable).parent


def clean_environment() -> dict[str, str]:
    """Nothing of the checkout's, and nothing of this process', may help."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "GEVENT"))}


def run(*command: str | Path, cwd: Path, timeout: float = 60.0) -> str:
    """Standard output of a command that succeeds."""
    done = commands.run(command, cwd=cwd, env=clean_environment(), timeout=timeout)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(target: str, source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    (made,) = folder.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", CHECKOUT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a registry's users get it: made from the source distribution, which is made from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run("tar", "-xzf", sdist, cwd=folder)  # Python 3.11.2, Debian's, has no tarfile filters yet
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


def environment(folder: Path, *packages: str) -> Path:
    """bin/ of a fresh environment with these packages and what they ask for."""
    run(TOOLS / "uv", "venv", "--quiet", "--python", sys.executable, folder, cwd=folder.parent)
    install = (TOOLS / "uv", "pip", "install", "--quiet", "--python", folder / "bin/python")
    run(*install, *packages, cwd=folder, timeout=INSTALL_S)
    return folder / "bin"


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install parked`"""
    return environment(tmp_path_factory.mktemp("bare") / "venv", str(wheel))


@pytest.fixture(scope="module")
def complete(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install 'parked[all]'`"""
    return environment(tmp_path_factory.mktemp("complete") / "venv", f"{wheel}[all]")


def contents(wheel: Path) -> dict[str, int]:
    """The files, and their checksums."""
    with zipfile.ZipFile(wheel) as archive:
        return {file.filename: file.CRC for file in archive.infolist()}


def test_the_wheel_has_every_file_of_the_library_and_no_other_name(wheel: Path) -> None:
    tracked = run("git", "ls-files", "parked", cwd=CHECKOUT).split()
    assert any(name.endswith(".js") for name in tracked)
    assert "parked/py.typed" in tracked
    metadata = ".dist-info", ".data"
    files = [name for name in contents(wheel) if not name.partition("/")[0].endswith(metadata)]
    demo = {
        f"parked/demo/{name}.py" for name in ("wsgi", "pending", "keepalive", "long_poll", "event_streams")
    }
    assert set(files) == {*tracked, *demo}
    version = re.search(
        r'^__version__ = "(.+)"$', (CHECKOUT / "parked/__init__.py").read_text(), re.MULTILINE
    )
    assert version
    assert wheel.name.split("-")[1] == version[1]
    assert f"\n## {version[1]}\n" in (CHECKOUT / "CHANGELOG.md").read_text()


def test_a_checkout_and_a_source_distribution_build_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert contents(build("wheel", CHECKOUT, tmp_path)) == contents(wheel)


def test_the_tests_of_a_source_distribution_need_no_committed_run(sdist: Path, tmp_path: Path) -> None:
    run("tar", "-xzf", sdist, cwd=tmp_path)
    folder = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert not (folder / "results/reference").exists()
    run(sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/loadtest/report", cwd=folder)
    run(sys.executable, "-m", "pytest", "-q", "tests/loadtest/plan/test_measured_run.py", cwd=folder)


def test_the_checkers_of_packages_find_nothing(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    run(TOOLS / "twine", "check", "--strict", sdist, wheel, cwd=tmp_path)
    run(TOOLS / "check-wheel-contents", wheel, cwd=CHECKOUT)


def test_the_server_alone_brings_few_packages(bare: Path, tmp_path: Path) -> None:
    listed = json.loads(
        run(TOOLS / "uv", "pip", "list", "--format", "json", "--python", bare / "python", cwd=tmp_path)
    )
    names = {package["name"] for package in listed}
    assert {"parked", "gevent", "greenlet"} <= names
    assert len(names) <= 8, names


def test_the_servers_face_imports_nothing_but_gevent(bare: Path, complete: Path, tmp_path: Path) -> None:
    code = "import sys; old = {*sys.modules}; import parked.server; print(*{*sys.modules} - old)"
    for installed in (bare, complete):
        names = run(installed / "python", "-c", code, cwd=tmp_path).split()
        others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
        assert {name for name in others if "cython" not in name} == {"parked", "gevent", "greenlet", "zope"}


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("parked-loadtest -c 10", "loadtest"),
        ("parked-server --bind 127.0.0.1:0", "demo"),
        (
            "parked-server --bind 127.0.0.1:0 --app wsgiref.simple_server:demo_app --metrics 127.0.0.1:0",
            "metrics",
        ),
    ],
)
def test_a_command_without_its_extra_says_how_to_get_it(
    bare: Path, tmp_path: Path, command: str, extra: str
) -> None:
    name, *arguments = command.split()
    done = refused(bare / name, *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith(f"{name}: ")
    assert done.stderr.endswith(f": pip install 'parked[{extra}]'\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("face", "extra"),
    [("parked.user", "loadtest"), ("parked.gunicorn", "gunicorn")],
    ids=("user", "gunicorn"),
)
def test_a_face_without_its_extra_says_how_to_get_it(
    bare: Path, tmp_path: Path, face: str, extra: str
) -> None:
    said = refused(bare / "python", "-c", f"import {face}", cwd=tmp_path).stderr.splitlines()[-1]
    assert said.startswith(f"ModuleNotFoundError: {face} needs "), said
    assert said.endswith(f": pip install 'parked[{extra}]'"), said


SHOP = """\
from flask import Flask
from parked.server import KeepAliveWSGIServer
from loadtest import PRICE

app = Flask(__name__)

@app.get("/")
def price():
    return f"{PRICE} {KeepAliveWSGIServer.__module__}"
"""


def test_a_project_whose_own_packages_are_app_and_loadtest_is_served(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    installed = environment(tmp_path_factory.mktemp("flask") / "venv", str(wheel), "flask")
    for name, code in {"app": SHOP, "loadtest": "PRICE = 7\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    with server(installed, "app:app", cwd=tmp_path) as process:
        assert body(next_address(process)) == b"7 parked.server.server"


def test_what_a_checkout_pins_is_what_an_installation_accepts() -> None:
    lines = (CHECKOUT / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    everything = Requirement(*extras.pop("all"))
    assert everything.extras == extras.keys()
    accepted = [*map(Requirement, sum(extras.values(), PROJECT["dependencies"]))]
    assert {requirement.name for requirement in accepted} == pinned.keys()
    for requirement in accepted:
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_what_a_checkout_installs_is_locked_with_hashes() -> None:
    pins = [
        line for line in (CHECKOUT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"
    ]
    lock = (CHECKOUT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    for pin in pins:
        name, _, version = pin.partition("==")
        assert locked[name.replace("_", "-")] == version
    for entry in re.split(r"^(?=[a-z0-9-]+==)", lock, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry


def test_the_table_of_versions_is_that_of_the_ranges_and_pins() -> None:
    table = (CHECKOUT / "docs/dependencies.md").read_text().split("| | Python |")[1].splitlines()
    names = [name.strip() for name in table[0].strip("|").split("|")]
    rows = {line.split("|")[1].strip(): line.strip("|").split("|")[2:] for line in table[2:6]}
    pinned = dict(line.split("==") for line in (CHECKOUT / "requirements.txt").read_text().splitlines()[1:])
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    least = {
        requirement.name: next(part.version for part in requirement.specifier if part.operator == ">=")
        for requirement in map(Requirement, sum(extras.values(), PROJECT["dependencies"]))
        if requirement.specifier
    }
    for number, name in enumerate(names):
        oldest, now = rows["server"][number].strip() or rows["oldest"][number].strip(), rows["pinned"][number]
        assert now.strip() == pinned[name]
        assert Version(oldest) == Version(least[name]), name


def test_a_load_test_starts_the_server_and_leaves_its_results_where_the_user_is(
    complete: Path, tmp_path: Path
) -> None:
    # A package of the same name that lies here is somebody else's.
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text("raise SystemExit('the wrong app')")
    ports = free_ports(2)
    command = [complete / "parked-loadtest", "-c", "200", "--hold", "2s", "--think", "1"]
    command += ["--host", f"http://127.0.0.1:{ports[0]}", "--start-server", "--master-port", str(ports[1])]
    done = commands.run(command, cwd=tmp_path, env=clean_environment(), timeout=150)
    (folder,) = (path for path in (tmp_path / "results").iterdir() if path.name != "latest")
    summary = json.loads((folder / "summary.json").read_text())
    # How fast this machine is just now is another matter.
    assert [reason for reason in summary["reasons"] if not reason.endswith(" offered")] == [], done
    assert done.returncode == bool(summary["reasons"])
    assert summary["min_connections_in_hold"] == 200
    assert summary["command"].startswith("parked-loadtest -c 200 ")
    assert "uPlot" in (folder / "index.html").read_text()
    assert len(list(folder.glob("*.png"))) == 5


@contextlib.contextmanager
def server(installed: Path, app: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [installed / "parked-server", "--app", app, "--bind", "127.0.0.1:0"],
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def next_address(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Where it says, in its next line, that it listens."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+) ", line)
    assert found, line
    return "127.0.0.1", int(found[1])


def body(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, timeout=15) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return client.makefile("rb").read().partition(b"\r\n\r\n")[2]


def test_the_server_serves_an_application_of_the_users_directory_and_reloads(
    bare: Path, tmp_path: Path
) -> None:
    (tmp_path / "hello.py").write_text(
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '5')])\n"
        "    return [b'hello']\n"
    )
    with server(bare, "hello:application", cwd=tmp_path) as process:
        assert body(next_address(process)) == b"hello"
        process.send_signal(signal.SIGHUP)
        assert body(next_address(process)) == b"hello"


def refused(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run(command, cwd=cwd, env=clean_environment(), timeout=60)


def test_an_editable_installation_serves_the_demonstration(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`pip install -e '.[demo]'`: the commands are installed, the code lies in the checkout."""
    folder = tmp_path_factory.mktemp("editable")
    installed = environment(folder / "venv", "--editable", f"{CHECKOUT}[demo]")
    with server(installed, "", cwd=tmp_path) as process:
        assert body(next_address(process))


def test_help_and_messages_name_the_installed_command(complete: Path, tmp_path: Path) -> None:
    assert run(complete / "parked-loadtest", "--help", cwd=tmp_path).startswith("usage: parked-loadtest ")
    assert run(complete / "parked-server", "--help", cwd=tmp_path).startswith("usage: parked-server ")
    shown = " ".join(run(complete / "parked-loadtest", "--help", cwd=tmp_path).split())
    assert "run_test" not in shown
    assert "run_server" not in shown
    named = re.search(r"a locustfile \(default: (.+?)\)", shown)
    assert named
    assert Path(named[1].replace(" ", "")).is_file()
    wrong = refused(complete / "parked-server", "--app", "app:application", cwd=tmp_path)
    assert wrong.stderr.startswith("parked-server: cannot import app:application: ")
    assert wrong.stderr.count("\n") == 1


def test_the_scripts_for_the_kernel_come_along(bare: Path, tmp_path: Path) -> None:
    check = bare.parent / "share/parked/sysconfig/check"
    assert run(check, "--help", cwd=tmp_path).startswith("usage: sysconfig/check ")
    assert (bare.parent / "share/parked/systemd/parked-server.service").is_file()
