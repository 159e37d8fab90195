"""Both ends, as an environ has them, of a connection by a unix socket, which has neither name nor port.

PEP 3333: SERVER_NAME and SERVER_PORT "can never be empty strings, and so are always required". Frameworks and
middleware expect what gunicorn says: both as the Host field has them, REMOTE_ADDR there and empty.
"""

from __future__ import annotations

#: Without a Host field, which HTTP/1.0 does not ask for.
_NAME = "localhost"
_PORTS = {"http": "80", "https": "443"}


def ends(host: str, scheme: str) -> dict[str, str]:
    """SERVER_NAME, SERVER_PORT and REMOTE_ADDR for a request whose Host field is *host*."""
    return {**server(host, scheme), "REMOTE_ADDR": ""}


def server(host: str, scheme: str) -> dict[str, str]:
    """SERVER_NAME and SERVER_PORT alone; whoever learns of another *scheme* has to ask again."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():  # no port, or an IPv6 address without one: [::1]
        name, port = host.removesuffix(":"), ""
    return {"SERVER_NAME": name or _NAME, "SERVER_PORT": port or _PORTS.get(scheme, "80")}
