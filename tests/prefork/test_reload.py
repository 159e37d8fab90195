"""A reload succeeds wholly or changes nothing: whatever is wrong with the new code, the old workers serve."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support import Client, ServerProcess, eventually

#: What a new version may do wrong, beside the import that fails: each of it dies only where a worker is.
BROKEN = {
    "after the fork": "import os\nos.register_at_fork(after_in_child=lambda: os._exit(0))",
    "as soon as it serves": "import os, gevent\nos.register_at_fork(after_in_child=lambda:\n"
    "    gevent.get_hub().loop.run_callback_threadsafe(os._exit, 9))",
    "by a signal": "import os\nos.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), 9))",
    "at the import": "raise ImportError('nothing there')",
    "at the import, all at once": "import os\nos._exit(0)",
}
#: What is nothing wrong, and no reason to wait for ever, neither in the trial nor in the end.
BUSY = """
import signal, threading, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
threading.Thread(target=time.sleep, args=(1000,)).start()
"""


def write(folder: Path, answer: str, broken: str = "") -> None:
    file = folder / "versioned.py"
    file.write_text(
        f"{broken}\ndef app(environ, start_response):\n    start_response('200 OK', [])\n"
        f"    return [b'{answer}']\n"
    )
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)


def get(server: ServerProcess) -> bytes:
    with Client(server.address) as client:
        return client.ask().body


def said(server: ServerProcess, text: str) -> str:
    """The next line of the server's output that has *text*."""
    assert server.process.stdout is not None
    while text not in (line := server.process.stdout.readline()):
        assert line, f"the server ended without {text!r}"
    return line


def test_new_code_that_no_worker_survives_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, "old")
    with ServerProcess("--app", "versioned:app", "--workers", "2", cwd=tmp_path) as server:
        workers = server.workers()
        for broken in BROKEN.values():
            write(tmp_path, "new", broken)
            server.signal(signal.SIGHUP)
            said(server, "not reloaded: ")
            assert server.workers() == workers
            assert get(server) == b"old"
        write(tmp_path, "newest", BUSY)
        server.signal(signal.SIGHUP)
        said(server, "listening on ")
        eventually(lambda: get(server) == b"newest")  # the old worker may answer once more
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == 0


def test_a_worker_that_could_not_open_its_log_changes_nothing(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    write(tmp_path, "old")
    flags = ("--app", "versioned:app", "--workers", "1", "--access-log", str(logs / "log"))
    with ServerProcess(*flags, cwd=tmp_path) as server:
        logs.rename(tmp_path / "elsewhere")
        write(tmp_path, "new")
        server.signal(signal.SIGHUP)
        assert "No such file or directory" in said(server, f"cannot open {logs}/log")
        said(server, "not reloaded: its worker does not become ready")
        assert get(server) == b"old"


def test_a_fault_that_only_the_next_image_meets_leaves_the_old_workers_at_work(tmp_path: Path) -> None:
    """The trial passes, as the code looks at its environment."""
    write(tmp_path, "old")
    with ServerProcess("--app", "versioned:app", "--workers", "1", cwd=tmp_path) as server:
        supervisor = server.process.pid
        workers = server.workers()
        write(tmp_path, "new", f"import os\nif os.getpid() == {supervisor}: raise ValueError('not here')")
        server.signal(signal.SIGHUP)
        said(server, "not here; trying again in 10 s, the old workers stay")
        assert get(server) == b"old"
        assert server.workers() == workers
        fault = tmp_path / "fault"
        fault.touch()
        dies = f"lambda: os.getppid() == {supervisor} and os.path.exists('fault') and os._exit(9)"
        write(tmp_path, "newer", f"import os\nos.register_at_fork(after_in_child={dies})")
        server.signal(signal.SIGHUP)
        said(server, "new workers died before they were ready; the old ones stay")
        assert get(server) == b"old"
        fault.unlink()
        said(server, "listening on ")
        eventually(lambda: get(server) == b"newer")  # the old worker may answer once more
        eventually(lambda: len(server.workers()) == 1)
        assert server.process.pid == supervisor


@pytest.mark.parametrize("wrong", ["idle-timeout = 'soon'\n", "nonsense = 1\n", "certfile = 'none'\n"])
def test_a_configuration_that_is_spoilt_after_the_trial_leaves_the_old_workers_at_work(
    tmp_path: Path, wrong: str
) -> None:
    file = tmp_path / "parked.toml"
    file.write_text("workers = 1\n")
    write(tmp_path, "old")
    with ServerProcess("--app", "versioned:app", "--config", str(file), cwd=tmp_path) as server:
        supervisor = server.process.pid
        workers = server.workers()
        write(tmp_path, "new", f"import pathlib\npathlib.Path({str(file)!r}).write_text({wrong!r})")
        server.signal(signal.SIGHUP)
        said(server, "; trying again in 10 s, the old workers stay")
        assert (get(server), server.workers()) == (b"old", workers)
        file.write_text("workers = 1\n")
        write(tmp_path, "newer")
        server.signal(signal.SIGHUP)
        said(server, "listening on ")
        eventually(lambda: get(server) == b"newer")  # the old worker may answer once more
        assert server.process.pid == supervisor
        write(tmp_path, "new", f"import pathlib\npathlib.Path({str(file)!r}).write_text({wrong!r})")
        server.signal(signal.SIGHUP)
        said(server, "; trying again in 10 s, the old workers stay")
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == 0


def test_a_hup_in_a_start_or_in_another_reload_is_not_forgotten(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nopen('imported', 'a').write('x')\ntime.sleep(0.3)\nfrom tests.apps import pid as app\n"
    )
    imported = tmp_path / "imported"
    with ServerProcess("--app", "slow:app", "--workers", "1", cwd=tmp_path) as server:
        server.signal(signal.SIGHUP)  # imported for the trial, and for the next image
        eventually(lambda: imported.stat().st_size == 2)
        server.signal(signal.SIGHUP)
        said(server, "listening on ")
        eventually(lambda: imported.stat().st_size == 4)  # tried once more, as the code may have changed
        before = get(server)
        server.signal(signal.SIGHUP)
        eventually(lambda: get(server) != before)


def test_an_import_that_takes_longer_than_the_trial_may_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, "old")
    flags = ("--app", "versioned:app", "--workers", "1", "--trial-timeout", "0.5")
    with ServerProcess(*flags, cwd=tmp_path) as server:
        write(tmp_path, "new", "import time\ntime.sleep(60)")
        server.signal(signal.SIGHUP)
        said(server, "the new version is not ready after 0.5 s")
        said(server, "not reloaded: ")
        assert get(server) == b"old"


