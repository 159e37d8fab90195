"""Parked connections under gunicorn: `gunicorn -k parked.gunicorn.KeepAliveWorker module:application`.

gunicorn keeps what it does: processes, sockets, signals, logs, reloading. What its gevent worker serves with
is replaced by `parked.server`. docs/from-gunicorn.md says what each of its settings means here.
"""

from __future__ import annotations

import os

os.environ.setdefault("GEVENT_TRACK_GREENLET_TREE", "0")  # read once, when gevent is imported

from collections.abc import Iterable
from datetime import timedelta
from socket import AF_UNIX
from time import monotonic
from typing import Any, Final, NamedTuple

import gevent
from gevent.event import Event
from gevent.pool import Pool
from greenlet import GreenletExit

from parked.server import KeepAliveWSGIHandler, KeepAliveWSGIServer, Limits, unix
from parked.server.access_format import content_bytes
from parked.server.fields import CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, encode_field, field_line
from parked.server.trust import LOCAL, TrustedPeers
from parked.shared.descriptors import raise_nofile
from parked.shared.extras import imported
from parked.shared.patching import packages_read_once

with imported("parked.gunicorn", ("gunicorn",), "gunicorn"):
    from gunicorn import glogging
    from gunicorn.http.wsgi import base_environ
    from gunicorn.sock import ssl_context
    from gunicorn.workers.ggevent import VERSION, GeventWorker

__all__ = ["KeepAliveWorker"]

#: Seconds that a connection may be idle at least, whatever `keepalive` says. Its 2 s are there because an
#: idle connection holds a place in gunicorn's own workers; here it must outlast a balancer's 60 s, or that
#: sends a request into a connection that is just being closed, and answers 502.
LEAST_IDLE_S: Final = 75.0
#: Bytes of all header fields together, at least.
LEAST_HEADER_BYTES: Final = 65536
#: In place of gunicorn's "no limit": bytes, and as many fields as it takes itself.
UNLIMITED: Final = 2**20
MOST_FIELDS: Final = 32768
#: Seconds between two signs of life to gunicorn's master, at most; of a short `timeout` a third.
NOTIFY_S: Final = 1.0

#: Of `base_environ`: ours are the same or better.
_OURS: Final = ("wsgi.file_wrapper", "wsgi.input_terminated")


#: RFC 9110, 8.6 and RFC 9112, 6.1: not in an interim response. How the connection goes on is the final one's.
_NOT_INTERIM: Final = (CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING)


class Request(NamedTuple):
    """What hooks and the access log are given of a request, named as gunicorn's own."""

    method: str
    uri: str
    path: str
    query: str
    version: tuple[int, ...]
    headers: list[tuple[str, str]]
    scheme: str
    peer_addr: Any
    remote_addr: Any
    body: Any


class Response(NamedTuple):
    """The same of a response."""

    status: str
    status_code: int
    headers: list[tuple[str, str]]
    sent: int


