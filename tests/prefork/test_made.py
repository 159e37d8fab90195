from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parked.prefork.identity import IdentityError
from parked.prefork.made import MadeFiles, is_device
from tests.support import CHECKOUT

OWN = f"{os.getpid()}\n"


@pytest.fixture
def made() -> Iterator[MadeFiles]:
    files = MadeFiles([])
    yield files
    files.remove()
    if files.pid_fd >= 0:
        os.close(files.pid_fd)


def test_a_pid_file_takes_the_place_of_a_link_and_never_follows_it(tmp_path: Path, made: MadeFiles) -> None:
    secret, file = tmp_path / "secret", tmp_path / "server.pid"
    secret.write_text("keep")
    file.symlink_to(secret)
    made.write_pid(str(file))
    assert secret.read_text() == "keep"
    assert not file.is_symlink()
    assert file.read_text() == OWN


@pytest.mark.parametrize("text", ["1\n", "", "nonsense", "-5", "\u0661", "9" * 100])
def test_whatever_a_dead_server_or_a_stranger_wrote_is_replaced(
    text: str, tmp_path: Path, made: MadeFiles
) -> None:
    """Process 1 lives, but it is no server of ours."""
    file = tmp_path / "server.pid"
    file.write_text(text, "utf-8")
    made.write_pid(str(file))
    assert file.read_text() == OWN
    made.remove()
    assert not file.exists()


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path, made: MadeFiles) -> None:
    file = tmp_path / "server.pid"
    os.mkfifo(file)
    made.write_pid(str(file))
    assert file.read_text() == OWN


def test_a_folder_in_its_place_is_an_error_in_words(tmp_path: Path, made: MadeFiles) -> None:
    (tmp_path / "server.pid").mkdir()
    with pytest.raises(IdentityError, match=r"cannot write .*server.pid: Is a directory"):
        made.write_pid(str(tmp_path / "server.pid"))
    assert [path.name for path in tmp_path.iterdir()] == ["server.pid"]


def test_no_device_is_replaced(tmp_path: Path, made: MadeFiles) -> None:
    assert all(map(is_device, ("/dev/null", "/dev/stdout", "/dev/../dev//null")))
    file = tmp_path / "server.pid"
    assert not is_device(str(file))
    try:
        os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make a device")
    with pytest.raises(IdentityError, match=r"cannot write .*: it would take the place of a device"):
        made.write_pid(str(file))
    assert file.is_char_device()


def test_only_who_may_write_a_pid_file_can_say_that_its_server_runs(tmp_path: Path, made: MadeFiles) -> None:
    """flock(2) would do for anybody who may read it; ours is not of that kind."""
    file = tmp_path / "server.pid"
    file.write_text("1\n")
    code = f"import fcntl, time; f = open({str(file)!r}); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); "
    with subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)"], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            made.write_pid(str(file))
        finally:
            holder.kill()
    assert file.read_text() == OWN


def test_a_file_that_has_taken_the_place_of_ours_is_not_given_away(tmp_path: Path, made: MadeFiles) -> None:
    file, other = tmp_path / "socket", tmp_path / "other"
    file.touch()
    other.touch()
    made.add(str(file))
    made.give(os.getuid(), os.getgid())
    file.unlink()
    file.hardlink_to(other)
    with pytest.raises(IdentityError, match=r"cannot give .*socket to user"):
        made.give(os.getuid(), os.getgid())


def test_a_pid_file_stays_locked_over_exec(tmp_path: Path, made: MadeFiles) -> None:
    """That is how a reload goes on (`parked.prefork.handover`)."""
    file = tmp_path / "server.pid"
    code = f"""
import os, sys
from parked.prefork.made import MadeFiles
files = MadeFiles([])
files.write_pid({str(file)!r})
os.set_inheritable(files.pid_fd, True)
os.execv(sys.executable, [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"])
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=CHECKOUT) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            with pytest.raises(IdentityError, match=f"process {holder.pid} of .* is running"):
                made.write_pid(str(file))
        finally:
            holder.kill()
