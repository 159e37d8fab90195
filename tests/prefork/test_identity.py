"""Unix sockets, users and files: with the right owner while they are there, and gone afterwards."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gevent
import psutil
import pytest

from parked.prefork import settings
from parked.prefork.identity import IdentityError, find
from tests.support import CHECKOUT, PATIENCE_S, eventually, run_app

#: What an application sees of itself.
APP = """
import json, os

def app(environ, start_response):
    start_response("200 OK", [])
    names = ("SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR")
    found = {name: environ.get(name) for name in names}
    found |= {name: os.environ.get(name) for name in ("HOME", "USER")}
    return [json.dumps(found | {"groups": os.getgroups(), "uid": os.getuid(), "gid": os.getgid()}).encode()]
"""

#: Where gevent is, for a Python that others may read; the one that runs the tests may be in root's folder.
PACKAGES = str(Path(gevent.__file__).parents[1])

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """One that everybody may read, with a copy of the code, and nobody but its owner change."""
    place = Path("/var/tmp") / f"parked-test-{os.getpid()}"  # pytest's own folders are their user's alone
    place.mkdir(mode=0o755)
    shutil.copytree(CHECKOUT / "parked", place / "parked", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "seen.py").write_text(APP)
    yield place
    shutil.rmtree(place)


@functools.cache
def python() -> str:
    """One of our version that nobody in particular may run."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in (sys.executable, f"/usr/bin/python{version}"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            environment = {"PYTHONPATH": PACKAGES}
            run = [name, "-c", "import gevent.monkey; gevent.monkey.patch_all()"]
            subprocess.run(run, user="nobody", env=environment, check=True, capture_output=True)
            return name
    pytest.skip("there is no Python that another user may run")


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [
            python() if os.geteuid() == 0 else sys.executable,
            "-m",
            "parked.prefork",
            "--app",
            "seen:app",
            "--workers",
            "1",
            *flags,
        ],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": f"{folder}:{PACKAGES}", "HOME": "/root", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "listening on" in line, line + process.stdout.read()
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


def ask(path: Path, host: str = "example.org:81") -> bytes:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(PATIENCE_S)
    connection.sock.connect(str(path))
    connection.request("GET", "/", headers={"Host": host})
    body = connection.getresponse().read()
    connection.close()
    return body


def test_a_unix_socket_has_the_mode_that_was_asked_for_and_a_name_for_the_application(folder: Path) -> None:
    path = folder / "sock"
    with serving(folder, "--bind", f"unix:{path}", "--socket-mode", "620"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o620
        seen = ask(path)
        assert b'"SERVER_NAME": "example.org", "SERVER_PORT": "81", "REMOTE_ADDR": ""' in seen
    assert not path.exists()


@needs_root
def test_a_user_that_may_not_change_the_folder_leaves_nothing_there_also_after_a_reload(folder: Path) -> None:
    path, pid = folder / "sock", folder / "pid"
    nobody = pwd.getpwnam("nobody")
    with serving(folder, "--bind", f"unix:{path}", "--pid", str(pid), "--user", "nobody") as server:
        assert path.stat().st_uid == pid.stat().st_uid == nobody.pw_uid
        seen = ask(path)
        assert f'"HOME": "{nobody.pw_dir}", "USER": "nobody"'.encode() in seen
        assert f'"uid": {nobody.pw_uid}, "gid": {nobody.pw_gid}'.encode() in seen
        server.send_signal(signal.SIGHUP)
        assert server.stdout is not None
        assert "listening on" in server.stdout.readline()
        assert int(pid.read_text()) == server.pid
        assert ask(path) == seen
        server.terminate()
        assert server.wait(PATIENCE_S) == 0
        assert "Traceback" not in server.stdout.read()
        assert not path.exists()
        assert not pid.exists()


@needs_root
def test_files_of_a_killed_supervisor_that_had_given_up_root_disappear_too(folder: Path) -> None:
    path = folder / "sock"
    with serving(folder, "--bind", f"unix:{path}", "--user", "nobody") as server:
        family = psutil.Process(server.pid).children()
        server.kill()
        server.wait()
        eventually(lambda: not path.exists())
        eventually(lambda: not any(process.is_running() for process in family))


@needs_root
def test_a_number_needs_no_entry_and_brings_no_group_of_roots(folder: Path) -> None:
    path = folder / "sock"
    with serving(folder, "--bind", f"unix:{path}", "--user", "54321", "--socket-owner", ":54322"):
        seen = ask(path)
        assert b'"HOME": "/", "USER": "54321", "groups": [54321], "uid": 54321, "gid": 54321' in seen
        assert (path.stat().st_uid, path.stat().st_gid) == (54321, 54322)


def test_a_socket_that_somebody_else_has_put_there_since_stays(folder: Path) -> None:
    path = folder / "sock"
    with serving(folder, "--bind", f"unix:{path}"):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


@pytest.mark.parametrize(
    ("flags", "code"),
    [(("--app", "no_such_module:app"), settings.EXIT_APP), (("--user", "no-such-user"), settings.EXIT_USAGE)],
)
def test_a_start_that_fails_leaves_nothing(tmp_path: Path, flags: tuple[str, str], code: int) -> None:
    path, pid = tmp_path / "sock", tmp_path / "pid"
    ended = run_app("--bind", f"unix:{path}", "--pid", str(pid), *flags)
    assert ended.returncode == code
    assert ended.stderr.count("\n") == 1
    assert not path.exists()
    assert not pid.exists()


def test_names_and_numbers_are_found_and_unknown_names_are_not() -> None:
    assert find("", "")[:2] == (None, None)
    assert find("root", "")[:2] == (0, 0)
    assert find("0", "7")[:2] == (0, 7)
    assert find("54321", "")[:2] == (54321, 54321)
    too_high = "4294967295", "99999999999", "9" * 5000
    unknown = ["no-such-user", "²", *too_high]
    for user, group in [*((name, "") for name in unknown), *(("", name) for name in unknown)]:
        with pytest.raises(IdentityError, match="unknown"):
            find(user, group)