class Handler(KeepAliveWSGIHandler):
    """One request, with gunicorn's hooks, access log and forwarded scheme."""

    server: Server

    def get_environ(self) -> dict[str, Any]:
        environ = super().get_environ()
        environ["RAW_URI"] = self.path
        environ["wsgi.early_hints"] = self.early_hints
        worker = self.server.worker
        schemes = worker.forwarded_schemes(environ)
        if schemes and worker.trusts(self._peer()):
            if len(schemes) > 1:
                self._refusal = _contradiction
            environ["wsgi.url_scheme"] = scheme = schemes.pop()
            if self.server.family == AF_UNIX:  # it has no port but that of the scheme
                environ.update(unix.server(environ.get("HTTP_HOST", ""), scheme))
        if self.server.script_name and not _mount(environ, self.server.script_name):
            self._refusal = _not_mounted
        return environ

    def early_hints(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """`environ["wsgi.early_hints"](headers)`, as in gunicorn: send a 103 (RFC 8297), of `Link` mostly.

        May be called again. Nothing is sent to HTTP/1.0, nor when the response has begun, was left for
        later, or is over.

        :raises ValueError: a field could not be one of a response.
        :raises ApplicationError: a field says where a response ends, and this has no content.
        :raises OSError: the client has left, or does not read.
        """
        lines = [b"HTTP/1.1 103 Early Hints\r\n"]
        for name, value in headers:
            field, framing = encode_field(_text(name), _text(value).strip(" \t"))
            if framing in _NOT_INTERIM:
                raise self.ApplicationError(f"no field of a 103: {_text(name)}")
            lines.append(field_line(field))
        has_begun = self.headers_sent or self._is_taken or self._is_over or self.deferred is not None
        if has_begun or self.request_version != "HTTP/1.1":
            return
        self._sendall(b"".join([*lines, b"\r\n"]))
        self.response_length = 0  # that of the final one

    #: Answers in place of the application.
    _refusal: Any = None

    def _peer(self) -> Any:
        """Who is connected, which is the balancer where a PROXY header names the client."""
        if self.server.proxy_protocol is None:
            return self.client_address
        assert self.connection is not None
        try:
            return self.connection.sock.getpeername()
        except OSError:  # it has left
            return self.client_address

    def run_application(self) -> None:
        worker = self.server.worker
        if not worker.keeps_alive:
            self.close_connection = True
        if self._refusal is not None:
            self.close_connection = True
            self.application = self._refusal
        if worker.has_hooks:
            worker.cfg.pre_request(worker, self._request())
        super().run_application()

    def handle_one_response(self) -> None:
        super().handle_one_response()
        worker = self.server.worker
        worker.count_request()
        if worker.has_hooks:
            try:
                worker.cfg.post_request(worker, self._request(), self.environ, self._response())
            except Exception:
                worker.log.exception("Exception in post_request hook")

    def _log_error(self, t: Any, v: Any, tb: Any) -> None:
        """In gunicorn's log, as its own workers do; an application that exits ends no worker."""
        worker = self.server.worker
        if not issubclass(t, GreenletExit):
            worker.log.error("Error handling request %s %s", self.command, self.path, exc_info=(t, v, tb))
        if worker.aborted:
            super()._log_error(t, v, tb)

    def log_request(self) -> None:
        if self.server.logs_requests:
            environ = getattr(self, "environ", None) or self._refused_environ()
            took = timedelta(seconds=self.time_finish - self.time_start)
            log = self.server.worker.log
            try:
                log.access(self._response(), self._request(), environ, took)
            except Exception:  # a logger of somebody's own
                log.exception("Exception in the access log")

    def _request(self) -> Request:
        environ = getattr(self, "environ", None) or {}
        version = (self.request_version or "").rpartition("/")[2]
        return Request(
            method=self.command or "",
            uri=self.path or "",
            path=(self.path or "").partition("?")[0],
            query=environ.get("QUERY_STRING", ""),
            version=tuple(int(digit) for digit in version.split(".") if digit.isdigit()),
            headers=[(name.upper(), value) for name, value in self.headers.items()],
            scheme=environ.get("wsgi.url_scheme", "http"),
            peer_addr=self.client_address,
            remote_addr=self.client_address,
            body=environ.get("wsgi.input"),
        )

    def _response(self) -> Response:
        # gunicorn's loggers need a number first. Of a client that has left before there was one it is 000.
        status = self._orig_status or f"{self.code or 0:03}"
        fields = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in self.response_headers or ()
        ]
        return Response(status, abs(self.code or 0), fields, content_bytes(self))

    def _refused_environ(self) -> dict[str, Any]:
        """Of what was no request: what its line says."""
        address = self.client_address
        return {
            "REQUEST_METHOD": self.command,
            "RAW_URI": self.path,
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": address[0] if isinstance(address, tuple) else "",
        }


