"""`pip install .`: what is built, and what the commands do in an environment that has nothing else.

The environment is a real one, made by venv and pip from the registry or pip's cache: about 15 s. It is left
without the extra `plots`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
#: Seconds that one pip call may take on a slow registry.
INSTALL_S = 100.0


def clean_environment() -> dict[str, str]:
    """Nothing of the checkout's, and nothing of this process', may help."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "GEVENT"))}


def run(*command: str | Path, cwd: Path, timeout: float = 60.0) -> str:
    """Standard output of a command that succeeds."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel, made from the source distribution, which is made from the checkout."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=CHECKOUT)
    (sdist,) = folder.glob("*.tar.gz")
    run("tar", "-xzf", sdist, cwd=folder)  # Python 3.11.2, Debian's, has no tarfile filters yet
    source = folder / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh environment with the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    (wheel,) = built.glob("*.whl")
    pip = (folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, wheel, cwd=folder, timeout=INSTALL_S)
    return folder / "bin"


def test_the_wheel_has_every_file_of_the_library_and_no_other_name(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    tracked = run("git", "ls-files", "parked", cwd=CHECKOUT).split()
    assert any(name.endswith(".js") for name in tracked)
    with zipfile.ZipFile(wheel) as archive:
        files = [
            name for name in archive.namelist() if ".d" not in name.partition("/")[0]
        ]  # .dist-info, .data
        assert set(files) == {*tracked, "parked/demo/wsgi.py", "parked/demo/keepalive.py"}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        assert f"Name: {PROJECT['name']}\n" in archive.read(metadata).decode()
    version = re.search(
        r'^__version__ = "(.+)"$', (CHECKOUT / "parked/__init__.py").read_text(), re.MULTILINE
    )
    assert version
    assert wheel.name.split("-")[1] == version[1]


def test_what_a_checkout_pins_is_what_an_installation_accepts() -> None:
    lines = (CHECKOUT / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    accepted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["plots"]
    ranges = {requirement.name: requirement.specifier for requirement in map(Requirement, accepted)}
    assert ranges.keys() == pinned.keys()
    for name, version in pinned.items():
        assert ranges[name].contains(version), name


def test_a_load_test_starts_the_server_and_leaves_its_results_where_the_user_is(
    installed: Path, tmp_path: Path
) -> None:
    # A package of the same name that lies here is somebody else's.
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text("raise SystemExit('the wrong app')")
    ports = free_ports(2)
    output = run(
        *(installed / "parked-loadtest", "-c", "200", "--hold", "2s", "--think", "1"),
        *("--host", f"http://127.0.0.1:{ports[0]}", "--master-port", str(ports[1])),
        cwd=tmp_path,
    )
    (folder,) = (tmp_path / "results").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"] == "pass", output
    assert summary["min_connections_in_hold"] == 200
    assert summary["command"].startswith("parked-loadtest -c 200 ")
    assert "uPlot" in (folder / "index.html").read_text()
    # matplotlib is an extra: nothing fails without it, and the output says what is missing and how to get it.
    assert not list(folder.glob("*.png"))
    (line,) = (line for line in output.splitlines() if line.startswith("plots "))
    assert f"pip install matplotlib, then python -m parked.loadtest.report.report {folder}" in line


def test_the_server_serves_an_application_of_the_users_directory_and_reloads(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "hello.py").write_text(
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '5')])\n"
        "    return [b'hello']\n"
    )
    command = [installed / "parked-server", "--app", "hello:application", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            for signal_before in (None, signal.SIGHUP):
                if signal_before:
                    server.send_signal(signal_before)
                line = server.stdout.readline()
                found = re.search(r"http://127\.0\.0\.1:(\d+) ", line)
                assert found, line
                with socket.create_connection(("127.0.0.1", int(found[1])), timeout=15) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert client.makefile("rb").read().endswith(b"\r\n\r\nhello")
            server.terminate()
            assert server.wait(20) == 0
        finally:
            server.kill()


def test_help_and_messages_name_the_installed_command(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "parked-loadtest", "--help", cwd=tmp_path).startswith("usage: parked-loadtest ")
    assert run(installed / "parked-server", "--help", cwd=tmp_path).startswith("usage: parked-server ")
    wrong = subprocess.run(
        [installed / "parked-server", "--app", "app:application"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.stderr.startswith("parked-server: cannot import app:application: ")
    assert wrong.stderr.count("\n") == 1


def test_the_scripts_for_the_kernel_come_along(installed: Path, tmp_path: Path) -> None:
    check = installed.parent / "share/parked/sysconfig/check"
    assert run(check, "--help", cwd=tmp_path).startswith("usage: sysconfig/check ")
    assert (installed.parent / "share/parked/systemd/parked-server.service").is_file()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
