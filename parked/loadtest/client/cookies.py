"""Cookies, by the rules of Python's own jar (`http.cookiejar`)."""

from __future__ import annotations

from email import message_from_string
from http.client import HTTPMessage
from typing import TYPE_CHECKING, Any
from urllib.request import Request

if TYPE_CHECKING:
    from http.cookiejar import CookieJar


#: Cookies of a user, and characters of one, as browsers have it for a site: what a server sets goes back to
#: it with each request. Beyond the number, those go that came first.
MOST_COOKIES, LARGEST = 180, 4096


def fields(jar: CookieJar, url: str) -> dict[str, Any]:
    """The header fields with which the jar's cookies go to a URL."""
    request = Request(url)
    jar.add_cookie_header(request)
    return dict(request.unredirected_hdrs)


def take(jar: CookieJar, url: str, head: bytes) -> None:
    """Put the cookies of a response's head into the jar.

    :param url: with its path: a cookie without one is for the request's folder (RFC 6265, 5.1.4).
    """
    # Some 50 us each: a head of nothing else, of which few are kept, would take all users a second.
    lines = [line for line in head.split(b"\r\n") if line[:11].lower() == b"set-cookie:"][-MOST_COOKIES:]
    jar.extract_cookies(_Headers(b"\r\n".join(lines)), Request(url))  # type: ignore[arg-type]
    kept = list(jar)
    for number, cookie in enumerate(reversed(kept)):
        if number >= MOST_COOKIES or len(cookie.name) + len(cookie.value or "") > LARGEST:
            jar.clear(cookie.domain, cookie.path, cookie.name)


class _Headers:
    """What CookieJar.extract_cookies reads of a response."""

    def __init__(self, fields: bytes) -> None:
        self._fields = fields

    def info(self) -> HTTPMessage:
        return message_from_string(self._fields.decode("latin-1"), _class=HTTPMessage)