def _contradiction(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("400 Bad Request", [("Content-Type", "text/plain")])
    return [b"the forwarded schemes contradict each other\n"]


def _not_mounted(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
    return [b"the path does not begin with SCRIPT_NAME\n"]


def _mount(environ: dict[str, Any], script_name: str) -> bool:
    """Split the path as gunicorn does with SCRIPT_NAME in its own environment; False if it is elsewhere."""
    path: str = environ["PATH_INFO"]
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = script_name, path.removeprefix(script_name)
    return path == script_name or path.startswith(script_name + "/")


class Server(KeepAliveWSGIServer):
    """The server of one of the worker's sockets."""

    handler_class = Handler
    worker: KeepAliveWorker
    #: Where the application is mounted.
    script_name: str


class KeepAliveWorker(GeventWorker):  # type: ignore[misc] # gunicorn has no type hints
    """gunicorn's gevent worker with parked connections."""

    alive: bool

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        cfg = self.cfg
        self.keeps_alive = cfg.keepalive != 0
        self.has_hooks = any(_is_set(cfg, name) for name in ("pre_request", "post_request"))
        #: Field of environ, and its value that means https.
        self._secure = {
            f"HTTP_{name.upper().replace('-', '_')}": value
            for name, value in cfg.secure_scheme_headers.items()
        }
        self._notify_s = min(NOTIFY_S, cfg.timeout / 3) if cfg.timeout else NOTIFY_S
        allowed = cfg.forwarded_allow_ips
        self._peers = TrustedPeers(f"{_listed(allowed)},{LOCAL}")

    def init_process(self) -> None:
        self._ending = Event()
        raise_nofile()
        super().init_process()

    def patch(self) -> None:
        with packages_read_once():
            super().patch()

    def run(self) -> None:
        servers = [self._serve(sock) for sock in self.sockets]
        while self.alive:
            self.notify()
            self._ending.wait(self._notify_s)
        self._end(servers)

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self._ending.set()

    def handle_abort(self, sig: int, frame: Any) -> None:
        self.aborted = True
        super().handle_abort(sig, frame)

    def count_request(self) -> None:
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self._ending.set()

    def trusts(self, address: Any) -> bool:
        """Whether a peer may say by which scheme it was asked; one of a unix socket may, as in gunicorn."""
        return self._peers.trusts(address)

    def forwarded_schemes(self, environ: dict[str, Any]) -> set[str]:
        """What the fields of `secure_scheme_headers` say: none, one, or a contradiction."""
        return {
            "https" if {part.strip() for part in environ[name].split(",")} == {value} else "http"
            for name, value in self._secure.items()
            if name in environ
        }

    def _serve(self, sock: Any) -> Server:
        cfg = self.cfg
        name = sock.getsockname()
        environ = {key: value for key, value in base_environ(cfg).items() if key not in _OURS}
        # pywsgi would ask the resolver for SERVER_NAME
        environ["SERVER_NAME"] = str(name[0]) if isinstance(name, tuple) else ""
        environ["wsgi.multithread"] = True
        environ["SERVER_SOFTWARE"] = VERSION  # libraries for WebSockets look for gevent there
        tls = {}
        if cfg.is_ssl:
            tls["ssl_context"] = ssl_context(cfg)
            tls["ssl_context"].set_alpn_protocols(["http/1.1"])  # whatever `http_protocols` says
        server = Server(
            sock,
            self.wsgi,
            spawn=Pool(self.worker_connections),
            log=None,
            error_log=self.log.error_log,
            environ=environ,
            idle_timeout=max(cfg.keepalive, LEAST_IDLE_S),
            limits=Limits(
                request_line_bytes=cfg.limit_request_line or UNLIMITED,
                header_bytes=max(cfg.limit_request_field_size or UNLIMITED, LEAST_HEADER_BYTES),
                header_count=cfg.limit_request_fields or MOST_FIELDS,
            ),
            proxy_protocol=_proxy_protocol(cfg.proxy_protocol),
            proxy_allow_from=f"{_listed(cfg.proxy_allow_ips)},{LOCAL}",
            **tls,
        )
        server.worker = self
        server.script_name = os.environ.get("SCRIPT_NAME", "").rstrip("/")
        server.logs_requests = self._logs_requests()
        server.start()
        return server

    def _logs_requests(self) -> bool:
        cfg = self.cfg
        if cfg.statsd_host or cfg.logger_class is not glogging.Logger:
            return True
        files = cfg.accesslog, cfg.logconfig, cfg.logconfig_dict, getattr(cfg, "logconfig_json", None)
        return any(files) or bool(cfg.syslog and not cfg.disable_redirect_access_to_syslog)

    def _end(self, servers: list[Server]) -> None:
        """Let the connections go, within `graceful_timeout`.

        For the first half of it each leaves with its next response, and the successor or another worker gets
        it. Then those that are still idle are closed, and requests in flight have the other half. With
        `reload` that is at once: new code is waited for.
        """
        for server in servers:
            server.retire()
        half = self.cfg.graceful_timeout / 2
        if not self._wait_for([server.drained for server in servers], 0 if self.cfg.reload else half):
            ends = [gevent.spawn(server.drain, half) for server in servers]
            self._wait_for(ends, half + NOTIFY_S)
            if not all(end.value for end in ends):
                self.log.warning("Worker graceful timeout (pid:%s)", self.pid)

    def _wait_for(self, things: list[Any], seconds: float) -> bool:
        """Wait until all are ready, and show gunicorn's master meanwhile that we live; whether they are."""
        deadline = monotonic() + seconds
        while True:
            self.notify()
            left = deadline - monotonic()
            if len(gevent.wait(things, timeout=max(0.0, min(left, self._notify_s)))) == len(things):
                return True
            if left <= 0:
                return False


def _text(part: str | bytes) -> str:
    """A name or value of a field; gunicorn takes both kinds in hints."""
    return part.decode("latin-1") if isinstance(part, bytes) else part


def _listed(peers: Any) -> str:
    """A setting of addresses, which is a list in one version of gunicorn and its text in another."""
    return peers if isinstance(peers, str) else ",".join(peers)


def _proxy_protocol(value: Any) -> str:
    """Off or a version; it was a switch, for version 1."""
    return {"False": "", "None": "", "off": "", "True": "v1"}.get(str(value), str(value))


def _is_set(cfg: Any, name: str) -> bool:
    """Whether a hook is the user's own."""
    setting = cfg.settings[name]
    return setting.get() is not type(setting).default
