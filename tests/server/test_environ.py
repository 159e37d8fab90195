from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from gevent import pywsgi

from parked.server import KeepAliveWSGIServer, request
from parked.server.environ import ROOM, BaseEnviron, begin, fill
from parked.server.limits import Limits
from parked.server.request import Fields, parse_head
from tests.support import Client, hello, serving


def fields(*lines: str) -> Fields:
    """As they are known when they have come twice."""
    data = "\r\n".join(["GET / HTTP/1.1", "Host: test", *lines, "", ""]).encode()
    _, head = (parse_head(data, Limits()) for _ in range(2))
    assert head is not None
    return head.fields


class Seen:
    """An application that keeps the environs it gets, as they were."""

    def __init__(self) -> None:
        self.environs: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        self.environs.append(dict(environ))
        environ["HTTP_HOST"] = environ["server.own"] = environ["left"] = "changed by the application"
        return hello(environ, start_response)


def asked(server: KeepAliveWSGIServer, seen: Seen, times: int = 3) -> list[dict[str, Any]]:
    del seen.environs[:]
    with Client(server) as client:
        for _ in range(times):
            assert client.ask().status == 200
    return seen.environs


def test_what_a_request_leaves_in_its_environ_is_not_in_the_next() -> None:
    seen = Seen()
    with serving(seen, environ={"server.own": "one"}) as server:
        for environ in asked(server, seen, 3):
            assert environ["server.own"] == "one"
            assert environ["HTTP_HOST"] != "changed by the application"
            assert "left" not in environ


@pytest.mark.parametrize(
    "change",
    [
        lambda environ: environ.__setitem__("server.own", "two"),
        lambda environ: environ.update({"server.own": "two"}),
        lambda environ: environ.update(**{"server.own": "two"}),
        lambda environ: environ.__ior__({"server.own": "two"}),
        lambda environ: (environ.pop("server.own"), environ.setdefault("server.own", "two")),
    ],
)
def test_a_change_of_the_servers_environ_reaches_the_next_request(change: Callable[[Any], Any]) -> None:
    seen = Seen()
    with serving(seen, environ={"server.own": "one"}) as server:
        asked(server, seen)
        change(server.environ)
        assert [environ["server.own"] for environ in asked(server, seen)] == ["two"] * 3


def test_every_way_to_change_the_base_gives_it_another_stamp() -> None:
    ways: dict[str, tuple[Any, ...]] = {
        "__setitem__": ("a", 1),
        "__delitem__": ("b",),
        "__ior__": ({"a": 1},),
        "update": ({"a": 1},),
        "setdefault": ("new", 1),
        "pop": ("b",),
        "popitem": (),
        "clear": (),
    }
    unchanging = {"copy", "fromkeys", "get", "items", "keys", "values"}
    assert {name for name in dir(dict) if not name.startswith("_")} <= set(ways) | unchanging
    for name, arguments in ways.items():
        base = BaseEnviron(b=2)
        before, same = base.stamp, {"b": 2}
        assert getattr(base, name)(*arguments) == getattr(same, name)(*arguments) or name == "__ior__"
        assert base == same
        assert base.stamp is not before, name


def test_an_environ_put_in_the_place_of_the_servers_is_used() -> None:
    seen = Seen()
    with serving(seen, environ={"server.own": "one"}) as server:
        asked(server, seen)
        server.environ = {**server.environ, "server.own": "two"}
        assert [environ["server.own"] for environ in asked(server, seen)] == ["two"] * 3
        server.set_environ({"server.own": "three"})
        server.update_environ()
        assert [environ["server.own"] for environ in asked(server, seen)] == ["three"] * 3


class Numbering(KeepAliveWSGIServer):
    number = 0

    def get_environ(self) -> dict[str, Any]:
        self.number += 1
        environ: dict[str, Any] = super().get_environ()
        return environ | {"server.own": self.number}


def test_a_server_that_makes_environs_in_its_own_way_is_asked_for_each() -> None:
    seen = Seen()
    server = Numbering(("127.0.0.1", 0), seen, log=None)
    server.start()
    try:
        assert [environ["server.own"] for environ in asked(server, seen, 3)] == [1, 2, 3]
    finally:
        server.stop()


def test_environs_are_of_the_class_that_the_server_names() -> None:
    kinds: list[type] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        kinds.append(type(environ))
        return hello(environ, start_response)

    server = KeepAliveWSGIServer(("127.0.0.1", 0), app, log=None)
    server.environ_class = pywsgi.SecureEnviron
    server.start()
    try:
        with Client(server) as client:
            assert client.ask().status == client.ask().status == 200
    finally:
        server.stop()
    assert kinds == [pywsgi.SecureEnviron] * 2


def test_what_is_kept_is_what_is_put_together_anew() -> None:
    request._parsed_fields.clear()
    base, same = BaseEnviron({"wsgi.version": (1, 0), "HTTP_HOST": "default"}), fields("Accept: */*")
    first = begin(base, same)
    assert same.begun_for is base.stamp
    assert same.begun == first == fill(dict(base), same)
    assert first["HTTP_HOST"] == "test"


def test_a_secret_is_not_kept_beyond_its_request() -> None:
    secret = fields("Authorization: Basic c2VjcmV0")
    begin(BaseEnviron(), secret)
    assert not secret.begun
    absolute = parse_head(b"GET http://other/ HTTP/1.1\r\nHost: test\r\n\r\n", Limits())
    assert absolute is not None
    assert begin(BaseEnviron(), absolute.fields)["HTTP_HOST"] == "other"
    assert not absolute.fields.begun


@pytest.mark.parametrize("own", [1, 12, 20, 60])
def test_a_copy_of_what_is_kept_takes_more_without_growing(own: int) -> None:
    request._parsed_fields.clear()
    base, same = BaseEnviron((f"server.{number}", "") for number in range(own)), fields()
    begin(base, same)
    environ = same.begun.copy()
    before = sys.getsizeof(environ)
    environ.update((f"more {number}", "") for number in range(ROOM - 1))
    assert sys.getsizeof(environ) == before
