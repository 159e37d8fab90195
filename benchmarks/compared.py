"""The servers that are compared: how each is started with one worker, and how to get it.

Each is set to hold as many connections as are asked for, for as long as it takes, and to log nothing.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Connections that each is told to hold, and clients that may wait to be accepted.
CONNECTIONS: Final = "19000"
BACKLOG: Final = "4096"
HOST: Final = "127.0.0.1"
PYPI: Final = "benchmarks/requirements.txt"


@dataclass(frozen=True)
class Server:
    """How to start one of the servers, and how to get it."""

    title: str
    #: Port, a folder of its own, length of a response, application.
    command: Callable[[int, Path, int, str], list[str]]
    available: Callable[[], bool]
    install: str
    #: Whether it runs an application, or sends a file.
    runs_applications: bool = True
    #: How to speak TLS to it; None in clear.
    tls: ssl.SSLContext | None = None
    #: Header fields that wrk sends besides its own.
    fields: tuple[str, ...] = ()

    def connect(self, port: int, timeout: float) -> socket.socket:
        """A new connection to it.

        :raises OSError: there is none, or no TLS.
        """
        sock = socket.create_connection((HOST, port), timeout=timeout)
        try:
            return self.tls.wrap_socket(sock) if self.tls is not None else sock
        except OSError:
            sock.close()
            raise

    def path(self, length: int) -> str:
        """What to ask for."""
        return f"/?length={length}" if self.runs_applications else "/text"


def _has(module: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(module) is not None


def _module(*before: str) -> list[str]:
    return [sys.executable, "-m", *before]


def _script(name: str) -> str:
    """The path of a command that pip has put beside Python."""
    return str(Path(sys.executable).with_name(name))


def _hosted(which: str, title: str) -> Server:
    return Server(
        title,
        lambda port, _folder, _length, app: _module("benchmarks.hosted", which, str(port), app),
        _has("gevent" if which == "pywsgi" else which),
        PYPI,
    )


def _gunicorn(worker: str, *flags: str) -> Server:
    return Server(
        f"gunicorn, {worker} worker",
        lambda port, _folder, _length, app: [
            *_module("gunicorn", "-k", worker, "-w", "1", *flags, "--keep-alive", "600"),
            *("--worker-connections", CONNECTIONS, "--backlog", BACKLOG, "-b", f"{HOST}:{port}", app),
        ],
        _has("gunicorn"),
        PYPI,
    )


def nginx(title: str, settings: str = "", tls: ssl.SSLContext | None = None) -> Server:
    """nginx, which sends a file.

    :param settings: more of them; by default it caches no descriptors of files.
    """
    return Server(
        title,
        lambda port, folder, length, _app: _nginx_command(port, folder, length, settings, tls is not None),
        lambda: shutil.which("nginx") is not None,
        "apt install nginx-light",
        runs_applications=False,
        tls=tls,
    )


def _nginx_command(port: int, folder: Path, length: int, settings: str, speaks_tls: bool) -> list[str]:
    (folder / "text").write_bytes(b"x" * length)
    (folder / "nginx.conf").write_text(
        f"""
        daemon off; worker_processes 1; worker_rlimit_nofile 20000;
        pid {folder}/pid; error_log {folder}/error;
        events {{ worker_connections {CONNECTIONS}; multi_accept on; }}
        http {{
            access_log off; keepalive_timeout 600; keepalive_requests 1000000000; tcp_nodelay on; sendfile on;
            {settings} default_type text/plain; client_body_temp_path {folder}/b;
            proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
            scgi_temp_path {folder}/s;
            server {{ listen {HOST}:{port} backlog={BACKLOG} {"ssl" * speaks_tls}; root {folder}; }}
        }}
        """
    )
    folder.chmod(0o755)
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


SERVERS: Final = {
    "ours": Server(
        "this server",
        lambda port, _folder, _length, app: _module(
            "app", "--app", app, "--bind", f"{HOST}:{port}", "--workers", "1"
        ),
        lambda: True,
        "",
    ),
    "pywsgi": _hosted("pywsgi", "gevent.pywsgi, stock"),
    "gunicorn": _gunicorn("gevent"),
    "gthread": _gunicorn("gthread", "--threads", "4"),
    "granian": Server(
        "granian, WSGI",
        lambda port, _folder, _length, app: [
            *_module("granian", "--interface", "wsgi", "--workers", "1", "--no-access-log"),
            *("--backlog", BACKLOG, "--backpressure", CONNECTIONS, "--host", HOST, "--port", str(port), app),
        ],
        _has("granian"),
        PYPI,
    ),
    "bjoern": _hosted("bjoern", "bjoern"),
    "fastwsgi": _hosted("fastwsgi", "fastwsgi"),
    "socketify": _hosted("socketify", "socketify, WSGI"),
    "uwsgi": Server(
        "uWSGI, gevent",
        lambda port, _folder, _length, app: [
            # With its HTTP router, another process: --http11-socket closes after one response.
            *(_script("uwsgi"), "--http", f"{HOST}:{port}", "--http-keepalive=600", "--module", app),
            *("--gevent", CONNECTIONS, "--gevent-monkey-patch", "--listen", BACKLOG, "--die-on-term"),
            *("--disable-logging", "--virtualenv", sys.prefix),
        ],
        lambda: Path(_script("uwsgi")).exists(),
        PYPI,
    ),
    "waitress": Server(
        "waitress",
        lambda port, _folder, _length, app: [
            *_module("waitress", f"--listen={HOST}:{port}", f"--connection-limit={CONNECTIONS}"),
            *(f"--backlog={BACKLOG}", "--channel-timeout=600", "--asyncore-use-poll", app),
        ],
        _has("waitress"),
        PYPI,
    ),
    "uvicorn": Server(
        "uvicorn, WSGI",
        lambda port, _folder, _length, app: [
            *_module("uvicorn", "--interface", "wsgi", "--no-access-log", "--log-level", "error"),
            *("--timeout-keep-alive", "600", "--backlog", BACKLOG, "--host", HOST, "--port", str(port), app),
        ],
        _has("uvicorn"),
        PYPI,
    ),
    "nginx": nginx("nginx, static file"),
    "nginx-cache": nginx("nginx, open_file_cache", "open_file_cache max=1000; open_file_cache_valid 60s;"),
}
