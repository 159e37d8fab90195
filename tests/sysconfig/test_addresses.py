"""sysconfig/addresses on the loopback interface of a network namespace."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ADDRESSES = Path(__file__).resolve().parents[2] / "sysconfig/addresses"
USAGE = 2


def addresses(
    *arguments: str, inside: str = "", shell: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    namespace = ("ip", "netns", "exec", inside) if inside else ()
    return subprocess.run(
        [*namespace, *shell, str(ADDRESSES), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def there(namespace: str) -> dict[str, str]:
    """Label of each address on lo."""
    shown = subprocess.run(
        ["ip", "-netns", namespace, "-json", "-4", "address", "show", "dev", "lo"],
        capture_output=True,
        check=True,
    ).stdout
    return {f"{row['local']}/{row['prefixlen']}": row["label"] for row in json.loads(shown)[0]["addr_info"]}


@pytest.fixture
def loopback(namespace: str) -> str:
    subprocess.run(["ip", "-netns", namespace, "link", "set", "lo", "up"], check=True)
    return namespace


def test_each_host_address_of_the_range_is_added_and_removed_again(
    loopback: str, shell: tuple[str, ...]
) -> None:
    before = there(loopback)
    added = addresses("add", "lo", "10.0.0.16/28", inside=loopback, shell=shell)
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout == "lo: 14 of 14 addresses added (10.0.0.17 to 10.0.0.30)\n"
    assert there(loopback) == before | {f"10.0.0.{n}/32": "lo:keep" for n in range(17, 31)}

    removed = addresses("remove", "lo", "10.0.0.16/28", inside=loopback, shell=shell)
    assert removed.stdout == "lo: 14 of 14 addresses removed (10.0.0.17 to 10.0.0.30)\n"
    assert there(loopback) == before


def test_an_added_address_can_be_bound(loopback: str) -> None:
    addresses("add", "lo", "10.0.0.9/32", inside=loopback)
    bind = "import socket; socket.socket().bind(('10.0.0.9', 0))"
    subprocess.run(["ip", "netns", "exec", loopback, "python3", "-c", bind], check=True)


def test_adding_and_removing_twice_is_no_error(loopback: str) -> None:
    for verb, did in (("add", "added"), ("remove", "removed")):
        addresses(verb, "lo", "10.0.0.0/30", inside=loopback)
        again = addresses(verb, "lo", "10.0.0.0/30", inside=loopback)
        assert again.returncode == 0
        assert again.stdout == f"lo: 0 of 2 addresses {did} (10.0.0.1 to 10.0.0.2)\n"


def test_addresses_that_somebody_else_made_are_left_alone(loopback: str) -> None:
    for address in ("10.0.0.1/24", "10.0.0.2/32"):
        subprocess.run(["ip", "-netns", loopback, "address", "add", address, "dev", "lo"], check=True)
    before = there(loopback)
    assert "0 of 2 addresses added" in addresses("add", "lo", "10.0.0.0/30", inside=loopback).stdout
    assert "0 of 2 addresses removed" in addresses("remove", "lo", "10.0.0.0/30", inside=loopback).stdout
    assert there(loopback) == before


def test_remove_takes_away_only_the_range_named(loopback: str) -> None:
    addresses("add", "lo", "10.0.0.8/29", inside=loopback)
    addresses("remove", "lo", "10.0.0.12/31", inside=loopback)
    left = [address for address, label in there(loopback).items() if label == "lo:keep"]
    assert left == ["10.0.0.9/32", "10.0.0.10/32", "10.0.0.11/32", "10.0.0.14/32"]


def test_a_dry_run_changes_nothing(loopback: str) -> None:
    before = there(loopback)
    dry = addresses("add", "lo", "10.0.0.0/30", "--dry-run", inside=loopback)
    assert dry.stdout.splitlines() == [
        "ip address add 10.0.0.1/32 dev lo label lo:keep (not done)",
        "ip address add 10.0.0.2/32 dev lo label lo:keep (not done)",
        "lo: 2 of 2 addresses would be added (10.0.0.1 to 10.0.0.2)",
    ]
    assert there(loopback) == before


def test_on_loopback_nothing_is_needed() -> None:
    result = addresses("add", "lo", "127.1.0.0/24")
    assert result.returncode == 0
    assert result.stdout.startswith("nothing to do: every address of 127.0.0.0/8 can be used on lo")


@pytest.mark.parametrize(
    "cidr",
    ["10.0.0.1", "10.0.0/28", "10.0.0.0.0/28", "10.0.0./28", "256.0.0.1/32", "10.0.0.0/21", "10.0.0.0/33"]
    + ["10.0.0.0/", "10.0.0.0/028", "10.0.0.08/30", "::1/128", "/28", "10.0.0.0/28/28", "a.b.c.d/30"],
)
def test_what_is_no_range_is_refused_in_one_line(cidr: str) -> None:
    result = addresses("add", "lo", cidr)
    assert result.returncode == USAGE, result
    (line,) = result.stderr.splitlines()
    assert "is not an IPv4 range" in line


@pytest.mark.parametrize(
    "arguments",
    [[], ["add"], ["add", "lo"], ["put", "lo", "10.0.0.0/30"], ["add", "lo", "10.0.0.0/30", "more"]]
    + [["add", "no-such-device", "10.0.0.0/30"], ["add", "eth0", "127.0.0.0/24"], ["--nonsense"]],
)
def test_wrong_usage_is_one_line(arguments: list[str]) -> None:
    if "no-such-device" in arguments and shutil.which("ip") is None:
        pytest.skip("which devices there are, only the ip command knows")
    result = addresses(*arguments)
    assert result.returncode == USAGE
    assert len(result.stderr.splitlines()) == 1
