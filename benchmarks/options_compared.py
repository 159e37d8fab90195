"""What options of the server cost a request when they are on, in microseconds of the server's own time.

In one process, without an event loop: a request is sent to a connection, then the server's serving of it is
timed, from its receive to the end of its send over loopback. Options take turns, some hundred requests at a
time, and of all requests of one the lower quartile counts: what else a machine does makes requests longer,
never shorter. The application does nothing.

What it does not show: waking up, what the kernel does for the client, and what comes once per connection,
such as TLS handshakes and PROXY headers. What is looked at once a second, --timeout, --max-requests and the
like, costs a request nothing.
"""

from __future__ import annotations

import _socket
import argparse
import contextlib
import os
import platform
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

os.environ.setdefault("GEVENT_TRACK_GREENLET_TREE", "0")

import gevent.socket

from benchmarks.bare import application
from benchmarks.compare_servers import cpu_model
from benchmarks.tls_compared import certify
from parked.prefork.access_log import LogFile
from parked.prefork.counts import Statistics
from parked.server import KeepAliveWSGIServer
from parked.server.certificates import server_context
from parked.server.connection import Connection
from parked.server.tls import TLSSocket

#: What every other option is compared with.
NONE: Final = "none"
HEAD: Final = "GET /?length=100 HTTP/1.1\r\nHost: example.org\r\nUser-Agent: benchmark\r\nAccept: */*\r\n"
#: As nginx sends them.
FORWARDED: Final = (
    "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: example.org\r\n"
)
ATOMS: Final = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)s'
#: Requests in a row of one option.
A_TURN: Final = 200


class Option:
    """A server with one option on, and its one connection.

    :param fields: header fields that its client sends besides its own.
    :param context: of TLS, if it speaks that; its client's is made from *authority*.
    """

    def __init__(self, fields: str = "", context: Any = None, authority: str = "", **options: Any) -> None:
        self.times_ns: list[int] = []
        self._request = f"{HEAD}{fields}\r\n".encode()
        options.setdefault("log", None)
        if context is not None:
            options["ssl_context"] = context
        self.server = KeepAliveWSGIServer(("127.0.0.1", 0), application, **options)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._client: Any = socket.create_connection(listener.getsockname())
            fd, address = listener._accept()  # type: ignore[attr-defined]
        sock: Any = (_socket if context is None else gevent.socket).socket(fileno=fd)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            sock = self._shaken_hands(sock, context, authority)
        else:
            sock.setblocking(False)
        self._connection = Connection(sock, address)
        self.server.start()
        self.server.stop_accepting()
        self.server.parking.add(self._connection)

    def _shaken_hands(self, sock: Any, context: Any, authority: str) -> TLSSocket:
        clients = ssl.create_default_context(cafile=authority)
        clients.check_hostname = False
        shaking = threading.Thread(target=self._shake, args=(clients,))
        shaking.start()
        shaken = TLSSocket(context.wrap_socket(sock, server_side=True))
        shaking.join()
        return shaken

    def _shake(self, clients: ssl.SSLContext) -> None:
        self._client = clients.wrap_socket(self._client)

    def take_turn(self) -> None:
        connection, serve = self._connection, self.server._serve
        for _ in range(A_TURN):
            self._client.sendall(self._request)
            connection.busy = True
            began = perf_counter_ns()
            serve(connection)
            self.times_ns.append(perf_counter_ns() - began)
            if not self._client.recv(65536).startswith(b"HTTP/1.1 200 "):
                raise SystemExit("a request has failed")

    @property
    def us(self) -> float:
        return statistics.quantiles(self.times_ns, n=4)[0] / 1000

    def close(self) -> None:
        self._client.close()
        self.server.stop()


def options_of(folder: Path) -> dict[str, Callable[[], Option]]:
    """Each by the flags of the command that turn it on."""
    certificate, key = map(str, certify(folder))

    def counting() -> Option:
        option = Option()
        option.server.statistics = Statistics()
        return option

    def logging(form: str) -> Option:
        log = LogFile(str(folder / "log"))
        log.open()
        return Option(log=log, log_format=form)

    return {
        NONE: Option,
        "`--request-id`": lambda: Option(request_ids=True),
        "`--forwarded-allow-ips`, no such fields": lambda: Option(forwarded_allow_ips="127.0.0.1"),
        "the same, three fields": lambda: Option(FORWARDED, forwarded_allow_ips="127.0.0.1"),
        "three fields without the option": lambda: Option(FORWARDED),
        "`--metrics`": counting,
        "`--access-log`": lambda: logging("common"),
        "`--access-log-format json`": lambda: logging("json"),
        "`--access-log-format` with ten atoms": lambda: logging(ATOMS),
        "`--certfile`": lambda: Option(context=server_context(certificate, key), authority=certificate),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/options", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--turns", type=int, default=50, help=f"of {A_TURN} requests, each option [%(default)s]"
    )
    return parser.parse_args()


def main() -> int:
    turns = parse().turns
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        options = {name: make() for name, make in options_of(Path(folder)).items()}
        for option in options.values():
            stack.callback(option.close)
            option.take_turn()
            option.times_ns.clear()  # what the first ones need
        for _ in range(turns):
            for option in options.values():
                option.take_turn()
    print(
        f"Lower quartiles of {turns * A_TURN:,} requests, {time.strftime('%Y-%m-%d', time.gmtime())},"
        f" {cpu_model()}, Linux {platform.release()}, Python {platform.python_version()}.\n"
    )
    print("| option | us per request | more than none |\n| --- | --- | --- |")
    for name, option in options.items():
        more = f"{option.us - options[NONE].us:+.1f}" if name != NONE else ""
        print(f"| {name} | {option.us:.1f} | {more} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
