"""The clients that are compared: how each holds connections, what it says has failed, and how to get it.

Each runs in one process with one thread of its own kind for the requests, opens a connection per user, and
sends the next request on it after a think time.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent
#: Users started a second, where that can be said: slow enough for the stock Locust user's CPU.
SPAWN_PER_S: Final = 1000


class Load(NamedTuple):
    """What a client is asked for."""

    url: str  #: of the server, without a path
    users: int
    think_s: tuple[float, float]
    length: int  #: characters of a response
    bound_s: int  #: seconds after which it may end by itself, if nobody has ended it

    @property
    def path(self) -> str:
        return f"/?length={self.length}"


@dataclass(frozen=True)
class Client:
    """How to start one of the clients, and how to get it."""

    #: What runs it, given a folder of its own.
    command: Callable[[Load, Path], list[str]]
    #: What has failed by its name for it, from what it has printed and from its folder.
    failures: Callable[[str, Path], dict[str, int]]
    available: Callable[[], bool]
    install: str
    #: What makes it end and say what it has to say.
    ends_by: signal.Signals = signal.SIGINT


def _last_line(printed: str, _folder: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads(printed.splitlines()[-1])
    return counts


def _locust(kind: str) -> Client:
    return Client(
        lambda load, _: [
            *(sys.executable, "-P", "-m", "benchmarks.client_users", kind, load.url, str(load.users)),
            *(*map(str, load.think_s), str(load.length)),
        ],
        _last_line,
        lambda: True,
        "",
    )


def _wrk(load: Load, _folder: Path) -> list[str]:
    return [
        *("wrk", "-t1", f"-c{load.users}", f"-d{load.bound_s}", "--timeout", "60"),
        *("-s", str(HERE / "wrk_think.lua"), load.url + load.path, "--", *map(str, load.think_s)),
    ]


def _tsung(load: Load, folder: Path) -> list[str]:
    """With a port mapper of its own, since Erlang would leave one running. Think times are whole seconds."""
    low_s, high_s = map(math.ceil, load.think_s)
    (folder / "tsung.xml").write_text(f"""<?xml version="1.0"?>
<!DOCTYPE tsung SYSTEM "/usr/share/tsung/tsung-1.0.dtd">
<tsung loglevel="warning">
  <clients><client host="localhost" use_controller_vm="true" maxusers="{load.users + 1}"/></clients>
  <servers>
    <server host="127.0.0.1" port="{load.url.rpartition(":")[2]}" type="tcp"/>
  </servers>
  <load><arrivalphase phase="1" duration="{load.bound_s}" unit="second">
    <users maxnumber="{load.users}" arrivalrate="{SPAWN_PER_S}" unit="second"/>
  </arrivalphase></load>
  <sessions><session name="held" probability="100" type="ts_http">
    <for var="turn" from="1" to="1000000">
      <request><http url="{load.path}" method="GET" version="1.1"/></request>
      <thinktime min="{low_s}" max="{high_s}" random="true"/>
    </for>
  </session></sessions>
</tsung>
""")
    script = 'epmd -address 127.0.0.1 & exec tsung -n -f "$HOME/tsung.xml" -l "$HOME/log" start'
    return ["env", f"HOME={folder}", "ERL_EPMD_PORT=4379", "sh", "-c", script]


def _tsung_failures(_printed: str, folder: Path) -> dict[str, int]:
    """By the last totals of its log: name, of the last seconds, of all."""
    return {
        found[1]: int(found[2])
        for log in folder.glob("log/*/tsung.log")
        for found in re.finditer(r"^stats: (error\S*) \d+ (\d+)$", log.read_text(), re.MULTILINE)
    }


def _aiolocust(load: Load, folder: Path) -> list[str]:
    low_s, high_s = load.think_s
    (folder / "held.py").write_text(f"""
import asyncio, random
from aiolocust import HttpUser

async def run(user: HttpUser):
    async with user.client.get("{load.path}") as response:
        assert len(response.bytes) == {load.length}
    await asyncio.sleep(random.uniform({low_s}, {high_s}))
""")
    return [
        *("aiolocust", str(folder / "held.py"), "--event-loops", "1", "--host", load.url),
        *("--users", str(load.users), "--rate", str(SPAWN_PER_S)),
        *("--json-report", str(folder / "report.json")),
    ]


def _aiolocust_failures(_printed: str, folder: Path) -> dict[str, int]:
    return {"errors": int(json.loads((folder / "report.json").read_text())["total"]["errorcount"])}


def _on_path(*commands: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(command) for command in commands)


STOCK: Final = "FastHttpUser"
OURS: Final = "KeepAliveUser"

CLIENTS: Final = {
    STOCK: _locust(STOCK),
    OURS: _locust(OURS),
    "wrk": Client(_wrk, _last_line, _on_path("wrk"), "apt install wrk"),
    "tsung": Client(
        _tsung,
        _tsung_failures,
        _on_path("tsung", "epmd"),
        "apt install --no-install-recommends tsung",
        ends_by=signal.SIGTERM,
    ),
    "aiolocust": Client(
        _aiolocust,
        _aiolocust_failures,
        _on_path("aiolocust"),
        "pip install aiolocust, with a free-threaded Python 3.14",
    ),
}

#: Those that cannot be had from a package registry, and so have no figures.
NO_PACKAGE: Final = {"k6": "Debian has no package; npm's k6 only completes scripts in editors"}
