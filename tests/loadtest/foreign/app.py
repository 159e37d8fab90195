"""The small server that all of the scripts here talk to."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Start = Callable[[str, list[tuple[str, str]]], Any]
TOKENS = itertools.count(1)
#: How often a token has been shown.
SHOWN: dict[str, int] = {}


def application(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    body = environ["wsgi.input"].read()
    cookies = SimpleCookie(environ.get("HTTP_COOKIE", ""))

    def answer(content: Any = "ok", status: str = "200 OK", **fields: str) -> Iterable[bytes]:
        is_text = isinstance(content, str)
        data = (content if is_text else json.dumps(content)).encode()
        kind = "text/html; charset=utf-8" if is_text else "application/json"
        named = [(name.replace("_", "-"), value) for name, value in fields.items()]
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(data))), *named])
        return [] if method == "HEAD" else [data]

    if path == "/login" and method == "GET":
        return answer('<input name="csrf" value="t0k3n">', Set_Cookie="csrf=t0k3n; Path=/")
    if path == "/login":
        form = parse_qs(body.decode())
        if form.get("csrf") != [cookies["csrf"].value if "csrf" in cookies else ""]:
            return answer("forged", "403 Forbidden")
        return answer("", "302 Found", Location="/home", Set_Cookie=f"user={form['name'][0]}; Path=/")
    if path == "/home":
        return answer(cookies["user"].value) if "user" in cookies else answer("who?", "401 Unauthorized")
    if path == "/token":
        token = f"token-{next(TOKENS)}"
        return answer({"access_token": token, "expires_in": 3})
    if path == "/guarded":
        token = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
        SHOWN[token] = SHOWN.get(token, 0) + 1
        good = token.startswith("token-") and SHOWN[token] <= 3
        return answer({"for": token}) if good else answer("expired", "401 Unauthorized")
    if path == "/graphql":
        asked = json.loads(body)
        if "name" not in asked["query"]:
            return answer({"errors": [{"message": "no such field"}]})
        return answer({"data": {"user": {"id": asked["variables"]["id"], "name": "Ada"}}})
    if path == "/upload":
        whole = body.count(b"\r\n--") >= 1 and environ["CONTENT_TYPE"].startswith("multipart/form-data")
        return answer({"size": len(body)}) if whole else answer("what?", "400 Bad Request")
    if path.startswith("/status/"):
        return answer("as asked", f"{path.rpartition('/')[2]} As-Asked")
    if path == "/json":
        return answer({"args": parse_qs(environ["QUERY_STRING"]), "sent": body.decode()})
    return answer(f"{method} {path}")
