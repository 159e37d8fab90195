"""The real nginx and HAProxy in front of the server, with the configurations of docs/behind-a-proxy.md."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest

from tests.support import CHECKOUT, PATIENCE_S, Client, eventually, serving

pytestmark = [
    pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("haproxy")), reason="needs both"),
    pytest.mark.filterwarnings(
        "ignore:.*(PROTOCOL_TLS|wrap_socket).* is deprecated:DeprecationWarning",
        "ignore:unclosed <socket object:ResourceWarning",
    ),
]

PAGE = CHECKOUT / "docs/behind-a-proxy.md"
#: Whom the server sees: each proxy connects from an address of its own, and clients come from another.
NGINX, HAPROXY, CLIENT = "127.0.0.2", "127.0.0.3", "127.0.0.9"
#: Where the proxies listen; of this process alone, on ports that no connection gets.
HERE = f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}.1"

NGINX_CONF = """
daemon off; master_process off; error_log {folder}/nginx.log; pid {folder}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    server {{
        listen {here}:8001;
        listen {here}:8002 ssl;
        ssl_certificate {certificate}; ssl_certificate_key {key};
        location / {{
            proxy_pass http://127.0.0.1:{plain};
            proxy_bind {nginx};
{documented}
        }}
    }}
}}
"""

HAPROXY_CFG = """
global
    maxconn 64
defaults
    timeout connect 10s
    timeout client 30s
    timeout server 30s
frontend http
    mode http
    bind {here}:8003
    bind {here}:8004 ssl crt {both}
{documented}
    default_backend plain
backend plain
    mode http
    source {haproxy}
    server s 127.0.0.1:{plain}
listen v1
    mode tcp
    bind {here}:8005
    source {haproxy}
    server s 127.0.0.1:{proxied} send-proxy
listen v2
    mode tcp
    bind {here}:8006
    source {haproxy}
    server s 127.0.0.1:{proxied} send-proxy-v2
listen passed
    mode tcp
    bind {here}:8007
    source {haproxy}
    server s 127.0.0.1:{secured} send-proxy-v2
"""

#: By the words of the table: the port, and whether the client speaks TLS.
WAYS: dict[str, tuple[int, bool]] = {
    "nginx": (8001, False),
    "nginx, TLS ends there": (8002, True),
    "HAProxy": (8003, False),
    "HAProxy, TLS ends there": (8004, True),
    "HAProxy, `send-proxy`": (8005, False),
    "HAProxy, `send-proxy-v2`": (8006, False),
    "HAProxy, `send-proxy-v2`, TLS passes": (8007, True),
    "none, not trusted": (0, False),
}
FORGED: dict[str, dict[str, str]] = {
    "nothing": {},
    "`X-Forwarded-*`": {
        "X-Forwarded-For": "192.0.2.66",
        "X-Forwarded-Proto": "ftp",
        "X-Forwarded-Host": "forged",
        "X-Forwarded-Port": "66",
    },
    "`Forwarded`": {"Forwarded": "for=192.0.2.66;proto=ftp;host=forged"},
}


def documented(name: str) -> str:
    """The lines that the page shows for a proxy."""
    found = re.search(rf"^{name}:\n\n((?:    .*\n)+)", PAGE.read_text(), re.MULTILINE)
    assert found, name
    return found[1]


def told(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [])
    keys = "REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME"
    return [json.dumps([environ[key] for key in keys]).encode()]


@contextlib.contextmanager
def running(*command: str, log: Path, ports: list[int]) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        for port in ports:
            eventually(lambda: answers(port) or process.poll() is not None, log.read_text)  # noqa: B023
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((HERE, port)) == 0


@pytest.fixture(scope="module")
def direct(
    tmp_path_factory: pytest.TempPathFactory, certificate: tuple[str, str]
) -> Iterator[tuple[str, int]]:
    """The servers and the proxies before them; the address of the one that is not behind a proxy."""
    folder = tmp_path_factory.mktemp("proxies")
    both = folder / "both.pem"
    both.write_bytes(b"".join(Path(name).read_bytes() for name in certificate))
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    trust = {"forwarded_allow_ips": f"{NGINX},{HAPROXY}"}
    proxied_by = {"proxy_protocol": "auto", "proxy_allow_from": HAPROXY}
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(serving(told, **trust))
        proxied = stack.enter_context(serving(told, **trust, **proxied_by))
        secured = stack.enter_context(serving(told, **trust, **proxied_by, ssl_context=context))
        names = {
            "folder": folder,
            "here": HERE,
            "nginx": NGINX,
            "haproxy": HAPROXY,
            "certificate": certificate[0],
            "key": certificate[1],
            "both": both,
            "plain": plain.server_port,
            "proxied": proxied.server_port,
            "secured": secured.server_port,
        }
        (folder / "nginx.conf").write_text(NGINX_CONF.format(**names, documented=documented("nginx")))
        (folder / "haproxy.cfg").write_text(HAPROXY_CFG.format(**names, documented=documented("HAProxy")))
        stack.enter_context(
            running(
                *(
                    "nginx",
                    "-e",
                    str(folder / "nginx.log"),
                    "-p",
                    str(folder),
                    "-c",
                    str(folder / "nginx.conf"),
                ),
                log=folder / "nginx.out",
                ports=[8001, 8002],
            )
        )
        stack.enter_context(
            running(
                *("haproxy", "-f", str(folder / "haproxy.cfg")),
                log=folder / "haproxy.out",
                ports=[8003, 8004, 8005, 8006, 8007],
            )
        )
        yield ("127.0.0.1", plain.server_port)


class From(Client):
    """A client with a source address of its own, that may speak TLS."""

    def __init__(self, address: tuple[str, int], tls: bool) -> None:
        sock = gevent.socket.create_connection(address, timeout=PATIENCE_S, source_address=(CLIENT, 0))
        if tls:
            context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            sock = context.wrap_socket(sock)
        self.sock = sock
        self.file = sock.makefile("rb")


def row(way: str, forged: str, direct: tuple[str, int]) -> list[str]:
    port, tls = WAYS[way]
    fields = "".join(f"{name}: {value}\r\n" for name, value in FORGED[forged].items())
    with From((HERE, port) if port else direct, tls) as client:
        asked = f"GET / HTTP/1.1\r\nHost: example.org\r\n{fields}\r\n".encode()
        answer = [client.ask(asked) for _ in range(2)][-1]  # on one connection
    assert answer.status == 200, answer
    found: list[str] = json.loads(answer.body)
    return found


def test_address_scheme_and_host_are_the_clients_whatever_it_forges(direct: tuple[str, int]) -> None:
    """And the page has the table of what was found."""
    table = ["| in front | the client forges | address | scheme | host | `SERVER_NAME` |", "| --- " * 6 + "|"]
    for way, (port, tls) in WAYS.items():
        for forged in FORGED:
            address, scheme, host, name = row(way, forged, direct)
            assert (address, scheme, host) == (CLIENT, "https" if tls else "http", "example.org"), (
                way,
                forged,
            )
            # Without X-Forwarded-Host it is where the server listens.
            assert name == ("example.org" if 0 < port < 8005 else "test")
            table.append(f"| {way} | {forged} | {address} | {scheme} | {host} | {name} |")
    shown = "\n".join(table)
    assert f"\n{shown}\n" in PAGE.read_text(), f"docs/behind-a-proxy.md is to have:\n{shown}"
