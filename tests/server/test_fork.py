"""Forks in a process that serves: the child takes nothing, keeps nothing open and ends nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from tests.server.desk import Desk, pending_at
from tests.support import CHECKOUT, GET, PATIENCE_S, Client, eventually

#: A server whose application forks at /fork, and ends its children at /end.
PARENT = """
    import gevent.monkey
    if {patched}:
        gevent.monkey.patch_all()
    import os, sys, time
    from multiprocessing.context import ForkProcess as Process
    import gevent
    from parked.server import KeepAliveWSGIServer

    children = []

    def child():
        {child}
        return 0

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/fork":
            {fork}
        elif environ["PATH_INFO"] == "/close":
            ours = [c for c in server.parking.connections() if str(c.address[1]) == environ["REMOTE_PORT"]]
            gevent.spawn(server.parking.close, ours[0])
        elif environ["PATH_INFO"] == "/end":
            for pid in children:
                try:
                    os.kill(pid, 9)
                    os.waitpid(pid, 0)
                except (ProcessLookupError, ChildProcessError):
                    pass  # it has ended, and gevent has noticed
        start_response("200 OK", [])
        return [str(os.getpid()).encode()]

    server = KeepAliveWSGIServer(("127.0.0.1", 0), application, log=None, environ={{"SERVER_NAME": "x"}})
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()
"""

FORK = "children.append(os.fork() or os._exit(child()))"
PROCESS = "process = Process(target=child); process.start(); children.append(process.pid)"


@contextlib.contextmanager
def running(script: str, loop: str = "", **values: Any) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process, and the number that it prints first."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script).format(**values)],
        env={
            **os.environ,
            **({"GEVENT_LOOP": loop} if loop else {}),
            "PYTHONPATH": str(CHECKOUT),
            "GEVENT_TRACK_GREENLET_TREE": "0",
        },
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("patched", "fork", "child"),
    [
        (True, FORK, "time.sleep(30)"),
        (True, PROCESS, "time.sleep(30)"),
        (False, PROCESS, "time.sleep(30)"),
        (True, FORK, "gevent.monkey.get_original('time', 'sleep')(30)"),
        (False, FORK, "gevent.reinit(); gevent.sleep(30)"),
        (True, FORK, "os.execv('/bin/sleep', ['sleep', '30'])"),
        (False, PROCESS, "pass"),
    ],
    ids=["loops", "loops as a process", "blocks", "computes", "reinits", "execs", "exits"],
)
def test_the_parent_goes_on_as_if_there_had_been_no_fork(patched: bool, fork: str, child: str) -> None:
    with running(PARENT, patched=patched, fork=fork, child=child) as (parent, port):
        address = ("127.0.0.1", port)
        pid = str(parent.pid).encode()
        clients = [Client(address) for _ in range(10)]
        assert {client.ask().body for client in clients} == {pid}
        assert clients[0].ask(GET.replace(b"/ ", b"/fork ")).body == pid
        for _ in range(3):
            assert {client.ask().body for client in clients} == {pid}
            with Client(address) as newcomer:
                assert newcomer.ask().body == pid
        # What the parent closes is closed for the client, though the child lives.
        assert clients[1].ask(GET.replace(b"/ ", b"/close ")).body == pid
        assert clients[1].closed()
        gevent.sleep(0.2)
        assert clients[2].ask(GET.replace(b"/ ", b"/end ")).body == pid
        assert {client.ask().body for client in clients[2:]} == {pid}
        for client in clients:
            client.__exit__()


def test_another_event_loop_is_as_little_disturbed_by_a_fork() -> None:
    """libuv takes out of the epoll set at once what it is not to watch any more, and a child has the same."""
    pytest.importorskip("_cffi_backend", reason="gevent's libuv is made with cffi")
    with running(PARENT, loop="libuv", patched=True, fork=FORK, child="pass") as (parent, port):
        address = ("127.0.0.1", port)
        pid = str(parent.pid).encode()
        with Client(address) as client:
            assert client.ask().body == pid
            assert client.ask(GET.replace(b"/ ", b"/fork ")).body == pid
            assert client.ask().body == pid
            with Client(address) as newcomer:
                assert newcomer.ask().body == pid


def test_what_is_pending_is_none_of_the_childs_business() -> None:
    desk = Desk()
    reading, writing = os.pipe()
    with (
        pending_at(desk) as (client, pending),
        open(reading, "rb") as answers,
        open(writing, "wb", 0) as told,
    ):
        pid = os.fork()
        if not pid:
            try:
                sent = pending.send("200 OK", [], b"of the child")
                told.write(repr((sent, pending.open, desk.server.pending.count)).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        told.close()
        assert answers.read() == b"(False, False, 0)"
        assert pending.send("200 OK", [], b"of the parent")
        assert client.answer().body == b"of the parent"


def test_a_child_of_a_started_server_may_serve_in_its_own_right() -> None:
    script = """
        import os, sys
        import gevent
        from multiprocessing.context import ForkProcess as Process
        from parked.server import KeepAliveWSGIServer

        def application(environ, start_response):
            start_response("200 OK", [("Connection", "close")])
            return [str(os.getpid()).encode()]

        server = KeepAliveWSGIServer(("127.0.0.1", 0), application, log=None, environ={{"SERVER_NAME": "x"}})
        server.start()

        def serve(way):
            gevent.reinit()
            if way:
                server.start_accepting()
                server._stop_event.wait()
            else:
                server.serve_forever()

        processes = [Process(target=serve, args=(way,)) for way in (0, 1)]
        for process in processes:
            process.start()
        server.stop_accepting()
        print(server.server_port, *(process.pid for process in processes), sep="\\n", flush=True)
        gevent.sleep(60)
    """
    with running(script) as (parent, port):
        assert parent.stdout is not None
        children = {parent.stdout.readline().strip().encode() for _ in range(2)}
        seen: set[bytes] = set()

        def ask() -> bool:
            with Client(("127.0.0.1", port)) as client:
                seen.add(client.ask().body)
            return seen == children

        eventually(ask)