def test_workers_are_replaced_and_a_stop_is_heard_while_new_code_is_tried(tmp_path: Path) -> None:
    write(tmp_path, "old")
    with ServerProcess("--app", "versioned:app", "--workers", "1", cwd=tmp_path) as server:
        (worker,) = server.workers()
        write(tmp_path, "new", "import time\nprint('trying', flush=True)\ntime.sleep(60)")
        server.signal(signal.SIGHUP)
        said(server, "trying")
        worker.kill()
        said(server, "replacing it")
        assert get(server) == b"old"
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == 0
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("by", ["PWD", "--chdir"])
def test_a_release_that_is_switched_by_a_link_is_served_after_a_reload(tmp_path: Path, by: str) -> None:
    for release in ("41", "42"):
        (tmp_path / release).mkdir()
        write(tmp_path / release, release)
    current = tmp_path / "current"
    current.symlink_to("41")
    flags = ("--app", "versioned:app", "--workers", "1", *(("--chdir", "current") if by == "--chdir" else ()))
    place = {"cwd": tmp_path} if by == "--chdir" else {"cwd": current, "PWD": str(current)}
    with ServerProcess(*flags, **place) as server:  # type: ignore[arg-type]
        assert get(server) == b"41"
        current.unlink()
        current.symlink_to("42")
        shutil.rmtree(tmp_path / "41")
        server.signal(signal.SIGHUP)
        said(server, "listening on ")
        eventually(lambda: get(server) == b"42")  # the old worker may answer once more
        current.unlink()
        server.signal(signal.SIGHUP)
        said(server, "not reloaded: ")
        assert get(server) == b"42"


def test_what_the_application_sees_of_its_environment_is_its_users(tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(
        "import os\nfound = ','.join({'PARKED_TRIAL', 'PARKED_HANDOVER'} & {*os.environ})\n"
        "def app(environ, start_response):\n    start_response('200 OK', [])\n"
        "    return [f'{found}{os.getpid()}'.encode()]\n"
    )
    with ServerProcess("--app", "looks:app", "--workers", "1", cwd=tmp_path) as server:
        before = get(server)
        server.signal(signal.SIGHUP)
        said(server, "listening on ")
        eventually(lambda: get(server) != before)  # the old worker may answer once more
        assert get(server).isdigit()
