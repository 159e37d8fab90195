"""What a service manager hears from a real server: parked/prefork/notify.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from parked.prefork import notify
from tests.support import CHECKOUT, PATIENCE_S


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE_S)
        yield sock


def heard(manager: socket.socket) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in manager.recv(4096).decode().splitlines())


def test_it_is_told_ready_reloading_ready_and_stopping(manager: socket.socket) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "app", "--bind", "127.0.0.1:0", "--workers", "2"],
        cwd=CHECKOUT,
        env=os.environ | {"NOTIFY_SOCKET": str(manager.getsockname())},
        stdout=subprocess.DEVNULL,
    )
    try:
        ready = heard(manager)
        assert ready["READY"] == "1"
        assert ready["STATUS"].startswith("listening on http://127.0.0.1:")

        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        server.send_signal(signal.SIGHUP)
        reloading = heard(manager)
        assert reloading["RELOADING"] == "1"
        after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert before_us <= int(reloading["MONOTONIC_USEC"]) <= after_us
        assert heard(manager)["READY"] == "1"

        server.terminate()
        assert heard(manager) == {"STOPPING": "1"}
        assert server.wait(PATIENCE_S) == 0
    finally:
        server.kill()
        server.wait()
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):  # the trial of the reload, the workers: nobody else said anything
        manager.recv(1)


def test_a_server_is_ready_without_a_manager_that_listens(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    notify.notify(notify.READY)
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")  # not ours to speak
    notify.notify(notify.READY)
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.notify(notify.READY)
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.getsockname()))
    notify.notify(notify.READY)
    assert heard(manager) == {"READY": "1"}


def test_want_of_a_descriptor_is_no_reason_to_stop(manager: socket.socket) -> None:
    code = (
        "import resource; from parked.prefork import notify\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); notify.notify(notify.READY)"
    )
    said = {"NOTIFY_SOCKET": str(manager.getsockname())}
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=os.environ | said, check=True, timeout=60)


def test_an_abstract_address_begins_with_an_at_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0parked-test-{os.getpid()}")
        manager.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@parked-test-{os.getpid()}")
        notify.notify(notify.STOPPING)
        assert heard(manager) == {"STOPPING": "1"}
