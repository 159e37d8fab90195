"""The table in docs/client.md of what FastHttpUser has, against what the installed Locust has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from geventhttpclient.useragent import UserAgent
from locust.contrib import fasthttp
from locust.env import Environment
from locust.user.users import User

from parked.loadtest.client.response import KeepAliveResponse, SentRequest
from parked.loadtest.client.session import KeepAliveSession
from parked.user import KeepAliveUser
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, answering, response

PAGE = Path(__file__).parents[3] / "docs/client.md"
#: A row of what differs, or has a remark: "`Class.name` | how | remark", also `Class.name(parameter, ...)`.
ROW = re.compile(r"^\| `(\w+)\.(\w+)(?:\(([\w, ]+)\))?` \| (same|better|absent) \| .+ \|$", re.MULTILINE)
#: A row of a class with all that is just the same: "`Class` | same | `name`, `name(parameter, parameter)`".
SAME = re.compile(r"^\| `(\w+)` \| same \| (.+) \|$", re.MULTILINE)
MEMBER = re.compile(r"`(\w+)(?:\(([\w, ]+)\))?`")

#: Each class of FastHttpUser's module, and what stands for it.
KINDS: dict[str, tuple[type, type]] = {
    "FastHttpUser": (fasthttp.FastHttpUser, KeepAliveUser),
    "FastHttpSession": (fasthttp.FastHttpSession, KeepAliveSession),
    "FastRequest": (fasthttp.FastRequest, SentRequest),
    "FastResponse": (fasthttp.FastResponse, KeepAliveResponse),
    "ResponseContextManager": (fasthttp.ResponseContextManager, KeepAliveResponse),
    "RestResponseContextManager": (fasthttp.RestResponseContextManager, KeepAliveResponse),
}
Name = tuple[str, str, str]


def upstream() -> set[Name]:
    """Every public attribute, method and parameter, each with the first class that has it."""
    found: set[Name] = set()
    seen: set[str] = set()
    passed_on = set(inspect.signature(UserAgent.urlopen).parameters) - {"self", "kw", "payload"}
    found |= {("FastHttpSession", "request", name) for name in passed_on}
    session = fasthttp.FastHttpSession("http://127.0.0.1:1", None, None)
    for kind, (stock, _) in KINDS.items():
        names = {name for name in dir(stock) if not name.startswith("_")}
        names |= {name for one in stock.__mro__ for name in inspect.get_annotations(one)}
        names = {name for name in names if not name.startswith("_")}
        if kind == "FastHttpUser":
            names -= set(dir(User))  # which a KeepAliveUser is too
        if kind == "FastHttpSession":
            names |= {name for name in vars(session) if not name.startswith("_")}
        if kind in ("ResponseContextManager", "RestResponseContextManager"):
            names -= seen
        if kind == "FastRequest":  # what it has of urllib's own is urllib's
            names = {"url", "method", "headers", "payload", "body", "data", "full_url"}
        seen |= names if kind == "FastResponse" else set()
        for name in names:
            found.add((kind, name, ""))
            member = getattr(stock, name, None)
            if inspect.isfunction(member):
                parameters = list(inspect.signature(inspect.unwrap(member)).parameters.values())[1:]
                found |= {
                    (kind, name, one.name)
                    for one in parameters
                    if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
                }
    return found


def table() -> dict[Name, str]:
    page, found = PAGE.read_text(), dict[Name, str]()
    for kind, members in SAME.findall(page):
        for name, parts in MEMBER.findall(members):
            found |= {(kind, name, part): "same" for part in ["", *parts.split(", ")]}
    for kind, name, parts, how in ROW.findall(page):
        found |= {(kind, name, part): how for part in parts.split(", ")}
    return found


def test_the_table_knows_everything_that_upstream_has() -> None:
    known, has = set(table()), upstream()
    assert sorted(has - known) == [], "new in this Locust"


def test_what_the_table_says_we_have_is_there(environment: Environment, new_session: NewSession) -> None:
    missing = []
    with Peer(answering(response())) as peer:
        client = new_session(peer.url)
        answer = client.get("/")
        things: dict[str, Any] = {
            "FastHttpUser": client.user,
            "FastHttpSession": client,
            "FastRequest": answer.request,
            "FastResponse": answer,
            "ResponseContextManager": answer,
            "RestResponseContextManager": answer,
        }
        for (kind, name, part), how in table().items():
            if how == "absent":
                continue
            if not (hasattr(things[kind], name) or name in getattr(type(things[kind]), "__slots__", ())):
                missing.append(f"{kind}.{name}")
            elif part:
                takes = inspect.signature(inspect.unwrap(getattr(things[kind], name))).parameters
                if part not in takes and "kwargs" not in takes:
                    missing.append(f"{kind}.{name}({part})")
    assert missing == []


@pytest.mark.parametrize("name", ["proxy_host", "concurrency", "client_pool"])
def test_what_is_absent_of_a_user_is_refused_loudly(environment: Environment, name: str) -> None:
    user_class: Any = type("Odd", (KeepAliveUser,), {"host": "http://127.0.0.1:1", name: "something"})
    with pytest.raises(Exception, match=name):
        user_class(environment)
