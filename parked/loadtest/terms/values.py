"""Values that options take, parsed and checked in one place."""

from __future__ import annotations

import argparse
import ipaddress
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from parked.shared import addresses
from parked.shared.addresses import Address

if TYPE_CHECKING:
    from collections.abc import Callable

#: Longest body that the built-in server sends (characters); another server may send more.
MAX_LENGTH = 1_000_000_000
#: Longest think time, seconds: a day.
MAX_THINK_S = 86_400.0
MAX_DURATION_S = 7 * 86_400
#: Most connections, connections a second or processes that can be asked for: far beyond any machine.
MAX_COUNT = 1_000_000_000


def think_time(text: str) -> tuple[float, float]:
    """`MIN:MAX` or one number, in seconds."""
    return _span(text, float, 0.0, MAX_THINK_S, "seconds, such as 10:90")


def length(text: str) -> tuple[int, int]:
    """`MIN:MAX` or one number, in characters."""
    return _span(text, int, 1, MAX_LENGTH, "whole characters, such as 1024:10240")


def _span(text: str, convert: Callable[[str], Any], least: Any, most: Any, wanted: str) -> tuple[Any, Any]:
    first, colon, last = text.partition(":")
    try:
        low = convert(first)
        high = convert(last) if colon else low
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:MAX in {wanted}") from None
    if not least <= low <= high <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r}: needs {least:,.0f} <= MIN <= MAX <= {most:,.0f}, in {wanted}"
        )
    return low, high


def duration(text: str) -> int:
    """Seconds in a duration such as 30, 30s, 5m or 1h30m (the form of Locust's --run-time)."""
    matched = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    if not text or not matched:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 30s, 5m or 1h30m")
    hours, minutes, rest = (int(part or 0) for part in matched.groups())
    seconds = 3600 * hours + 60 * minutes + rest
    if not 1 <= seconds <= MAX_DURATION_S:
        raise argparse.ArgumentTypeError(f"{text!r}: needs 1 second to 7 days")
    return seconds


def count(text: str) -> int:
    """A positive whole number; `400k` and `1M` are understood."""
    matched = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmM]?)", text.strip().replace(",", "").replace("_", ""))
    # Decimal: 2.3M is a whole number, in binary fractions it is not.
    value = Decimal(matched[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[matched[2].lower()] if matched else 0
    if not 1 <= value <= MAX_COUNT or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number such as 20000, 400k or 1M")
    return int(value)


def hosts(text: str) -> list[str]:
    """URLs with commas between, without the slash at their end. A path in one goes before each request's."""
    urls = [url.strip().rstrip("/") for url in text.split(",")]
    for url in urls:
        try:
            _ = urlsplit(url).port
        except ValueError as error:  # brackets that are not closed, a port that is none
            raise argparse.ArgumentTypeError(f"{url!r} is no URL: {error}") from None
        if "?" in url or "#" in url:
            raise argparse.ArgumentTypeError(
                f"{url!r} has a query or fragment, which belongs to a request: --path '/?...' asks for it"
            )
    if not all(urls) or len(set(urls)) < len(urls):
        raise argparse.ArgumentTypeError(f"{text!r} is not one or more different URLs with commas between")
    return urls


def method(text: str) -> str:
    """A request's method: a token (RFC 9110, section 5.6.2), in capitals."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no method such as GET or POST")
    return text.upper()


def header(text: str) -> tuple[str, str]:
    """`NAME: VALUE`."""
    found = re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no field such as 'Accept: text/html'")
    return found[1], found[2].strip()


def status(text: str) -> int:
    """A status code, 100-599."""
    if not re.fullmatch(r"[1-5]\d\d", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no status such as 200")
    return int(text)


def metrics_address(text: str) -> str:
    """`HOST:PORT` or `unix:PATH`, as run_server's --metrics takes it; empty: none."""
    if text:
        _address(text)
    return text


def listen_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[IPV6]:PORT` or `:PORT` (all IPv4 addresses), as run_server's --bind takes it."""
    address = _address(text)
    if address.path or not address.port:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as 127.0.0.1:9102 or [::1]:9102")
    return address.host, address.port


def _address(text: str) -> Address:
    try:
        return addresses.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def source_addresses(text: str) -> list[str]:
    """Addresses and ranges with commas between."""
    parts = [part.strip() for part in text.split(",")]
    try:
        for part in parts:
            ipaddress.ip_network(part, strict=False)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return parts


def checked(parse: Callable[[str], Any]) -> Callable[[str], str]:
    """Check a value but keep its text, which is what Locust's web form shows and what workers are sent."""

    def check(text: str) -> str:
        parse(text)
        return text

    check.__name__ = parse.__name__
    return check
