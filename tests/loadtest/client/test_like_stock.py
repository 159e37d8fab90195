"""Calls as scripts make them, on FastHttpUser and on ours: what the server gets, what is told and returned.

Each test has a table. A case of it is one call of `self.client`, made by a stock user and by one of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import pytest
from locust import FastHttpUser
from locust.env import Environment
from locust.exception import CatchResponseError, ResponseError

from parked.user import KeepAliveUser
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, by_path, response

pytestmark = pytest.mark.skipif(
    [*map(int, version("geventhttpclient").split(".")[:2])] < [2, 6],
    reason="an older client beneath FastHttpUser does some of it otherwise",
)

Call = Callable[[Any], object]


def moved(to: str, status: int = 302) -> bytes:
    return response(b"moved", f"Location: {to}", status=f"{status} Moved")


ROUTES = {
    "/json": response(b'{"a": 1}', "Content-Type: application/json"),
    "/404": response(b"no", status="404 Not Found"),
    "/moved": moved("/to"),
    "/seen": moved("/to", 303),
    "/kept": moved("/to", 307),
    "/round": moved("/round"),
    "/nowhere": moved("ftp://test/"),
    "/accented": response(b"").replace(b"Content", b"Set-Cookie: a=\xfc; Path=/\r\nContent"),
    **{f"/{status}": response(b"", status=f"{status} As-Asked") for status in (204, 226, 299, 300, 305, 399)},
}
#: What each of them says of itself, and what differs each time.
OWN = ("user-agent:", "accept-encoding:")
BOUNDARY = re.compile(r"[0-9a-f]{32}")


class Both:
    """A server, and a user of each kind that asks it."""

    def __init__(self, environment: Environment, peer: Peer, other: Peer) -> None:
        self._environment = environment
        self._peers = peer, other

    def compare(self, cases: Mapping[str, Call], **attributes: Any) -> None:
        stock, ours = (
            {name: self._seen(kind, call, attributes) for name, call in cases.items()}
            for kind in (FastHttpUser, KeepAliveUser)
        )
        assert any(event[-1] for _, told, _ in stock.values() for event in told), "nothing was answered"
        assert ours == stock

    def _seen(self, kind: type, call: Call, attributes: Mapping[str, Any]) -> Any:
        """Of one call: the requests, the events, and what came of it."""
        told: list[Any] = []

        def hear(**event: Any) -> None:
            told.append(
                [event.get(key) for key in ("request_type", "name", "response_length", "context", "url")]
                + [event["exception"] is not None, event["response"].status_code]
            )

        self._environment.events.request.add_listener(hear)
        user = type("Own", (kind,), {"host": self._peers[0].url, **attributes})(self._environment)
        try:
            came = self._plain(call(user))
        except Exception as error:
            came = next(one.__name__ for one in type(error).__mro__ if one.__module__ == "builtins")
        finally:
            self._environment.events.request.remove_listener(hear)
            getattr(user.client, "close", user.client.client.clientpool.close)()
        requests = [[self._read(request) for request in peer.requests] for peer in self._peers]
        for peer in self._peers:
            peer.connections.clear()
        return requests, self._plain(told), came

    def _plain(self, value: Any) -> Any:
        text = json.dumps(value, default=repr)
        for number, peer in enumerate(self._peers):
            text = text.replace(peer.url, f"http://server-{number}")
        return json.loads(text)

    def _read(self, request: bytes) -> Any:
        head, _, body = BOUNDARY.sub("BOUNDARY", request.decode("latin-1")).partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        fields = (line.partition(":") for line in lines if not line.lower().startswith(OWN))
        return first, sorted((name.lower(), value.strip()) for name, _, value in fields), body


@pytest.fixture
def both(environment: Environment) -> Iterator[Both]:
    with Peer(by_path(ROUTES)) as peer, Peer(by_path(ROUTES)) as other:
        peer._serve = other._serve = by_path(
            ROUTES | {"/elsewhere": moved(f"{other.url}/to"), "/to": response()}
        )
        yield Both(environment, peer, other)


def get(url: str, **options: Any) -> Call:
    return lambda user: user.client.get(url, **options).text


def post(url: str = "/json", **options: Any) -> Call:
    return lambda user: user.client.post(url, **options).text


def test_paths_are_encoded_and_told_as_they_were_given(both: Both) -> None:
    paths = (
        "/a b",
        "/\u00fc?q=\u00e4",
        "/a#f",
        "/{x}|y",
        "/a\\b",
        "/^`",
        "/%41%7e",
        "/%e4",
        "/%zz",
        "/a;p?q",
        "/[x]",
        "/of a file\n",
        "/a\r\n",
    )
    both.compare({path: get(path) for path in paths})


def test_parameters_are_sent_and_not_told(both: Both) -> None:
    given: list[Any] = [{"a": [1, 2], "b": None}, {"a": None}, [("a", "\u00fc b")], "x=1&y", {}, {"a": ()}]
    both.compare({repr(params): get("/json", params=params) for params in given})
    paths = ("/json?z=1", "/json#f", "/json?z=1#f?y=2", "/json?", "/json\n")
    both.compare({path: get(path, params={"a": True}) for path in paths})


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/v1"])
def test_a_path_of_the_host_is_asked_for_where_there_is_no_other(both: Both, path: str) -> None:
    host = both._peers[0].url + path
    both.compare({one: post(one, data="{}") for one in ("", "?a=1", "#f")}, host=host)


def test_what_else_a_request_is_given_is_sent_as_stock_does(both: Both) -> None:
    both.compare(
        {
            "a get": get("/json", verify=False, params={"a": 1}),
            "text": post(data="x", verify=False),
            "a form": post(data={"a": 1}, cookies="b"),
            "nothing": post(foo="bar"),
            "json": post(json={}, foo="bar"),
            "text as parameters": get("/json", params="a", foo="bar"),
        }
    )


def test_what_has_no_meaning_on_one_connection_is_refused(new_session: NewSession) -> None:
    with pytest.raises(TypeError, match="max_retries"):
        new_session("http://127.0.0.1:9").get("/", max_retries=1)


def test_bodies_have_the_type_that_counts(both: Both) -> None:
    of_request = {"content-type": "x/request", "accept": "x/y"}
    cases = {
        "form": {"data": {"a": "\u00fc b"}},
        "text": {"data": "x"},
        "bytes": {"data": b"x"},
        "json": {"json": {"a": 1}},
        "files": {"files": {"f": ("a.txt", b"1")}, "data": {"b": "2"}},
    }
    for attributes in ({}, {"default_headers": {"content-type": "x/class", "Accept": "z/z"}}):
        both.compare(
            {name: post(**options) for name, options in cases.items()}
            | {f"{name}, and a type": post(**options, headers=of_request) for name, options in cases.items()},
            **attributes,
        )


def test_header_fields_are_sent_or_refused(both: Both) -> None:
    given: list[Any] = [
        {"X": ["a", "b"]},
        {"X-A": "1", "x-a": "2"},
        [("X", "1"), ("X", "2")],
        {"X": 1},
        {"X": "\u00fc"},
    ]
    given += [{"X Y": "1"}, {"": "1"}, {"X:": "1"}, {"X": "a\nb"}, {"X": "a\0b"}, {"host": "other"}]
    both.compare({repr(headers): get("/json", headers=headers) for headers in given})
    for headers in given[:5]:
        both.compare({"of the class": get("/json")}, default_headers=headers)


@pytest.mark.parametrize("name", ["X Y", "X\n", "X:"])
def test_a_class_has_no_such_field(environment: Environment, name: str) -> None:
    with pytest.raises(Exception, match="header field"):
        type("Own", (KeepAliveUser,), {"host": "http://test", "default_headers": {name: "1"}})(environment)


def test_credentials_are_encoded_and_come_first(both: Both) -> None:
    both.compare(
        {
            "accents": get("/json", auth=("\u00fc", "p\u00e4")),
            "over a field": get("/json", auth=("u", "p"), headers={"authorization": "mine"}),
        }
    )


def test_methods_are_words(both: Both) -> None:
    methods = ("get", "PROPFIND", "x-y", "", "A B", "A\r\nB")
    both.compare(
        {method: lambda user, one=method: user.client.request(one, "/json").text for method in methods}
    )


def test_a_method_in_small_letters_has_no_body_to_wait_for(both: Both) -> None:
    with Peer(
        lambda served: served.read_request() and served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    ) as one:
        both.compare({"Head": lambda user: user.client.request("Head", "/").status_code}, host=one.url)


def test_statuses_are_judged_alike(both: Both) -> None:
    both.compare({str(status): get(f"/{status}") for status in (204, 226, 299, 300, 305, 399, 404)})


def test_redirections_are_followed_alike(both: Both) -> None:
    headers = {"Content-Type": "x/y", "Content-Length": "1", "Cookie": "a=b", "X": "1", "Authorization": "t"}
    both.compare(
        {
            "a form": post("/moved", data="b", headers=headers),
            "json": post("/moved", json={"a": 1}),
            "json that is seen": post("/seen", json={"a": 1}, headers={"accept": "x/y"}),
            "json that is kept": post("/kept", json={"a": 1}),
            "a get": get("/moved", headers=headers | {"Content-Length": "0"}),
            "parameters": get("/moved", params={"a": 1}),
            "none": get("/moved", max_redirects=0),
            "too many": get("/round", max_redirects=2),
            "to nowhere": get("/nowhere"),
            "elsewhere": get("/elsewhere", headers={"X": "1", "Authorization": "t"}),
        }
    )


def test_settings_of_the_client_beneath_count(both: Both) -> None:
    def having(path: str, **settings: Any) -> Call:
        def call(user: Any) -> object:
            for name, value in settings.items():
                setattr(user.client.client, name, value)
            return user.client.get(path).text

        return call

    def with_field(user: Any) -> None:
        user.client.client.default_headers["X"] = "1"
        user.client.get("/json")

    both.compare(
        {
            "max_redirects": having("/moved", max_redirects=0),
            "redirect_response_codes": having("/moved", redirect_response_codes=()),
            "valid_response_codes": having("/404", valid_response_codes={404}),
            "not any more": having("/json", valid_response_codes={404}),
            "default_headers": with_field,
        }
    )


def test_cookies_are_those_of_a_jar(both: Both) -> None:
    def with_a_jar(user: Any) -> object:
        user.client.client.cookiejar = type(user.client.cookiejar)()
        user.client.get("/accented")
        return user.client.get("/json").text

    both.compare({"a jar of one's own": with_a_jar})
    both.compare({"beside a field of the class": with_a_jar}, default_headers={"Cookie": "b=1"})


def catching(path: str, act: Callable[[Any], object]) -> Call:
    def call(user: Any) -> object:
        with user.client.get(path, name="named", catch_response=True, context={"b": 3}) as answer:
            act(answer)
        return "after"

    return call


def fails(error: Exception) -> Callable[[Any], object]:
    def act(_: Any) -> None:
        raise error

    return act


def test_a_with_block_decides_alike(both: Both) -> None:
    acts: dict[str, Callable[[Any], object]] = {
        "nothing": lambda answer: None,
        "success": lambda answer: answer.success(),
        "failure": lambda answer: answer.failure({"a": 1}),
        "success, then failure": lambda answer: (answer.success(), answer.failure("no")),
        "ResponseError": fails(ResponseError("no")),
        "ValueError": fails(ValueError("no")),
        "context": lambda answer: answer.request_meta["context"].update(c=4),
        "no context": lambda answer: answer.request_meta.pop("context"),
        "other fields": lambda answer: setattr(
            answer, "request_meta", {**answer.request_meta, "name": "other"}
        ),
        "an exception": lambda answer: answer.request_meta.update(exception="words"),
    }
    both.compare(
        {f"{act} {path}": catching(path, acts[act]) for act in acts for path in ("/json", "/404")},
        context=lambda self: {"a": 1, "b": 2},
    )


def test_a_failure_that_is_raised_ends_the_task_as_in_stock_and_is_counted(both: Both) -> None:
    """FastHttpUser does not count such a request at all."""
    for act in (lambda answer: answer.raise_for_status(), fails(CatchResponseError("no"))):
        (_, stock_told, stock), (_, told, ours) = (
            both._seen(kind, catching("/404", act), {}) for kind in (FastHttpUser, KeepAliveUser)
        )
        assert "after" not in (stock, ours)
        assert (len(stock_told), len(told)) == (0, 1)
